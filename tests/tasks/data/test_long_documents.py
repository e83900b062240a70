"""Rules on documents of any length and kind: time that is linear in it, and memory that is bounded.

Oracles: plain Python for what is computed in pieces; for time, that four times the text takes far less than sixteen times the
processor (no clock on the wall, and the best of several tries, so that a busy machine changes nothing).
"""

import random
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rules import KINDS, RULES, make_text
from tasks.data.filters import batch as batch_module
from tasks.data.filters import ngrams
from tasks.data.filters.batch import TextBatch, cut_to, lines_of
from tasks.data.filters.statistics import gopher_repetition
from tasks.data.filters.statistics.gopher_repetition import GopherRepetitionScorer, score_gopher_repetition
from tests.tasks.data.test_more_filters import slow_repetition

SHORT = 60_000
"""Characters of the shorter text."""


def seconds(rule: str, text: str) -> float:
    """Of the processor, the best of three."""
    found = []
    for _ in range(3):
        batch = TextBatch([text])
        start = time.process_time()
        RULES[rule](batch)
        found.append(time.process_time() - start)
    return min(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", list(RULES))
def test_time_is_linear_in_the_length(rule: str, kind: str):
    """What is done once in a process is done before: patterns, tables, the tokenizer."""
    short, long = make_text(kind, SHORT), make_text(kind, 4 * SHORT)
    RULES[rule](TextBatch([short]))
    assert seconds(rule, long) < 8 * seconds(rule, short) + 0.05


@pytest.mark.parametrize("kind", ["runs", "one_word", "letters", "addresses"])
@pytest.mark.parametrize("rule", ["repetition", "gopher_repetition", "word_frequency"])
def test_memory_is_fifteen_bytes_a_character_at_most(rule: str, kind: str):
    """300 MB for 20 MB, as far as Python and NumPy hold it. The benchmark measures the process."""
    text = make_text(kind, 2_000_000)
    RULES[rule](TextBatch([text[:100_000]]))
    tracemalloc.start()
    RULES[rule](TextBatch([text]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Pieces have a size of their own, which a text of 20 MB hides.
    assert peak < 15 * len(text) + 70_000_000


@given(st.text(alphabet="ab \r\n\x0b\x85\u2028", max_size=200), st.integers(1, 20))
def test_lines_are_those_of_splitlines(text: str, at_once: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "_LINES_AT_ONCE", at_once)
        assert list(lines_of(text)) == text.splitlines()


@given(
    st.lists(st.text(alphabet="ab \n\u3000", max_size=80), min_size=1, max_size=3), st.integers(1, 9), st.integers(1, 9)
)
def test_texts_are_cut_after_so_many_words_and_lines(texts: list[str], words: int, lines: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_module, "_PIECE", 7)
        cut = cut_to(TextBatch(texts), words, lines).texts
    for text, found in zip(texts, cut, strict=True):
        assert text.startswith(found)
        assert found.split() == text.split()[: len(found.split())]
        assert len(found.split()) <= max(words, 0) or len(text) < 2 * words
        assert found.count("\n") <= lines
        if len(text.split()) <= words and text.count("\n") <= lines:
            assert found == text


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_a_long_word_has_one_hash_wherever_it_stands(monkeypatch, dtype):
    monkeypatch.setattr(ngrams, "_PIECE_CODES", 64)
    chance = np.random.default_rng(1)
    word, other = chance.integers(97, 120, 500), chance.integers(97, 120, 500)
    codes = np.concatenate([[98, 32], word, [32, 99, 32], other, [32], word, [32, 98]]).astype(dtype)
    spaces = np.flatnonzero(codes == 32)
    starts, ends = np.concatenate([[0], spaces + 1]), np.concatenate([spaces, [len(codes)]])
    hashes = ngrams.span_hashes(codes, starts, ends).tolist()
    assert len(hashes) == 6
    assert hashes[1] == hashes[4] and hashes[0] == hashes[5]
    assert len(set(hashes)) == 4
    assert hashes[1] == ngrams.span_hashes(word.astype(np.uint32), np.array([0]), np.array([500])).tolist()[0]


@pytest.mark.parametrize("words", [["a"], ["a", "b"], ["a", "b", "c", "a", "b", "d"], [f"w{n}" for n in range(40)]])
def test_frequent_ngrams_in_pieces_are_those_of_a_walk(monkeypatch, words: list[str]):
    """One n-gram that is all of a text, or a third of it, and many that are rare."""
    monkeypatch.setattr(gopher_repetition, "_PIECE_NGRAMS", 50)
    monkeypatch.setattr(gopher_repetition, "_SAMPLE", 64)
    monkeypatch.setattr(gopher_repetition, "_MANY", 4)
    chance = random.Random(4)
    text = " ".join(words * (300 // len(words)) + chance.choices(words, k=100))
    scorer = GopherRepetitionScorer()
    found = {name: own[0] for name, own in score_gopher_repetition(TextBatch([text]), scorer).values.items()}
    assert found == pytest.approx(slow_repetition(text, scorer))
