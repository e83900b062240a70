"""Answers made to break verifiers: no exception for any, and time that is linear in their length.

Oracles: Minerva's own patterns for what the scans replace; a limit that quadratic patterns miss by hours.
"""

import itertools
import random
import re
import subprocess
import sys

import pytest

from tasks.verifiers import verify
from tasks.verifiers.competition_math import candidates
from tasks.verifiers.ifeval import CHECKS, judge_instructions
from tasks.verifiers.latex_strings import _unwrapped
from tests.tasks.verifiers.test_constraints import CASES as CONSTRAINTS
from tests.tasks.verifiers.test_ifeval import CASES as INSTRUCTIONS

PIECES = (
    *("\\boxed", "\\boxed{", "\\text{", "\\frac", "\\sqrt", "{", "}", "$", "\\", "^", "_", "&", "#", "%", "~"),
    *(
        "<<",
        ">>",
        "[",
        "]",
        "*",
        "***",
        "******",
        "* * *",
        "-",
        "\n",
        "\n\n",
        "\r",
        "\t",
        " ",
        ".",
        "?!",
        ",",
        "=",
        "/",
        '"',
    ),
    *("0", "7", "1,000", "-5", "\u22125", "1e999", "nan", "inf", "9" * 50, "a", "I", "Mr", "P.S.", "p. p. s"),
    *(
        "Final Answer: The final answer is",
        "\u0000",
        "\u200b",
        "\ud83d",
        "\U0001f600",
        "\u0663",
        "\u00b2",
        "\x85",
        "(",
        ")",
    ),
)


def answers(count: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(PIECES, k=draw.randint(0, 40))) for _ in range(count)]


def test_10_000_hostile_answers_raise_nothing():
    constraints = itertools.cycle(CONSTRAINTS)
    instructions = itertools.cycle(INSTRUCTIONS)
    for number, text in enumerate(answers(10_000)):
        name, arguments, *_ = next(constraints)
        instruction, kwargs, *_ = next(instructions)
        for rules in ("correct", "published"):
            verify("gsm8k", text, "7", rules)
            # Algebra takes a process of its own: one answer in a hundred reaches it.
            verify("math", text, "7" if number % 100 == 0 else "eastern", rules)
            verify("ifeval", text, {"func_name": name, **arguments}, rules)
        judge_instructions([instruction], [kwargs], text)
    assert {case[0] for case in INSTRUCTIONS} == set(CHECKS)


LONG = {
    "letters": "a" * 130_000,
    "digits": "7" * 130_000,
    "commas": "1," * 65_000,
    "groups": "1,000" * 26_000,
    "text": "\\text{" * 22_000,
    "boxed": "\\boxed{" * 18_000,
    "bare": "\\boxed " * 18_000,
    "roots": "\\sqrt" * 26_000,
    "dollars": "$" * 130_000,
    "less": "<" * 130_000,
    "brackets": "[" * 130_000,
    "stars": "*" * 130_000,
    "lines": "a" + "\n" * 130_000 + "b",
    "blanks": "a" + " " * 130_000 + "b",
    "stops": "." * 130_000 + "a",
    "quotes": "a. " + '"' * 130_000,
    "endings": ". " * 65_000,
    "equals": "=" * 130_000,
}
JUDGE = """
import sys
from tasks.verifiers import verify
from tasks.verifiers.ifeval import judge_instructions
from tests.tasks.verifiers.test_constraints import CASES as CONSTRAINTS
from tests.tasks.verifiers.test_ifeval import CASES as INSTRUCTIONS
from tests.tasks.verifiers.test_hostile import LONG
text = LONG[sys.argv[1]]
for rules in ("correct", "published"):
    verify("gsm8k", text, "5", rules)
    verify("math", text, "eastern", rules)
    for name, arguments, *_ in CONSTRAINTS:
        verify("ifeval", text, {"func_name": name, **arguments}, rules)
for name, kwargs, *_ in INSTRUCTIONS:
    judge_instructions([name], [kwargs], text)
"""


@pytest.mark.parametrize("name", sorted(LONG))
def test_130_000_characters_end(name):
    """About 110 judgements: quadratic patterns take hours here, linear ones a second or two."""
    subprocess.run([sys.executable, "-c", JUDGE, name], check=True, timeout=120)


MINERVA = (
    (r"(.*?)(\$)(.*?)(\$)(.*)", r"$\3$"),
    (r"(\\text\{)(.*?)(\})", r"\2"),
    (r"(\\textbf\{)(.*?)(\})", r"\2"),
    (r"(\\overline\{)(.*?)(\})", r"\2"),
    (r"(\\boxed\{)(.*)(\})", r"\2"),
)


def test_scans_equal_minervas_patterns():
    draw = random.Random(1)
    pieces = ("$", "\\text{", "\\textbf{", "\\overline{", "\\boxed{", "{", "}", "a", "1", "\n")
    for _ in range(20_000):
        text = expected = "".join(draw.choices(pieces, k=draw.randint(0, 12)))
        for pattern, replacement in MINERVA:
            expected = re.sub(pattern, replacement, expected)
        assert "\n".join(_unwrapped(line) for line in text.split("\n")) == expected, repr(text)
    assert candidates("") == [""]
