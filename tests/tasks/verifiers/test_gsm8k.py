"""Oracle: tests/golden/gsm8k_extraction.json (open-instruct, December 2024)."""

import json
from pathlib import Path

import pytest

from tasks.verifiers import verify
from tasks.verifiers.gsm8k import extract_number

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "gsm8k_extraction.json").read_text())


@pytest.mark.parametrize("example", GOLDEN["examples"], ids=lambda example: example["text"][:20])
def test_extraction_equals_golden(example):
    assert extract_number(example["text"], "published") == example["extracted"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He owes -5 dollars", "-5"),
        ("so 12 - 5 = 7.", "7"),
        ("it is 12-5", "5"),
        ("x −5", "-5"),
        ("x=−5", "-5"),
        ("-5.50", "-5.50"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("(-3)", "-3"),
        ("It costs $29.00.", "29.00"),
        ("$1,029", "1029"),
        ("1,234,567 people", "1234567"),
        ("3, 4", "4"),
        ("1,2,3", "3"),
        ("from 3-5", "5"),
        ("\\boxed{-7}", "-7"),
        ("about .5", ".5"),
        ("none", "none"),
    ],
)
def test_numbers_are_read_as_numbers(text, number):
    assert extract_number(text) == number


@pytest.mark.parametrize(
    ("text", "truth", "right"),
    [
        ("x −5", "−5", True),
        ("x −5", "-5", True),
        ("x −5", "5", False),
        ("It is -5", "5", False),
        ("It costs $29.00", "29", True),
        ("It costs $29.50", "29", False),
        ("$1,029", "1029", True),
        ("1029", "1,029", True),
        ("So the answer is 1,234.", "1234", True),
        ("18.00", "18", True),
        ("+7", "7", True),
        ("007", "7", True),
        ("yes", "Yes", True),
        ("", "5", False),
        ("9" * 5_000, "9" * 5_000, True),
    ],
)
def test_verdict_compares_numbers(text, truth, right):
    assert verify("gsm8k", text, truth).correct is right
    assert verify("arithmetic", text, truth).correct is right


def test_the_published_rule_is_kept_by_its_name():
    assert verify("GSM8K", "So the answer is 1,234.", "1234", "published").correct
    assert not verify("gsm8k", "So the answer is 18.00", "18", "published").correct
    assert verify("gsm8k", "It is -5", "5", "published").correct, "it drops the sign"
    assert verify("word_problems", "12 + 5 = 17. So the answer is 17.", "17", "published").extracted == "17"


def test_unknown_dataset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="dataset 'gsm9k' has no verifier; known are gsm8k, math, ifeval"):
        verify("gsm9k", "1", "1")
