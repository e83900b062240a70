"""Oracles: the exact detector on all tokens, golden/repetition_filter.json, a word-by-word n-gram set, hand
counts."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.repetition import is_repetitive
from model.tokenizer import Tokenizer
from tasks.data.filters.length import LengthRule, judge_length
from tasks.data.filters.ngrams import NGramSet, word_ngrams
from tasks.data.filters.repetition import RepetitionRule, judge_repetition, suspicious_runs
from tasks.data.filters.word_frequency import WordFrequencyRule, judge_word_frequency, top_fractions

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "repetition_filter.json").read_text())["cases"]
RULE = RepetitionRule(ranks=1000)
TOKENIZER = Tokenizer(1000)


@pytest.mark.parametrize("case", [case for case in GOLDEN if case["tokens"]], ids=lambda case: case["name"])
def test_verdicts_of_the_golden_cases(case):
    # Ids as single-byte words, so that the tokens of the text repeat exactly where the golden ids do.
    text = " ".join(chr(0x4E00 + token) for token in case["tokens"])
    assert bool(judge_repetition([text], RULE)[0].detail) == is_repetitive(TOKENIZER.encode_array(text))


pieces = st.one_of(
    st.text(max_size=30),
    st.tuples(st.text(min_size=1, max_size=12), st.integers(20, 45)).map(lambda part: part[0] * part[1]),
    st.sampled_from(["\n", "\n\n  ", " " * 300, "-" * 200, "0" * 120, "ab\n" * 33, "日本" * 40, "\u00e9\n" * 34]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(pieces, max_size=6).map("".join), min_size=1, max_size=4))
@example(["x" + "long unit of more than sixteen bytes, " * 32 + "y", "a b c"])
@example(["\n".join(["same line"] * 32)])
def test_searching_bytes_first_changes_no_verdict(texts):
    judged = [bool(judgement.detail) for judgement in judge_repetition(texts, RULE)]
    assert judged == [is_repetitive(TOKENIZER.encode_array(text)) for text in texts]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.binary(min_size=1, max_size=60), st.integers(32, 40), st.binary(max_size=300))
def test_no_periodic_run_is_missed(before, unit, times, after):
    runs = suspicious_runs(before + unit * times + after)
    start, end = len(before), len(before) + len(unit) * times
    assert any(first <= start and end <= last for first, last in runs)


def test_repetition_span_is_where_it_stands():
    text = "Ünïcödé first.\n" + "again and " * 40 + "\nLast."
    (judgement,) = judge_repetition([text], RULE)
    start, end, times = judgement.attributes["repeats"][0]
    assert times >= 32
    assert text[int(start) : int(end)].strip().startswith("again") or "again and" in text[int(start) : int(end)]
    assert 14 <= start <= 26
    assert "limit 32" in judgement.detail


def test_word_frequency_limits_are_strict():
    exact = "a a a b c d e f g h"
    assert top_fractions(exact) == (0.3, 0.4)
    over = "a a a a b c d e f g"
    two = "a a a b b b c d e f g h".replace(" g h", "")
    judged = judge_word_frequency([exact, over, two, ""], WordFrequencyRule())
    assert [bool(judgement.detail) for judgement in judged] == [False, True, True, False]


def test_length_window_includes_its_ends():
    judged = judge_length(["", "abc", "abcd ", "abcdef"], LengthRule(min_chars=3, max_chars=4))
    assert [bool(judgement.detail) for judgement in judged] == [True, False, False, True]
    with pytest.raises(ValueError, match="max_chars=1 is below min_chars=2"):
        LengthRule(min_chars=2, max_chars=1)


words = st.lists(st.sampled_from(["a", "b", "A,", "(c)", "d-e", "é", "12", "."]), max_size=25).map(" ".join)


def slow_ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    import re

    found = re.findall("[a-z0-9\u0080-\U0010ffff]+", text.lower())
    return [tuple(found[i : i + n]) for i in range(max(len(found) - n + 1, 1 if found else 0))]


@settings(max_examples=200, deadline=None)
@given(st.lists(words, min_size=1, max_size=5), st.integers(1, 9))
def test_ngrams_are_those_of_a_word_by_word_walk(texts, n):
    grams = word_ngrams(texts, n)
    expected = [(index, gram) for index, text in enumerate(texts) for gram in slow_ngrams(text, n)]
    assert grams.text.tolist() == [index for index, _ in expected]
    same = {}
    for place, (_, gram) in enumerate(expected):
        assert same.setdefault(gram, grams.hashes[place]) == grams.hashes[place]
    assert len(set(same.values())) == len(same)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50), st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_ngram_set_finds_members_only(members, asked):
    asked += members[::2]
    found = NGramSet(np.array(members, dtype=np.uint64)).find(np.array(asked, dtype=np.uint64))
    assert found.tolist() == [place for place, value in enumerate(asked) if value in set(members)]
