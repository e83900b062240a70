"""Oracle: tests/golden/gsm8k_extraction.json (open-instruct, December 2024)."""

import json
from pathlib import Path

import pytest

from tasks.verifiers import verify
from tasks.verifiers.gsm8k import extract_number

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "gsm8k_extraction.json").read_text())


@pytest.mark.parametrize("example", GOLDEN["examples"], ids=lambda example: example["text"][:20])
def test_extraction_equals_golden(example):
    assert extract_number(example["text"]) == example["extracted"]


def test_signs_kept_reads_negative_integers():
    assert extract_number("He owes -5 dollars", "kept") == "-5"
    assert extract_number("so 12 - 5 = 7.", "kept") == "7"
    assert extract_number("-5.50", "kept") == "-5.50"


def test_verdict_compares_strings():
    assert verify("GSM8K", "So the answer is 1,234.", "1234").correct
    assert not verify("gsm8k", "So the answer is 18.00", "18").correct
    assert verify("gsm8k", "It is -5", "5").correct, "the published rule drops the sign"
    assert not verify("arithmetic", "It is -5", "5").correct
    assert verify("word_problems", "12 + 5 = 17. So the answer is 17.", "17").extracted == "17"


def test_unknown_dataset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="dataset 'gsm9k' has no verifier; known are gsm8k, math, ifeval"):
        verify("gsm9k", "1", "1")
