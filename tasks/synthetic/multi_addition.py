"""Sums of several numbers with a running total (RECIPE C.7, "multi-addition": 2.21M tokens of DolminoSynthMath)."""

from random import Random
from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.synthetic.problems import Draft, Problem, ProblemConfig, fact_key

_PHRASINGS: tuple[str, ...] = (
    "What is {sum}?",
    "{sum} = ?",
    "Add {list}.",
    "Find the sum of {list}.",
    "Compute {sum}.",
    "What is the total of {list}?",
    "Add up these numbers: {list}.",
    "Work out {sum}.",
)


class MultiAdditionConfig(ProblemConfig):
    """Sums of three or more whole numbers, worked from left to right."""

    kind: Literal["multi_addition"] = "multi_addition"
    min_terms: int = Field(default=3, ge=3)
    """Two terms are `arithmetic`."""
    max_terms: int = Field(default=6, ge=3)
    min_operand: int = Field(default=0, ge=0)
    max_operand: int = Field(default=999, ge=1)
    phrasings: int = Field(default=8, ge=1)
    """How many of the wordings are used, from the first; larger than there are means all."""

    @model_validator(mode="after")
    def check_ranges(self) -> Self:
        for low, high in (("min_terms", "max_terms"), ("min_operand", "max_operand")):
            values = self.model_dump()
            if values[low] > values[high]:
                raise ValueError(f"{low}={values[low]} exceeds {high}={values[high]}")
        return self


def draw_multi_addition(config: MultiAdditionConfig, rng: Random) -> Draft:
    """One sum; the order of its terms does not make another problem."""
    terms = [
        rng.randint(config.min_operand, config.max_operand)
        for _ in range(rng.randint(config.min_terms, config.max_terms))
    ]
    steps = []
    total = terms[0]
    for term in terms[1:]:
        steps.append((total, term, total + term))
        total += term

    def write() -> Problem:
        choices = _PHRASINGS[: config.phrasings]
        number = int(rng.random() * len(choices))
        words = [str(term) for term in terms]
        listing = ", ".join(words[:-1]) + " and " + words[-1]
        return Problem(
            question=choices[number].format(sum=" + ".join(words), list=listing),
            working=", ".join(f"{a} + {b} = {c}" for a, b, c in steps) + ".",
            answer=str(total),
            key=key,
            kind="multi_addition",
            phrasing=str(number),
        )

    # Sorted: the order of terms does not make another problem, which could cross the splits.
    key = "multi_addition " + " ".join(str(term) for term in sorted(terms))
    # Every partial sum is a two-operand fact that may be held out.
    return Draft(key, tuple(fact_key(a, "+", b) for a, b, _ in steps), write)
