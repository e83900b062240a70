"""A language model as judge: UltraFeedback's four aspects, one request each, with all answers of a prompt listed (RECIPE G).

The published judge is GPT-4o-2024-08-06, with prompts that set the annotator's role and ask to rate texts independently; the
prompts here are ours. Its parser has quirks: a block that cannot be read is rated 1, and "N/A" counts as -1 in the mean.
`reading: published` has them too. `strict` leaves N/A out of the mean, and the whole prompt where a rating is missing.

Judges favour places in a list, so `positions: both` asks each aspect twice, with the texts in their order and the other way
round, and takes the mean. `attempts` asks again, with another seed, where a rating cannot be read. Neither is published.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from infra.language_models.protocol import Answer, Request
from model.config import Config
from tasks.prompting import LanguageModelConfig, check_prompt, fill_template, prompt_text, unusable
from tasks.training.answers.rule_judge import ASPECTS

if TYPE_CHECKING:
    # Recipes are read without the HTTP client.
    from infra.language_models.client import Endpoint

_Reading = Literal["strict", "published"]
Ratings = dict[str, float | None]
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
    positions: Literal["drawn", "both"] = Field(default="drawn", exclude_if=lambda value: value == "drawn")
    """Texts are listed as they were drawn, or in a second request the other way round too, for the mean of both ratings."""
    attempts: int = Field(default=1, ge=1, exclude_if=lambda value: value == 1)
    """How often an aspect is asked for at most, where a rating cannot be read; each time with the next seed."""

    @model_validator(mode="after")
    def _check_prompts(self) -> Self:
        if self.prompts.keys() != set(ASPECTS):
            raise ValueError(f"prompts are for {', '.join(self.prompts)}; give one for each of {', '.join(ASPECTS)}")
        for text in self.prompts.values():
            check_prompt(text, "instruction", "texts")
        return self


class AspectQuestion(NamedTuple):
    """One request to the judge."""

    group: int
    """Place of the prompt among all that are judged."""
    aspect: str
    swapped: bool
    """The texts are listed the other way round."""


@dataclass(frozen=True)
class JudgedGroup:
    """What is known of one prompt's answers."""

    ratings: list[Ratings]
    """One per answer; none where a rating is missing."""
    reason: str
    """Why one is missing, or ""."""
    said: list[str]
    """What the judge said last to each question."""
    swapped: int = 0
    """Ratings that were given in both orders."""
    agreed: int = 0
    """Those of them that are equal."""


def aspect_questions(judge: LanguageModelJudge, group: int) -> list[AspectQuestion]:
    """What is asked about one prompt, in the order of `ASPECTS`."""
    return [AspectQuestion(group, aspect, swapped) for aspect in ASPECTS for swapped in judge_orders(judge)]


def judge_orders(judge: LanguageModelJudge) -> tuple[bool, ...]:
    """Whether texts are listed the other way round, for each request about an aspect."""
    return (False, True) if judge.positions == "both" else (False,)


def judge_request(
    judge: LanguageModelJudge, question: AspectQuestion, instruction: str, texts: Sequence[str], attempt: int = 0
) -> Request:
    """One aspect of all answers to an instruction. Each attempt has a seed of its own: equal requests have one answer."""
    listed = list(reversed(texts)) if question.swapped else list(texts)
    prompt = fill_template(judge.prompts[question.aspect], instruction=instruction, texts=listed)
    return judge.model.request(prompt, judge.system.strip(), judge.model.seed + attempt)


def judge_groups(
    endpoint: "Endpoint", judge: LanguageModelJudge, groups: Sequence[tuple[str, Sequence[str]]]
) -> list[JudgedGroup]:
    """The judge's ratings of every group's answers, of (instruction, answers)."""
    asked = [question for group in range(len(groups)) for question in aspect_questions(judge, group)]
    answers: dict[AspectQuestion, Answer] = {}
    for attempt in range(judge.attempts):
        # All at once, so that the client keeps its slots full across prompts.
        requests = ((question, judge_request(judge, question, *groups[question.group], attempt)) for question in asked)
        answers |= endpoint.ask_each(requests)
        asked = [question for question in asked if not _is_whole(answers[question], len(groups[question.group][1]))]
        if not asked:
            break
    return [
        read_judgements(
            {question: answers[question] for question in aspect_questions(judge, group)}, len(texts), judge.reading
        )
        for group, (_, texts) in enumerate(groups)
    ]


def _is_whole(answer: Answer, count: int) -> bool:
    """Whether every text is rated."""
    found = read_blocks(answer.text)
    return all(place + 1 in found for place in range(count))


def read_judgements(answers: dict[AspectQuestion, Answer], count: int, reading: _Reading) -> JudgedGroup:
    """The ratings of each of `count` texts, from the answers to one prompt's questions in their order."""
    said = [answer.refused or answer.text for answer in answers.values()]
    ratings: list[dict[str, list[float | None]]] = [{} for _ in range(count)]
    for question, answer in answers.items():
        found = read_blocks(answer.text)
        for place in range(count):
            # Texts are numbered from 1 in the prompt, from the last one where they are swapped.
            number = count - place if question.swapped else place + 1
            rating = found.get(number)
            if rating is None and reading == "strict":
                return JudgedGroup([], f"{question.aspect}: {unusable(answer) or f'no rating of text {number}'}", said)
            ratings[place].setdefault(question.aspect, []).append(_rating_of(rating, reading))
    both = [found for own in ratings for found in own.values() if len(found) > 1]
    means = [{aspect: _mean(found) for aspect, found in own.items()} for own in ratings]
    return JudgedGroup(means, "", said, swapped=len(both), agreed=sum(len(set(found)) == 1 for found in both))


def _mean(ratings: Sequence[float | None]) -> float | None:
    """The rating of one order, or the mean of both; what does not apply in one order counts in the other."""
    known = [rating for rating in ratings if rating is not None]
    return known[0] if len(known) == 1 else sum(known) / len(known) if known else None


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
