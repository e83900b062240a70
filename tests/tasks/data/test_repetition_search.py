"""The search before the repetition detector. Oracles: the tokenizer on uncut text, and runs planted at known places."""

import random
from itertools import pairwise

import pytest

from model.tokens.tokenizer import Tokenizer
from tasks.data.filters.repetition import _CUT, suspicious_runs
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
