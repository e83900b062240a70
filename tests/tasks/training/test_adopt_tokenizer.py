"""Adopting folders whose tokenizer or vocabulary is not quite OLMo 2's. Oracle: tokenizers, which shows the other ids."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from model.config import ModelConfig
from model.decoding.generate import Sampling, generate
from model.files.weights import load_hf, save_hf
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from model.tokens.tokenizer_check import SAMPLES, check_encodings
from tasks.artifacts import Checkpoint
from tasks.training.adopt import adopt_checkpoint
from tasks.training.fitting.model_folder import AdoptConfig
from tasks.training.sft import SFTConfig, train_sft
from tests.tasks.training.conftest import RANKS, TINY, TOKENIZER, Bench

Change = Callable[[dict[str, Any]], Any]


def folder_of(root: Path, shape: ModelConfig = TINY) -> Path:
    save_hf(Transformer(shape, seed=5), shape, TOKENIZER, root / "elsewhere")
    return root / "elsewhere"


def adopted(bench: Bench, folder: Path) -> Checkpoint:
    return bench.run(adopt_checkpoint, "adopt", config=AdoptConfig(source=str(folder)).pinned())


def changed(folder: Path, change: Change) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def split(data: dict[str, Any]) -> dict[str, Any]:
    return data["pre_tokenizer"]["pretokenizers"][0]


def byte_level(data: dict[str, Any]) -> dict[str, Any]:
    return data["pre_tokenizer"]["pretokenizers"][1]


def gpt2(data: dict[str, Any]) -> None:
    data["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def other_merges(data: dict[str, Any]) -> None:
    data["model"]["merges"][:20] = data["model"]["merges"][:20][::-1]


def greedy_added(data: dict[str, Any]) -> None:
    for token in data["added_tokens"]:
        token["rstrip"] = token["lstrip"] = True


def starting_with_eos(data: dict[str, Any]) -> None:
    one = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [one, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [one, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [RANKS + 1], "tokens": ["<|endoftext|>"]}},
    }


ENCODING: dict[str, Change] = {
    "gpt2": gpt2,
    "none": lambda data: data["pre_tokenizer"]["pretokenizers"].pop(0),
    "whitespace in one piece": lambda data: split(data)["pattern"].update(
        Regex=split(data)["pattern"]["Regex"].replace(r"|\s+(?!\S)", "")
    ),
    "prefix space": lambda data: byte_level(data).update(add_prefix_space=True),
    "second split": lambda data: byte_level(data).update(use_regex=True),
    "nfc": lambda data: data.update(normalizer={"type": "NFC"}),
    "nfkc": lambda data: data.update(normalizer={"type": "NFKC"}),
    "lower case": lambda data: data.update(normalizer={"type": "Lowercase"}),
    "strip": lambda data: data.update(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
    "other merges": other_merges,
    "added tokens take spaces": greedy_added,
    "an added token in front": starting_with_eos,
}


SPLITTING: dict[str, Change] = {
    "digits one by one": lambda data: split(data)["pattern"].update(
        Regex=split(data)["pattern"]["Regex"].replace("{1,3}", "")
    ),
    "contractions in lower case only": lambda data: split(data)["pattern"].update(
        Regex=split(data)["pattern"]["Regex"].replace("(?i:", "(?:")
    ),
}
"""Splits that change no id of the samples in the shortest vocabularies, which have no token across their cuts."""


@pytest.mark.parametrize("change", ENCODING.values(), ids=ENCODING.keys())
def test_the_same_vocabulary_with_other_ids_is_refused(bench: Bench, tmp_path: Path, change: Change):
    folder = folder_of(tmp_path)
    changed(folder, change)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    differing = sum(theirs.encode(text).ids != TOKENIZER.encode_with_special(text) for text in SAMPLES)
    assert differing
    with pytest.raises(ValueError, match=rf"{differing} of {len(SAMPLES)} sample texts and .* encode differently"):
        adopted(bench, folder)


@pytest.mark.parametrize("change", SPLITTING.values(), ids=SPLITTING.keys())
def test_another_split_is_refused_in_a_vocabulary_too_short_to_show_it(bench: Bench, tmp_path: Path, change: Change):
    folder = folder_of(tmp_path)
    changed(folder, change)
    with pytest.raises(ValueError, match=r"sample texts and .* split differently"):
        adopted(bench, folder)
    Tokenizer(4_096).save(tmp_path / "longer")
    changed(tmp_path / "longer", change)
    with pytest.raises(ValueError, match=r"sample texts and .* encode differently"):
        check_encodings(tmp_path / "longer", Tokenizer(4_096))


def test_another_decoder_is_refused(bench: Bench, tmp_path: Path):
    folder = folder_of(tmp_path)
    changed(folder, lambda data: data.update(decoder=None))
    with pytest.raises(ValueError, match="decode differently"):
        adopted(bench, folder)


def test_dropout_and_what_is_no_tokenizer_are_refused(bench: Bench, tmp_path: Path):
    folder = folder_of(tmp_path)
    changed(folder, lambda data: data["model"].update(dropout=1e-9))
    with pytest.raises(ValueError, match=r"has dropout .* set it to null"):
        adopted(bench, folder)
    changed(folder, lambda data: data.update(pre_tokenizer={"type": "Unheard"}))
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer that can be read"):
        adopted(bench, folder)


def test_what_changes_no_id_is_no_hindrance(bench: Bench, tmp_path: Path):
    """Another notation of the merges, and settings that the last program left there."""
    folder = folder_of(tmp_path)

    def rewritten(data: dict[str, Any]) -> None:
        data["model"]["merges"] = [pair.split(" ") for pair in data["model"]["merges"]]
        data["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        data["post_processor"] = {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        }

    changed(folder, rewritten)
    assert adopted(bench, folder).ranks == RANKS


def test_the_whole_vocabulary_passes(tmp_path: Path):
    Tokenizer().save(tmp_path)
    check_encodings(tmp_path, Tokenizer())


@pytest.mark.parametrize("rows", [1_000, TINY.vocab_size + 128, TOKENIZER.vocab_size - 1])
def test_rows_without_ids_and_ids_without_rows_are_refused(bench: Bench, tmp_path: Path, rows: int):
    folder = folder_of(tmp_path, TINY.model_copy(update={"vocab_size": rows}))
    with pytest.raises(
        ValueError, match=rf"has vocab_size {rows:,}, but its tokenizer has 342 ids, padded to 384 rows"
    ):
        adopted(bench, folder)


def test_rows_that_are_not_padded_are_kept_said_so_and_trained(bench: Bench, tmp_path: Path):
    shape = TINY.model_copy(update={"vocab_size": TOKENIZER.vocab_size})
    base = adopted(bench, folder_of(tmp_path, shape))
    assert any("has vocab_size 342, not padded to 384" in str(event) for event in bench.events)
    config = SFTConfig(batch_size=4, epochs=1, max_tokens=64, precision="fp32")
    tuned = bench.run(train_sft, "sft", parent=base, chats=bench.chats(8), config=config)
    model, trained = load_hf(Path(bench.session.store.full(tuned.address)), ranks=RANKS)
    assert trained.vocab_size == 342
    (answer,) = generate(model, TOKENIZER, [[5, 6]], Sampling(max_new_tokens=4, temperature=1.0))
    assert len(answer.ids) > 0
