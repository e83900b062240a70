"""A language model as judge: UltraFeedback's four aspects, one request each, with all answers of a prompt listed (RECIPE G).

The published judge is GPT-4o-2024-08-06, with prompts that set the annotator's role and ask to rate texts independently; the
prompts here are ours. Its parser has quirks: a block that cannot be read is rated 1, and "N/A" counts as -1 in the mean.
`reading: published` has them too. `strict` leaves N/A out of the mean, and the whole prompt where a rating is missing.
"""

import re
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from infra.language_models.protocol import Answer, Request
from model.config import Config
from tasks.prompting import LanguageModelConfig, check_prompt, fill_template, prompt_text, unusable
from tasks.training.answers.rule_judge import ASPECTS

_Reading = Literal["strict", "published"]
Ratings = dict[str, int | None]
"""Rating of each aspect; None where it does not apply."""

BLOCK = re.compile(r"^\W*text\W*(\d+)\b", re.IGNORECASE | re.MULTILINE)
# Digits followed by a decimal (4.5) are no rating on this scale, so they do not match.
RATING = re.compile(r"^\W*rating\W*(N/?A\b|[1-5]\b(?!\.\d))", re.IGNORECASE | re.MULTILINE)

FAILED_BLOCK, NOT_APPLICABLE = 1, -1
"""What the published parser makes of a block that it cannot read, and of N/A."""


def default_prompts() -> dict[str, str]:
    return {aspect: prompt_text(f"judge_{aspect}") for aspect in ASPECTS}


class LanguageModelJudge(Config):
    """A judge that is asked."""

    kind: Literal["language_model"] = "language_model"
    model: LanguageModelConfig = LanguageModelConfig(model="gpt-4o-2024-08-06", temperature=0.0)
    """Who judges (the paper's model)."""
    system: str = Field(default_factory=lambda: prompt_text("judge_system"))
    """What the judge is told first."""
    prompts: dict[str, str] = Field(default_factory=default_prompts)
    """Jinja template per aspect, with {{ instruction }} and {{ texts }}."""
    reading: _Reading = "strict"
    """`published` has the published parser's quirks."""

    @model_validator(mode="after")
    def _check_prompts(self) -> Self:
        if self.prompts.keys() != set(ASPECTS):
            raise ValueError(f"prompts are for {', '.join(self.prompts)}; give one for each of {', '.join(ASPECTS)}")
        for text in self.prompts.values():
            check_prompt(text, "instruction", "texts")
        return self


def judge_requests(judge: LanguageModelJudge, instruction: str, texts: Sequence[str]) -> list[Request]:
    """One request per aspect, in the order of `ASPECTS`."""
    return [
        judge.model.request(
            fill_template(judge.prompts[aspect], instruction=instruction, texts=texts), judge.system.strip()
        )
        for aspect in ASPECTS
    ]


def read_judgements(answers: Sequence[Answer], count: int, reading: _Reading) -> tuple[list[Ratings], str]:
    """The ratings of each of `count` texts, from one answer per aspect; or none, and why a rating is missing."""
    ratings: list[Ratings] = [{} for _ in range(count)]
    for aspect, answer in zip(ASPECTS, answers, strict=True):
        found = read_blocks(answer.text)
        for place in range(count):
            # Texts are numbered from 1 in the prompt.
            said = found.get(place + 1)
            if said is None and reading == "strict":
                return [], f"{aspect}: {unusable(answer) or f'no rating of text {place + 1}'}"
            ratings[place][aspect] = _rating_of(said, reading)
    return ratings, ""


def read_blocks(text: str) -> dict[int, str]:
    """What is said of each text, by its number; a text with two blocks or a block without a rating is left out."""
    parts = BLOCK.split(text)
    found: dict[int, list[str]] = {}
    for number, block in zip(parts[1::2], parts[2::2], strict=True):
        found.setdefault(int(number), []).append(block)
    # Two blocks for one text contradict each other, so neither counts.
    said = {number: RATING.findall(blocks[0]) for number, blocks in found.items() if len(blocks) == 1}
    return {number: ratings[0].upper() for number, ratings in said.items() if len(ratings) == 1}


def _rating_of(said: str | None, reading: _Reading) -> int | None:
    """A rating as a number; N/A and a missing one by the rules of the reading."""
    if said is None:
        return FAILED_BLOCK
    if said.isdigit():
        return int(said)
    return NOT_APPLICABLE if reading == "published" else None
