"""Prompts and sampling of what a language model writes, labels and judges (paper §4.4.1, Figures 24-25; RECIPE C.3, C.7, G).

The wordings are this project's: the paper's say what is asked for, and that is kept. They are Jinja templates below
`prompts/`, and the text of the one that is used is part of a stage's config, so that changing a word asks again.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field

from infra.language_models.protocol import Answer, Request, chat_request
from model.config import Config

_FOLDER = Path(__file__).parent / "prompts"

# Recipes may come from a browser's form: a template can read its values and do nothing else.
# StrictUndefined: a template that misspells a value fails instead of asking with a gap.
ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


class LanguageModelConfig(Config):
    """A language model and how it is sampled. Where it is asked is in `execution.endpoints`."""

    model: str
    """Name of the model, as `execution.endpoints` and the endpoint know it."""
    temperature: float = Field(default=0.7, ge=0)
    """Sampling temperature (not published)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: 1 for none."""
    max_tokens: int = Field(default=2048, ge=1)
    """Longest answer. What is written or labelled is not used where it was cut off; a judge's words are read as far as they go,
    and a pool keeps such an answer as it keeps the policy's own."""
    seed: int = 0
    """Sent with every request. Another seed asks again; the same one gives the answers that the store remembers."""

    def request(self, prompt: str, system: str = "", seed: int | None = None) -> Request:
        """One question without history, perhaps after a system message; `seed`: another one than the model's own."""
        messages = [{"role": "system", "content": system}] if system else []
        return self.reply([*messages, {"role": "user", "content": prompt}], self.seed if seed is None else seed)

    def reply(self, messages: Sequence[dict[str, str]], seed: int, **more: Any) -> Request:
        """The answer to a conversation. `more`: further fields of the protocol, or others than the model's own."""
        own = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": seed,
        }
        return chat_request(self.model, messages, **own | more)


@cache
def prompt_text(name: str) -> str:
    """The template of this name. FileNotFoundError if there is none."""
    return (_FOLDER / f"{name}.j2").read_text(encoding="utf-8")


def check_prompt(text: str, *values: str) -> str:
    """The template, if it can be rendered and asks for these values, `{{ value }}`, alone. ValueError otherwise."""
    try:
        asked = meta.find_undeclared_variables(ENVIRONMENT.parse(text))
    except TemplateSyntaxError as error:
        raise ValueError(f"the prompt is no Jinja template: {error.message} (line {error.lineno})") from error
    # Values that a template leaves out would be asked for and never shown to the model.
    if asked != set(values):
        found, wanted = ", ".join(sorted(asked)) or "nothing", " and ".join(f"{{{{ {value} }}}}" for value in values)
        raise ValueError(f"the prompt must ask for {wanted} and nothing else; it asks for {found}")
    return text


def fill_template(template: str, **values: Any) -> str:
    """A prompt with its values."""
    return ENVIRONMENT.from_string(template).render(**values).strip()


def unusable(answer: Answer) -> str:
    """Why an answer cannot be used, whatever it is about; empty when it can."""
    if answer.refused:
        return "refused"
    # A text that was cut off ends in the middle of a thought, so it is worse than none.
    if answer.finish == "length":
        return "cut off"
    if answer.finish != "stop":
        return f"ended by {answer.finish}"
    return "" if answer.text.strip() else "empty"
