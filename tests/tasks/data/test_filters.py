"""Oracles: the exact detector on all tokens, golden/repetition_filter.json, a word-by-word n-gram set, hand
counts."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.data.repetition import is_repetitive
from model.tokens.tokenizer import Tokenizer
from tasks.data.filters.attributes import Limit, attribute_rows, bin_counts, broken_limit, edges
from tasks.data.filters.batch import TextBatch
from tasks.data.filters.ngrams import NGramSet, word_ngrams
from tasks.data.filters.statistics.length import LengthRule, score_length
from tasks.data.filters.statistics.repetition import RepetitionRule, RepetitionScorer, score_repetition, suspicious_runs
from tasks.data.filters.statistics.word_frequency import WordFrequencyRule, score_word_frequency
from tests.tasks.data.conftest import refusals

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "repetition_filter.json").read_text())["cases"]
RULE = RepetitionRule(scorer=RepetitionScorer(ranks=1000))
TOKENIZER = Tokenizer(1000)


@pytest.mark.parametrize("case", [case for case in GOLDEN if case["tokens"]], ids=lambda case: case["name"])
def test_verdicts_of_the_golden_cases(case):
    # Ids as single-byte words, so that the tokens of the text repeat exactly where the golden ids do.
    text = " ".join(chr(0x4E00 + token) for token in case["tokens"])
    assert bool(refusals(RULE, [text])[0]) == is_repetitive(TOKENIZER.encode_array(text))


pieces = st.one_of(
    st.text(max_size=30),
    st.tuples(st.text(min_size=1, max_size=12), st.integers(20, 45)).map(lambda part: part[0] * part[1]),
    st.sampled_from(
        ["\n", "\n\n  ", " " * 300, "-" * 200, "0" * 120, "ab\n" * 33, "\n    \n\t" * 33, "日本" * 40, "\u00e9\n" * 34]
    ),
)


@settings(max_examples=300)
@given(st.lists(st.lists(pieces, max_size=6).map("".join), min_size=1, max_size=4))
@example(["x" + "long unit of more than sixteen bytes, " * 32 + "y", "a b c"])
@example(["\n".join(["same line"] * 32)])
def test_searching_bytes_first_changes_no_verdict(texts):
    assert [bool(detail) for detail in refusals(RULE, texts)] == [
        is_repetitive(TOKENIZER.encode_array(text)) for text in texts
    ]


@settings(max_examples=200)
@given(st.binary(max_size=300), st.binary(min_size=1, max_size=60), st.integers(32, 40), st.binary(max_size=300))
def test_no_periodic_run_is_missed(before, unit, times, after):
    runs = suspicious_runs(before + unit * times + after)
    start, end = len(before), len(before) + len(unit) * times
    assert any(first <= start and end <= last for first, last in runs)


def test_repetition_span_is_where_it_stands():
    text = "Ünïcödé first.\n" + "again and " * 40 + "\nLast."
    scores = score_repetition(TextBatch([text]), RULE.scorer)
    start, end, times = scores.spans["repeats"][0][0]
    assert times >= 32
    assert text[start:end].strip().startswith("again") or "again and" in text[start:end]
    assert 14 <= start <= 26
    assert refusals(RULE, [text]) == [f"times is {max(scores.values['times']):g}, at most 31 wanted"]


def test_a_repetition_limit_must_be_recorded():
    assert refusals(RepetitionRule(max_times=50), ["spam " * 40]) == [""]
    with pytest.raises(ValueError, match=r"max_times=20 is below scorer.min_times=32.*lower scorer.min_times to 20"):
        RepetitionRule(max_times=20)
    assert refusals(RepetitionRule(max_times=20, scorer=RepetitionScorer(min_times=20)), ["spam " * 25])[0]


def test_word_frequency_limits_are_strict():
    exact = "a a a b c d e f g h"
    over = "a a a a b c d e f g"
    two = "a a a b b b c d e f g h".replace(" g h", "")
    assert [bool(detail) for detail in refusals(WordFrequencyRule(), [exact, over, two, ""])] == [
        False,
        True,
        True,
        False,
    ]


mixed_words = st.lists(
    st.sampled_from(["a", "b", "cc", "é", "日本", "\u3000", "\x1f", "\n", " ", "𝔘"]), max_size=25
).map(" ".join)


@settings(max_examples=100)
@given(st.lists(mixed_words, max_size=5))
def test_words_are_those_of_split(texts):
    batch = TextBatch(texts)
    joined = "\n".join(texts)
    found = [(int(t), joined[s:e]) for s, e, t in zip(*batch.words, strict=True)]
    assert found == [(index, word) for index, text in enumerate(texts) for word in text.split()]
    assert batch.word_counts.tolist() == [len(text.split()) for text in texts]
    scores = score_word_frequency(batch).values
    for index, text in enumerate(texts):
        counts = [count for _, count in Counter(text.split()).most_common(2)] or [0]
        total = max(1, len(text.split()))
        assert (scores["top"][index], scores["top_two"][index]) == (counts[0] / total, sum(counts) / total)


def test_a_word_has_one_hash_wherever_it_stands():
    words = ["alpha", "beta", "gamma", "δέλτα"] * 10_000
    words[777] = words[20_001] = "x" * 70_000
    batch = TextBatch([" ".join(words)])
    assert len(batch.codes) > 3 * 2**16
    found: dict[str, set[int]] = {}
    for word, number in zip(words, batch.word_hashes.tolist(), strict=True):
        found.setdefault(word, set()).add(number)
    assert all(len(numbers) == 1 for numbers in found.values())
    assert len(set.union(*found.values())) == len(found) == 5


def test_length_window_includes_its_ends():
    details = refusals(LengthRule(min_chars=3, max_chars=4), ["", "abc", "abcd ", "abcdef"])
    assert details == ["chars is 0, 3 to 4 wanted", "", "", "chars is 6, 3 to 4 wanted"]
    assert refusals(LengthRule(min_chars=3, max_chars=None), ["ab", "x" * 99]) == ["chars is 2, at least 3 wanted", ""]
    with pytest.raises(ValueError, match="max_chars=1 is below min_chars=2"):
        LengthRule(min_chars=2, max_chars=1)


def test_attributes_are_dolma_spans_and_limits_include_their_ends():
    (row,) = attribute_rows("tagger", score_length(TextBatch(["abc"])), [3])
    assert row == {"olmo2__tagger__chars": [(0, 3, 3.0)]}
    for value, broken in ((0.3, False), (0.300001, True), (0.1, False), (0.099999, True)):
        assert bool(broken_limit([("x", Limit("x", 0.1, 0.3, "share"))], {"x": [(0, 1, value)]})) == broken


@given(st.lists(st.floats(0, 2e7), max_size=20), st.sampled_from(["share", "probability", "count", "grade"]))
def test_every_score_is_in_one_bin(values, scale):
    counts = bin_counts(values, scale)
    assert counts.sum() == len(values)
    borders = edges(scale)
    assert (np.diff(borders) > 0).all()
    inside = [value for value in values if borders[0] <= value < borders[-1]]
    expected = np.histogram(inside, borders)[0]
    expected[-1] += len(values) - len(inside)
    assert counts.tolist() == expected.tolist()


words = st.lists(st.sampled_from(["a", "b", "A,", "(c)", "d-e", "é", "12", "."]), max_size=25).map(" ".join)


def slow_ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    import re

    found = re.findall("[a-z0-9\u0080-\U0010ffff]+", text.lower())
    return [tuple(found[i : i + n]) for i in range(max(len(found) - n + 1, 1 if found else 0))]


@settings(max_examples=200)
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
