"""A rule-based judge: rates an answer 1 to 5 on UltraFeedback's four aspects from what a verifier can know.

Source: RECIPE G names the aspects and the scale; the published judge is a language model, and
`tasks.training.answers.model_judge` asks one. Deviation: here every rating follows from five observable facts about an
answer, so that preferences need no other model and are reproducible. Does a verifier accept it, does it state an answer at
all, did it end by itself, does it hedge, and does it show more than the bare answer?
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tasks.artifacts import ROUNDING

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
"""The four aspects, in the order of RECIPE G."""

HEDGES = re.compile(
    r"\b(?:i(?:'m| am) not (?:sure|certain)|not sure|i (?:do not|don't) know|i think|maybe|perhaps|probably|"
    r"possibly|it might be|i guess)\b",
    re.IGNORECASE,
)
"""Wordings by which an answer says that it may be wrong."""

WORKING_WORDS = 4
"""An answer shows working when it has at least this many words beyond those of the answer itself."""


class AnswerFacts(NamedTuple):
    """What the judge looks at."""

    correct: bool
    """The verifier accepts the answer."""
    answered: bool
    """The verifier found something in the text to compare with the truth."""
    finished: bool
    """The answer ended by itself, not at the token limit."""
    hedged: bool
    """The text says that it may be wrong."""
    working: bool
    """The text shows more than the bare answer."""


BARE_ANSWER_WORDS = 3
"""A text of at most this many words that holds a digit is itself an answer."""


def observe(dataset: str, text: str, extracted: str, *, correct: bool, finished: bool) -> AnswerFacts:
    """The facts of one answer; `extracted` is what the verifier compared with the truth.

    Verifiers of mathematics compare the whole text when they find nothing in it, so that counts as no answer,
    unless the text is a bare number. A constraint (dataset "ifeval") is answered by being kept.
    """
    text, extracted = text.strip(), extracted.strip()
    bare = len(text.split()) <= BARE_ANSWER_WORDS and any(letter.isdigit() for letter in text)
    # Verifiers compare the whole text where they find nothing, so `extracted == text` is no sign of an answer.
    found = bool(extracted) and (extracted != text or bare)
    return AnswerFacts(
        correct=correct,
        # A constraint (ifeval) has no answer to extract: keeping it is the answer.
        answered=correct or (found and dataset.lower() != "ifeval"),
        finished=finished,
        hedged=HEDGES.search(text) is not None,
        working=len(text.split()) - len(extracted.split()) >= WORKING_WORDS,
    )


def rate(facts: AnswerFacts) -> dict[str, int]:
    """A rating from 1 to 5 for each of the four aspects."""
    return {
        "instruction_following": instruction_following(facts),
        "honesty": honesty(facts),
        "truthfulness": truthfulness(facts),
        "helpfulness": helpfulness(facts),
    }


def instruction_following(facts: AnswerFacts) -> int:
    """Form as asked: an answer where one is looked for (5 with the end reached, 3 without), else 2, or 1 if
    cut off too.
    """
    if facts.answered:
        return 5 if facts.finished else 3
    return 2 if facts.finished else 1


def honesty(facts: AnswerFacts) -> int:
    """Confidence matches correctness: sure and right 5, unsure and wrong 4, unsure and right 3, silent 2,
    sure and wrong 1.
    """
    if facts.correct:
        return 3 if facts.hedged else 5
    if facts.hedged:
        return 4
    return 1 if facts.answered else 2


def truthfulness(facts: AnswerFacts) -> int:
    """Nothing false is said: right 5, nothing stated 3, a wrong answer stated 1."""
    if facts.correct:
        return 5
    return 1 if facts.answered else 3


def helpfulness(facts: AnswerFacts) -> int:
    """Of use to the reader: right with its working 5, right 4, right but cut off 3, wrong with working to
    check 2, else 1.
    """
    if facts.correct:
        return (5 if facts.working else 4) if facts.finished else 3
    return 2 if facts.answered and facts.working and facts.finished else 1


def mean_rating(ratings: Mapping[str, float | None]) -> float:
    """Mean over the aspects that apply (all four, where rules rate); 1, the lowest rating, where none does."""
    known = [rating for rating in ratings.values() if rating is not None]
    return sum(known) / len(known) if known else 1.0


def binarise(means: Sequence[float], generator: np.random.Generator, margin: float = 0.0) -> tuple[int, int] | None:
    """(chosen, rejected) of a prompt's answers: the best, first on ties; any other, uniformly (RECIPE G).

    As published no margin is asked for, so both may have the same rating. With one, the rejected answer is among those that are
    rated lower by at least so much, and there is no pair where none is. Raises ValueError for fewer than two answers.
    """
    if len(means) < 2:
        raise ValueError(f"{len(means)} answers: a pair needs at least 2")
    # argmax takes the first of equals, so the pair does not depend on the order of a sort.
    chosen = int(np.argmax(means))
    # Means of three aspects are no binary fractions, so a margin of a third has to forgive their rounding.
    others = [i for i in range(len(means)) if i != chosen and means[chosen] - means[i] >= margin - ROUNDING]
    return (chosen, others[int(generator.integers(len(others)))]) if others else None
