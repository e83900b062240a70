"""A generated maths problem, and the rule that puts every problem into exactly one split.

Paper §4.4.1 (DolminoSynthMath), RECIPE C.7: the kinds that need no language model. The paper generates and then
decontaminates; here a problem's canonical key decides its split, so that no seed, count or phrasing can move a held-out
problem into training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Literal, NamedTuple, get_args

from pydantic import Field

from model.config import Config

Split = Literal["train", "preference", "rlvr", "eval"]
Operator = Literal["+", "-", "*", "/"]

SPLIT_ENDS: dict[Split, int] = {"train": 70, "preference": 80, "rlvr": 90, "eval": 100}
"""Upper ends of each split's range of `hash mod 100`: 70 % of the problems train, 10 % go to each of the others."""

TABLE = "table "
"""Prefix of the keys of one-digit tables."""

REFUSALS_PER_PROBLEM = 4_000
"""Draws in a row without a usable problem after which a kind's range is declared too narrow for the split."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its answer. `key` leaves out what does not matter to the mathematics: phrasing, names, units."""

    question: str
    working: str
    """Steps before the answer; empty when the answer is given at once."""
    answer: str
    key: str
    kind: str
    phrasing: str
    """Which wording of the question was used."""

    @property
    def response(self) -> str:
        """What a model should say: the bare answer, or the steps and then the answer in GSM8K's closing words."""
        return f"{self.working} So the answer is {self.answer}." if self.working else self.answer


class Draft(NamedTuple):
    """A drawn problem before its text is made: drawing is cheap and most draws belong to another split."""

    key: str
    facts: tuple[str, ...]
    """Keys of the two-operand sums, differences, products and quotients which the working writes out."""
    write: Callable[[], Problem]


class ProblemConfig(Config):
    """What every kind of problem has."""

    weight: float = Field(default=1.0, gt=0)
    """Share of this kind among the kinds it is listed with, relative to their weights."""


def calculate(left: int, operator: str, right: int) -> int:
    """`left operator right` in whole numbers; a quotient must be exact."""
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            # Exact by construction; a remainder would be a fault of the drawing.
            quotient, remainder = divmod(left, right)
            assert remainder == 0, (left, right)
            return quotient
    raise ValueError(f"operator {operator!r} is not one of {get_args(Operator)}")


def fact_key(left: int, operator: str, right: int) -> str:
    """Canonical key of a two-operand problem: 3 + 5 and 5 + 3 are one problem; a fact of the one-digit tables says so."""
    if operator in "+*" and left > right:
        # 3 + 5 and 5 + 3 must fall into the same split.
        left, right = right, left
    return f"{TABLE if is_table_fact(left, operator, right) else ''}arithmetic {left} {operator} {right}"


def is_table_fact(left: int, operator: str, right: int) -> bool:
    """Whether this belongs to the one-digit tables, which are to be known by heart and cannot be held out.

    Every longer calculation is made of them, so holding one out would hold out a tenth of all worked examples. What is
    held out of them is the question in one wording (`wording_key`).
    """
    match operator:
        case "+" | "*":
            return left < 10 and right < 10
        case "-":
            return right < 10 and left - right < 10
        case "/":
            return right < 10 and left // right < 10
    raise ValueError(f"operator {operator!r} is not one of {get_args(Operator)}")


def wording_key(left: int, operator: str, right: int, wording: int) -> str:
    """Key of a two-operand question: the fact, whatever the wording; for the one-digit tables the fact in this wording."""
    fact = fact_key(left, operator, right)
    return f"wording {wording} of {fact}" if fact.startswith(TABLE) else fact


def split_of(key: str) -> Split:
    """The split to which the problem or fact with this key belongs, for ever; bare facts of the one-digit tables train."""
    if key.startswith(TABLE):
        return "train"
    # By the key's hash alone, so that no seed or count moves a problem to another split.
    place = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % 100
    return next(split for split, end in SPLIT_ENDS.items() if place < end)


def draw_problems(
    draw: Callable[[Random], Draft | None], split: Split, count: int, rng: Random, *, distinct: bool, what: str
) -> list[Problem]:
    """`count` problems of `split`, in the order drawn: a longer list begins with the shorter one of the same seed.

    Draws of other splits are refused, and so are training problems whose working writes out a two-operand fact that is
    held out for evaluation. `distinct` also refuses a key already given. ValueError when the split holds too few.
    """
    problems: list[Problem] = []
    seen: set[str] = set()
    refusals = 0
    while len(problems) < count:
        draft = draw(rng)
        # `distinct` is asked last, since the set of seen keys grows with the list.
        usable = draft is not None and belongs(draft, split) and not (distinct and draft.key in seen)
        if draft is None or not usable:
            refusals += 1
            if refusals > REFUSALS_PER_PROBLEM:
                raise ValueError(
                    f"{what} gave {len(problems):,} of {count:,} {'distinct ' if distinct else ''}problems for split "
                    f"{split!r}, then none in {REFUSALS_PER_PROBLEM:,} draws; widen its ranges or ask for fewer"
                )
            continue
        refusals = 0
        seen.add(draft.key)
        problems.append(draft.write())
    return problems


def belongs(draft: Draft, split: Split) -> bool:
    """Whether a draft may be used in `split`."""
    if split_of(draft.key) != split:
        return False
    # Evaluation may use any fact; the others may not write out one that is held out.
    return split == "eval" or all(split_of(fact) != "eval" for fact in draft.facts)
