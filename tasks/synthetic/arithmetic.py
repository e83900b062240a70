"""Basic arithmetic questions in many wordings (RECIPE C.7, "basic arithmetic Q/A": 9.03M tokens of DolminoSynthMath).

`working: digits` writes a sum or a difference column by column from the right, and a product or a quotient by its parts. The
paper's set gives bare answers, but a model of a few million parameters learns the columns long before the sums.
"""

from random import Random
from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.synthetic.problems import (
    Draft,
    Operator,
    Problem,
    ProblemConfig,
    calculate,
    fact_key,
    wording_key,
)

Working = Literal["none", "digits"]

_PHRASINGS: dict[str, tuple[str, ...]] = {
    "+": (
        "What is {a} + {b}?",
        "{a} + {b} = ?",
        "Add {a} and {b}.",
        "What is {a} plus {b}?",
        "Find the sum of {a} and {b}.",
        "Compute {a} + {b}.",
        "How much is {a} + {b}?",
        "Calculate {a} plus {b}.",
        "What do you get when you add {b} to {a}?",
        "Work out {a} + {b}.",
        "What number is {b} more than {a}?",
        "Evaluate {a} + {b}.",
    ),
    "-": (
        "What is {a} - {b}?",
        "{a} - {b} = ?",
        "Subtract {b} from {a}.",
        "What is {a} minus {b}?",
        "Find the difference of {a} and {b}.",
        "Compute {a} - {b}.",
        "How much is {a} - {b}?",
        "Calculate {a} minus {b}.",
        "Take {b} away from {a}.",
        "Work out {a} - {b}.",
        "What number is {b} less than {a}?",
        "Evaluate {a} - {b}.",
    ),
    "*": (
        "What is {a} * {b}?",
        "{a} * {b} = ?",
        "Multiply {a} by {b}.",
        "What is {a} times {b}?",
        "Find the product of {a} and {b}.",
        "Compute {a} * {b}.",
        "How much is {a} * {b}?",
        "Calculate {a} times {b}.",
        "What do you get when you multiply {a} and {b}?",
        "Work out {a} * {b}.",
        "Evaluate {a} * {b}.",
    ),
    "/": (
        "What is {a} / {b}?",
        "{a} / {b} = ?",
        "Divide {a} by {b}.",
        "What is {a} divided by {b}?",
        "Compute {a} / {b}.",
        "How much is {a} / {b}?",
        "Calculate {a} over {b}.",
        "How many times does {b} go into {a}?",
        "Work out {a} / {b}.",
        "Evaluate {a} / {b}.",
    ),
}


class ArithmeticConfig(ProblemConfig):
    """Questions about two whole numbers; differences are never negative and quotients are exact."""

    kind: Literal["arithmetic"] = "arithmetic"
    operators: tuple[Operator, ...] = ("+", "-", "*", "/")
    """Each is drawn equally often."""
    min_operand: int = Field(default=0, ge=0)
    """Smallest operand of sums and differences; 0 is left out of products and quotients."""
    max_operand: int = Field(default=999, ge=1)
    """Largest operand of sums and differences."""
    max_factor: int = Field(default=99, ge=2)
    """Largest factor of products; divisors and quotients are factors too."""
    working: Working = "none"
    """`none`: the answer at once, as in the paper. `digits`: column by column."""
    phrasings: int = Field(default=12, ge=1)
    """How many of the wordings of each operator are used, from the first; larger than there are means all."""

    @model_validator(mode="after")
    def check_ranges(self) -> Self:
        if not self.operators:
            raise ValueError("operators is empty; name at least one of + - * /")
        if self.min_operand >= self.max_operand:
            raise ValueError(f"min_operand={self.min_operand} must be below max_operand={self.max_operand}")
        return self


def draw_arithmetic(config: ArithmeticConfig, rng: Random) -> Draft:
    """One question with uniformly drawn operator and operands."""
    # int(random() * n) instead of randrange: the same numbers on every version of Python.
    operator = config.operators[int(rng.random() * len(config.operators))]
    if operator in "+-":
        span = config.max_operand - config.min_operand + 1
        left, right = (config.min_operand + int(rng.random() * span) for _ in range(2))
        if operator == "-" and left < right:
            # Swapped instead of refused, so that differences are as frequent as sums.
            left, right = right, left
    else:
        left, right = (1 + int(rng.random() * config.max_factor) for _ in range(2))
        if operator == "/":
            # A product becomes the dividend, so that the quotient is exact.
            left *= right
    choices = _PHRASINGS[operator][: config.phrasings]
    number = int(rng.random() * len(choices))
    key = wording_key(left, operator, right, number)
    digits = config.working == "digits"

    def write() -> Problem:
        return Problem(
            question=choices[number].format(a=left, b=right),
            working=_work(left, operator, right) if digits else "",
            answer=str(calculate(left, operator, right)),
            key=key,
            kind="arithmetic",
            phrasing=f"{operator}{number}",
        )

    return Draft(key, product_facts(left, operator, right) if digits else (), write)


def _work(left: int, operator: str, right: int) -> str:
    """The steps of one calculation, each a fact of the one-digit tables or a sum of parts."""
    match operator:
        case "+":
            return add_columns(left, right)
        case "-":
            return subtract_columns(left, right)
        case "*":
            return multiply_parts(left, right)
    return f"{right} * {left // right} = {left}."


def add_columns(left: int, right: int) -> str:
    """Column sums from the ones upwards, each with the carry it received: `8 + 7 = 15, 4 + 1 + 1 = 6.`"""
    steps = []
    carry = 0
    # `not steps` lets 0 + 0 write one column.
    while left or right or not steps:
        left, a = divmod(left, 10)
        right, b = divmod(right, 10)
        total = a + b + carry
        steps.append(f"{a} + {b}{' + 1' if carry else ''} = {total}")
        carry = total // 10
    return ", ".join(steps) + "."


def subtract_columns(left: int, right: int) -> str:
    """Column differences from the ones upwards; a column that borrows shows ten more, the next one takes 1 off."""
    steps = []
    borrow = 0
    while left or not steps:
        left, a = divmod(left, 10)
        right, b = divmod(right, 10)
        taken = b + borrow
        lacking = a < taken
        top = a + 10 if lacking else a
        steps.append(f"{top} - {b}{' - 1' if borrow else ''} = {top - taken}")
        borrow = int(lacking)
    return ", ".join(steps) + "."


def product_facts(left: int, operator: str, right: int) -> tuple[str, ...]:
    """Keys of the products which the working of a product or a quotient writes out."""
    if operator == "/":
        return (fact_key(right, "*", left // right),)
    return tuple(fact_key(left, "*", part) for part in decimal_parts(right)) if operator == "*" else ()


def decimal_parts(number: int) -> list[int]:
    """425 as 400, 20, 5; zero digits give no part."""
    digits = str(number)
    parts = [int(digit) * 10 ** (len(digits) - 1 - place) for place, digit in enumerate(digits)]
    return [part for part in parts if part]


def multiply_parts(left: int, right: int) -> str:
    """The second factor split into its decimal parts: `34 * 20 = 680, 34 * 5 = 170.`"""
    return ", ".join(f"{left} * {part} = {left * part}" for part in decimal_parts(right)) + "."
