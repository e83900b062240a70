"""The search before the repetition detector. Oracles: the tokenizer on uncut text, and runs planted at known places."""

import random
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokens.tokenizer import Tokenizer
from tasks.data.filters.batch import TextBatch
from tasks.data.filters.statistics.gopher_repetition import GopherRepetitionScorer, score_gopher_repetition
from tasks.data.filters.statistics.repetition import _CUT, Characters, _extent, suspicious_runs
from tests.parity.mixed_text import mixed_texts


def test_a_token_begins_at_every_cut():
    """Text of every kind: white space in runs, scripts, markers, control characters."""
    tokenizer = Tokenizer()
    cuts = 0
    for text in mixed_texts(0.3):
        data = text.encode()
        places = [0, *(found.start() + 1 for found in _CUT.finditer(data)), len(data)]
        parts = [data[a:b].decode() for a, b in pairwise(places)]
        assert [id for part in parts for id in tokenizer.encode(part)] == tokenizer.encode(text)
        cuts += len(parts) - 1
    assert cuts > 1_000


@pytest.mark.parametrize("period", [1, 2, 7, 16, 17, 18, 67, 68, 69, 271, 272, 500, 1088, 1664])
def test_a_run_of_any_period_is_found_wherever_it_begins(period: int):
    """Exactly 32 periods, in random bytes without any run."""
    chance = random.Random(period)
    unit = bytes(chance.choices(range(97, 123), k=period - 1)) + b"."
    for offset in (0, 1, 511, 5_000 + chance.randrange(5_000)):
        before = bytes(chance.choices(range(128, 256), k=offset))
        data = before + unit * 32 + bytes(chance.choices(range(128, 256), k=3_000))
        assert any(start <= offset and end >= offset + 32 * period for start, end in suspicious_runs(data)), offset


class Watched:
    """An array that counts the elements it hands out."""

    def __init__(self, array: np.ndarray):
        self.array, self.read = array, 0

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, part: slice) -> np.ndarray:
        found = self.array[part]
        self.read += len(found)
        return found


@pytest.mark.parametrize("around", [10_000, 1_000_000])
def test_the_extent_of_a_run_costs_its_length_wherever_it_stands(around: int):
    """A document with many runs is searched in linear time: none reads the rest of the text."""
    noise = np.random.default_rng(1).integers(128, 256, around, dtype=np.uint8)
    unit = np.arange(40, 110, dtype=np.uint8)
    array = Watched(np.concatenate([noise, np.tile(unit, 50), noise]))
    assert _extent(array, around + 700, 70) == (around, around + 3_500)
    assert array.read < 10 * 3_500


@given(st.text(alphabet="aé漢😀\n", max_size=3000), st.data())
@settings(max_examples=40)
def test_characters_are_counted_as_decoding_does(text: str, data: st.DataObject):
    encoded = text.encode()
    end = data.draw(st.integers(0, len(encoded)))
    assert Characters(encoded).before(end) == len(encoded[:end].decode(errors="ignore"))


def test_long_documents_are_measured_like_short_ones(monkeypatch):
    """In pieces the n-gram rules find what they find at once, and take little memory."""
    text = " ".join(random.Random(2).choices([f"w{number}" for number in range(300)], k=20_000)) + " é"
    whole = score_gopher_repetition(TextBatch([text, "a b a b"]), GopherRepetitionScorer())
    monkeypatch.setattr("tasks.data.filters.statistics.gopher_repetition._PIECE_NGRAMS", 1_000)
    monkeypatch.setattr("tasks.data.filters.batch._PIECE", 777)
    assert score_gopher_repetition(TextBatch([text, "a b a b"]), GopherRepetitionScorer()) == whole
    alone = score_gopher_repetition(TextBatch([text]), GopherRepetitionScorer())
    assert {name: found[0] for name, found in whole.values.items()} == {name: v[0] for name, v in alone.values.items()}


def test_memory_of_a_long_document_is_bounded():
    """15 bytes a character at most: 300 MB for 20 MB."""
    chance = random.Random(3)
    words = ["".join(chance.choices("abcdefgh", k=6)) for _ in range(20_000)]
    text = " ".join(chance.choices(words, k=1_000_000))
    tracemalloc.start()
    score_gopher_repetition(TextBatch([text]), GopherRepetitionScorer())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15 * len(text)
