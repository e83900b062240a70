"""The chat format of OLMo-2-Instruct as text: the "tulu" template with the BOS text in front (RECIPE B).

Two descriptions of one format live here: `render_spans`, from which `render` and the training masks of
`model/tokens/chat.py` are made, and `CHAT_TEMPLATE`, the Jinja text written into `tokenizer_config.json` for other
tools. Tests hold them equal. Deviation: a role outside system, user and assistant is an error; the published
template drops such a message silently.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypedDict

END_OF_TEXT = "<|endoftext|>"
"""End of an answer, separator of documents, and the beginning of a chat (RECIPE B)."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% elif message['role'] == 'system' or message['role'] == 'user' %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}"
    "{% else %}"
    "{{ raise_exception('role must be system, user or assistant: ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""Jinja template; expects `messages`, `bos_token`, `eos_token`, `add_generation_prompt` and a
`raise_exception` function.
"""

_ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class TemplateSpan(NamedTuple):
    """A stretch of a rendered conversation."""

    text: str
    control: bool
    """True for the format's own BOS and EOS, which are single ids; everything else is plain text."""
    trained: bool
    """True where supervised finetuning computes a loss (RECIPE F)."""


def header(role: str) -> str:
    """The line that opens a turn. It is plain text to the tokenizer: the role markers are not tokens."""
    return f"<|{role}|>\n"


def render_spans(messages: Sequence[Message], generation_prompt: bool = False) -> Iterator[TemplateSpan]:
    """Yields the conversation in pieces: BOS, then header, content and ending of each turn, then the open
    answer's header.

    Trained are an assistant's content, its EOS and, when another turn follows, the newline after that EOS.
    Raises ValueError for a role other than system, user or assistant.
    """
    yield TemplateSpan(END_OF_TEXT, control=True, trained=False)
    for index, message in enumerate(messages):
        role = message["role"]
        if role not in _ROLES:
            raise ValueError(f"message {index} has role={role!r}; the chat format knows {', '.join(_ROLES)}")
        yield TemplateSpan(header(role), control=False, trained=False)
        if role == "assistant":
            yield TemplateSpan(message["content"], control=False, trained=True)
            yield TemplateSpan(END_OF_TEXT, control=True, trained=True)
            # Only between turns: a newline after the last EOS would teach the model to write on.
            if index + 1 < len(messages):
                yield TemplateSpan("\n", control=False, trained=True)
        else:
            yield TemplateSpan(message["content"] + "\n", control=False, trained=False)
    if generation_prompt:
        yield TemplateSpan(header("assistant"), control=False, trained=False)


def render(messages: Sequence[Message], generation_prompt: bool = False) -> str:
    """The conversation as one string, equal to what `CHAT_TEMPLATE` gives; `generation_prompt` opens an
    assistant turn.

    Raises ValueError for an unknown role.
    """
    return "".join(span.text for span in render_spans(messages, generation_prompt))
