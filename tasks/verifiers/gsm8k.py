"""The GSM8K verifier: the last number of the answer equals the truth (RECIPE H.4; open-instruct of December 2024).

As published, the pattern is an optionally signed decimal or else an unsigned integer, so "-5" is read as "5" and "18.00"
is not "18". `signs="kept"` is the later fix; our own synthetic problems use it.
"""

import re
from typing import Literal

from tasks.verifiers.verdict import Verdict

Signs = Literal["published", "kept"]

COMMA_IN_NUMBER = re.compile(r"(\d),(\d)")
LAST_NUMBER: dict[Signs, re.Pattern[str]] = {
    "published": re.compile(r"[-+]?\d*\.\d+|\d+"),
    "kept": re.compile(r"[-+]?(?:\d*\.\d+|\d+)"),
}


def extract_number(text: str, signs: Signs = "published") -> str:
    """The last number as written, commas between digits deleted in one pass; the whole text when it holds none."""
    text = COMMA_IN_NUMBER.sub(r"\1\2", text)
    numbers = LAST_NUMBER[signs].findall(text)
    return numbers[-1] if numbers else text


def verify_gsm8k(text: str, truth: str, signs: Signs = "published") -> Verdict:
    """Compare the extracted number with the truth as strings, ignoring case."""
    extracted = extract_number(text.strip(), signs)
    correct = extracted.lower() == truth.strip().lower()
    return Verdict(correct, extracted, f"last number {extracted!r} against {truth.strip()!r}")
