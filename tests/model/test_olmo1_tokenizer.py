"""OLMo 1's tokenizer. Oracles: the published file, the `tokenizers` library and transformers reading it, hand-worked ids."""

import hashlib
import json
import lzma
import pickle
from pathlib import Path

import pytest
import tokenizers

from model.tokens import olmo1
from model.tokens.tokenizer import TOKENIZERS, Tokenizer
from model.tokens.tokenizer_check import check_encodings

TEXTS = [
    "", "The cat sat on the mat; it's 1234567 o'clock, they'LL see.",
    "def f(x):\n        return x ** 2\n\n\n\tif y:\r\n   pass   \n",
    "我喜欢编程。日本語のテキスト", "😀👩‍👩‍👧 emoji cafe\u0301 naïve ½ ٣", "call |||PHONE_NUMBER||| at |||IP_ADDRESS||| now",
    " " * 60 + "x" + " " * 3, "ends here<|endoftext|><|padding|> twice",
]  # fmt: skip
RANKS = [256, 300, 612, 4_096, olmo1.OLMO1_RANKS]


@pytest.fixture(scope="module")
def published() -> tokenizers.Tokenizer:
    data = lzma.decompress(olmo1.OLMO1_VOCABULARY.read_bytes())
    assert hashlib.sha256(data).hexdigest() == olmo1.OLMO1_SHA256
    return tokenizers.Tokenizer.from_str(data.decode())


def test_the_whole_vocabulary_is_the_published_file() -> None:
    data = json.loads(lzma.decompress(olmo1.OLMO1_VOCABULARY.read_bytes()))
    assert olmo1.cut_tokenizer_json(olmo1.OLMO1_RANKS) == data
    tokenizer = Tokenizer(olmo1.OLMO1_RANKS, "olmo-1")
    # The model's embedding has 50,304 rows; eos_token_id is 50279 and pad_token_id 1 in OLMo-7B-hf's config.
    assert (tokenizer.vocab_size, tokenizer.padded_vocab_size) == (50_280, 50_304)
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.control_ids.tolist()) == (50_279, 1, [1, 50_279])


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_published_file(text: str, published: tokenizers.Tokenizer) -> None:
    tokenizer = Tokenizer(olmo1.OLMO1_RANKS, "olmo-1")
    ids = published.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_with_special(text) == ids
    assert tokenizer.decode(ids, skip_special=False) == published.decode(ids, skip_special_tokens=False)
    if "<|" not in text:
        assert tokenizer.encode(text) == ids
        assert tokenizer.encode_array(text).tolist() == ids


@pytest.mark.parametrize("ranks", RANKS)
def test_every_cut_encodes_every_text_and_lets_no_control_token_in(ranks: int) -> None:
    tokenizer = Tokenizer(ranks, "olmo-1")
    assert tokenizer.vocab_size == ranks + 28
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.control_ids.tolist())
        # NFC is the tokenizer's own normaliser; "e" and the combining accent become one letter.
        assert tokenizer.decode(ids) == text.replace("e\u0301", "é")
        assert int(tokenizer.byte_lengths()[ids].sum()) == len(text.replace("e\u0301", "é").encode())
    assert tokenizer.special("|||PHONE_NUMBER|||") in tokenizer.encode(TEXTS[5])
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")


def test_a_shorter_vocabulary_needs_more_tokens() -> None:
    sizes = [len(Tokenizer(ranks, "olmo-1").encode(TEXTS[1])) for ranks in RANKS]
    assert sizes == sorted(sizes, reverse=True)
    # 243 bytes occur in UTF-8 text (not C0, C1, F5 to FF); what comes after them is merged.
    content = olmo1.cut_tokenizer_json(256)["model"]
    assert len(content["merges"]) == 13
    assert sum(len(text) == 1 for text in content["vocab"]) == 243


@pytest.mark.parametrize("ranks", [612, olmo1.OLMO1_RANKS])
def test_a_folder_gives_it_back(tmp_path: Path, ranks: int) -> None:
    tokenizer = Tokenizer(ranks, "olmo-1")
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path) == tokenizer
    check_encodings(tmp_path, tokenizer)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["olmo2_tokenizer"]["name"] = "olmo-3"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"names the tokenizer 'olmo-3'; known are dolma2, olmo-1"):
        Tokenizer.load(tmp_path)


@pytest.mark.parity
def test_transformers_reads_the_folder(tmp_path: Path) -> None:
    import transformers

    tokenizer = Tokenizer(1_024, "olmo-1")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in TEXTS:
        assert theirs(text)["input_ids"] == tokenizer.encode_with_special(text)
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (
        tokenizer.eos_id,
        tokenizer.pad_id,
        tokenizer.vocab_size,
    )


def test_an_altered_file_and_wrong_ranks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    altered = tmp_path / "altered.json.xz"
    altered.write_bytes(lzma.compress(b"{}"))
    monkeypatch.setattr(olmo1, "OLMO1_VOCABULARY", altered)
    with pytest.raises(ValueError, match="holds sha256"):
        olmo1.published.__wrapped__()
    with pytest.raises(ValueError, match=r"ranks=50,253 is not between 256 \(single bytes\) and 50,252"):
        Tokenizer(50_253, "olmo-1")


def test_tokenizers_differ_by_name_and_travel_between_processes() -> None:
    one, other = Tokenizer(612, "olmo-1"), Tokenizer(612)
    assert one != other
    assert pickle.loads(pickle.dumps(one)) == one
    assert (str(one), one.facts) == ("olmo-1 at 612 ranks", {"ranks": 612, "tokenizer": "olmo-1"})
    assert set(TOKENIZERS) == {"dolma2", "olmo-1"}
