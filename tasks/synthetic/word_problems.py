"""Short stories with drawn numbers and recomputed answers (RECIPE C.7, "number-substituted GSM8K").

Each ends in GSM8K's "So the answer is N.". A draw whose steps would give a negative number or an inexact quotient is
refused. The key is the template and its numbers: other names or objects do not make another problem.
"""

from random import Random
from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.synthetic.problems import Draft, Problem, ProblemConfig, calculate, fact_key
from tasks.synthetic.templates import FIRST_NAMES, ITEMS, TEMPLATES, Template

Calculation = tuple[int, str, int, int]


class WordProblemsConfig(ProblemConfig):
    """Stories of one to three steps."""

    kind: Literal["word_problems"] = "word_problems"
    templates: tuple[str, ...] = ()
    """Names of the stories to use; empty for all."""
    max_number: int | None = Field(default=None, ge=2)
    """No drawn number is larger, unless the story's smallest is; None for the stories' own ranges. 9 keeps single steps
    within the one-digit tables."""
    working: Literal["steps", "none"] = "steps"
    """`steps`: a sentence for every calculation, then the answer, as in GSM8K. `none`: the answer at once."""

    @model_validator(mode="after")
    def check_templates(self) -> Self:
        known = [template.id for template in TEMPLATES]
        unknown = [name for name in self.templates if name not in known]
        if unknown:
            raise ValueError(f"templates {unknown} do not exist; the stories are {', '.join(known)}")
        return self


def draw_word_problem(config: WordProblemsConfig, rng: Random) -> Draft | None:
    """One story, or None when the drawn numbers do not work out."""
    wanted = [template for template in TEMPLATES if template.id in config.templates] if config.templates else TEMPLATES
    template = wanted[int(rng.random() * len(wanted))]
    numbers = draw_numbers(template, config.max_number, rng)
    calculations = calculate_steps(template, numbers)
    if calculations is None:
        return None
    shown = [f"{name}={value}" for name, value in sorted(numbers.items()) if name not in template.hidden]
    steps = config.working == "steps"
    facts = tuple(fact_key(left, operator, right) for left, operator, right, _ in calculations) if steps else ()
    key = f"word_problems {template.id} {' '.join(shown)}"
    return Draft(key, facts, lambda: write_story(template, numbers, calculations, key, rng, steps=steps))


def draw_numbers(template: Template, max_number: int | None, rng: Random) -> dict[str, int]:
    """The story's numbers, drawn uniformly between its bounds or the configured largest number."""
    numbers = {}
    for name, (low, high) in template.ranges.items():
        # A story's smallest number may be above the configured largest; then it stays at that.
        top = high if max_number is None else max(low, min(high, max_number))
        numbers[name] = low + int(rng.random() * (top - low + 1))
    for name, (left, right) in template.products.items():
        numbers[name] = numbers[left] * numbers[right]
    return numbers


def calculate_steps(template: Template, numbers: dict[str, int]) -> list[Calculation] | None:
    """(left, operator, right, result) of every step; None when a result is negative or a quotient is not whole."""
    values = dict(numbers)
    calculations: list[Calculation] = []
    for place, (_, left_name, operator, right_name) in enumerate(template.steps, 1):
        left, right = values[left_name], values[right_name]
        # Negative or fractional results would make the story nonsense.
        if (operator == "-" and left < right) or (operator == "/" and left % right):
            return None
        result = calculate(left, operator, right)
        values[f"#{place}"] = result
        calculations.append((left, operator, right, result))
    return calculations


def write_story(
    template: Template,
    numbers: dict[str, int],
    calculations: list[Calculation],
    key: str,
    rng: Random,
    *,
    steps: bool,
) -> Problem:
    """The story with two different names and one object, and its steps as sentences."""
    # Names are drawn after the numbers, which decide the split.
    name, other = rng.sample(FIRST_NAMES, 2)
    words: dict[str, str | int] = {"name": name, "other": other, "item": rng.choice(ITEMS), **numbers}
    sentences = [
        sentence.replace("{}", f"{left} {operator} {right} = {result}").format(**words)
        for (sentence, *_), (left, operator, right, result) in zip(template.steps, calculations, strict=True)
    ]
    return Problem(
        question=template.text.format(**words),
        working=" ".join(sentences) if steps else "",
        answer=str(calculations[-1][3]),
        key=key,
        kind="word_problems",
        phrasing=template.id,
    )
