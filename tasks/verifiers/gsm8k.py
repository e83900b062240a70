"""The GSM8K verifier: the last number of the answer equals the truth (RECIPE H.4; open-instruct of December 2024).

By default numbers are read as numbers. "-5", "−5" and "-$5" are minus five, "1,029" is one number and "3, 4" are two, and
"29.00" equals 29. A sign right after a letter, a digit or a bracket is an operation. Deviation: the published rule takes an
optionally signed decimal or else an unsigned integer, and compares strings; it is kept under its name.
"""

import re
from decimal import Decimal

from tasks.verifiers.verdict import Rules, Verdict

COMMA_IN_NUMBER = re.compile(r"(\d),(\d)")
PUBLISHED_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(rf"(?:(?<![\w)\]}}.%])(?P<sign>[-+−–]))?[$€£]?(?P<digits>{_DIGITS})")


def extract_number(text: str, rules: Rules = "correct") -> str:
    """The last number without commas and currency; the whole text when it holds none. `published` keeps it as written."""
    if rules == "published":
        numbers = PUBLISHED_NUMBER.findall(COMMA_IN_NUMBER.sub(r"\1\2", text))
        return numbers[-1] if numbers else COMMA_IN_NUMBER.sub(r"\1\2", text)
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return text
    found = numbers[-1]
    # A dash and the minus sign of typography mean minus as well.
    sign = "-" if (found["sign"] or "+") in "-−–" else ""
    return sign + found["digits"].replace(",", "")


def same_number(left: str, right: str) -> bool:
    """Whether two texts are one number each, and equal; texts that are no numbers are compared ignoring case."""
    values = [_NUMBER.fullmatch(text.strip().removesuffix(".")) for text in (left, right)]
    if any(value is None for value in values):
        return left.strip().lower() == right.strip().lower()
    # Decimal: 0.1 + 0.2 is no question here, but 29.00 must equal 29.
    return Decimal(extract_number(left)) == Decimal(extract_number(right))


def verify_gsm8k(text: str, truth: str, rules: Rules = "correct") -> Verdict:
    """Compare the extracted number with the truth: as numbers, or as strings under the published rule."""
    extracted = extract_number(text.strip(), rules)
    same_text = extracted.lower() == truth.strip().lower()
    correct = same_text if rules == "published" else same_number(extracted, truth)
    return Verdict(correct, extracted, f"last number {extracted!r} against {truth.strip()!r}")
