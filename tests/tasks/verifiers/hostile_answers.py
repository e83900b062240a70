"""Answers made to break verifiers: short random ones, and long ones of one repeated piece. Tests and benchmarks use them."""

import random

from tests.tasks.verifiers.test_constraints import CASES as CONSTRAINTS
from tests.tasks.verifiers.test_ifeval import CASES as INSTRUCTIONS
from tests.tasks.verifiers.test_ifeval_ood import CASES as UNSEEN

__all__ = ["CONSTRAINTS", "INSTRUCTIONS", "UNSEEN", "long_answers", "short_answers"]

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


def short_answers(count: int, seed: int = 0) -> list[str]:
    """So many answers of up to 40 pieces, the same for a seed."""
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randint(0, 40))) for _ in range(count)]


REPEATED = {
    "letters": "a",
    "capitals": "A",
    "words": "word ",
    "lines_of_words": "word\n",
    "accents": "\u00e9",
    "asian": "\u4e2d",
    "digits": "7",
    "commas": "1,",
    "groups": "1,000",
    "points": "1.",
    "signs": "-",
    "text": "\\text{",
    "texts": "\\text{a}",
    "units": "\\text{ ",
    "boxed": "\\boxed{",
    "boxes": "\\boxed{7}",
    "bare": "\\boxed ",
    "roots": "\\sqrt",
    "fractions": "\\frac",
    "slashes": "1/",
    "backslashes": "\\",
    "braces": "{",
    "closed": "}",
    "dollars": "$",
    "formulas": "$7$ ",
    "phrases": "Final Answer: The final answer is",
    "less": "<",
    "titles": "<<a",
    "brackets": "[",
    "filled": "[a]",
    "stars": "*",
    "spaced_stars": "* ",
    "bullets": "* a\n",
    "highlights": "*a",
    "dividers": "***",
    "newlines": "\n",
    "returns": "\r\n",
    "blanks": " ",
    "tabs": "\t",
    "stops": ".",
    "sentences": "A b. ",
    "abbreviations": "Mr. ",
    "endings": ". ",
    "quotes": '"',
    "apostrophes": "'",
    "equals": "=",
    "opened_json": "[",
    "objects": '{"a":',
    "postscripts": "p. ",
    "sections": "SECTION ",
    "numbered": "SECTION 1 ",
    "zero_width": "\u200b",
    "questions": "Question 1 ",
    "numbered_lines": "Question 1\n",
    "fields": '"!,',
    "tabbed": '"\t',
    "nested": "([",
    "contractions": "don't ",
    "alternating": "\"'",
    "japanese": "\u732b ",
    "dotted_marks": ".')",
    "emoji": "\U0001f600",
}


def long_answers(characters: int) -> dict[str, str]:
    """Every piece repeated to a length, and some between two letters."""
    made = {name: (piece * (characters // len(piece) + 1))[:characters] for name, piece in REPEATED.items()}
    made |= {f"between_{name}": f"a{made[name]}b" for name in ("newlines", "blanks", "tabs", "stops", "quotes")}
    return made | {"after_sentence": f"a. {made['quotes']}", "boxed_in_words": f"{made['words']}\\boxed{{7}}"}
