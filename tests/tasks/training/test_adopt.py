"""Adopting a Hugging Face folder. Oracles: the folder's bytes, a folder saved by transformers, the real trainer from there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.files.weights import load_hf, save_hf
from model.network.transformer import Transformer
from tasks.artifacts import Mix
from tasks.data.collect import collect
from tasks.data.encode import EncodeConfig, encode_documents
from tasks.data.mix import MixConfig, mix_tokens
from tasks.data.sources.local import LocalSource
from tasks.training.adopt import adopt_checkpoint
from tasks.training.anneal import AnnealConfig, anneal_checkpoint
from tasks.training.fitting.model_folder import AdoptConfig
from tasks.training.sft import SFTConfig, train_sft
from tests.tasks.training.conftest import RANKS, TINY, TOKENIZER, Bench


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny checkpoint as another project might have left it: sharded, with files of a training run next to it."""
    made = tmp_path / "elsewhere"
    save_hf(Transformer(TINY, seed=5), TINY, TOKENIZER, made, max_shard_bytes=20_000)
    (made / "optimizer.safetensors").write_bytes(b"moments")
    (made / "README.md").write_text("a model")
    return made


def adopted(bench: Bench, folder: Path):
    return bench.outcome(adopt_checkpoint, "adopt", config=AdoptConfig(source=str(folder)).pinned())


def tiny_mix(bench: Bench, root: Path) -> Mix:
    rows = "".join(json.dumps({"id": str(i), "text": f"{i} and {i} is {2 * i}"}) + "\n" for i in range(60))
    (root / "text.jsonl").write_text(rows)
    source = LocalSource(name="web", paths=(str(root / "text.jsonl"),)).pinned()
    documents = bench.run(collect.function, "collect", config=source)
    tokens = bench.run(encode_documents, "encode", documents=documents, config=EncodeConfig(ranks=RANKS))
    return bench.run(mix_tokens, "mix", sources=[tokens], config=MixConfig())


def test_files_are_kept_byte_for_byte_without_moments(bench: Bench, folder: Path):
    outcome = adopted(bench, folder)
    made, record = outcome.artifact, outcome.record
    assert not {"optimizer.safetensors", "README.md"} & set(record.files)
    assert {"config.json", "tokenizer.json", "olmo2.json", "model.safetensors.index.json"} <= set(record.files)
    for name in record.files:
        assert bench.read(made, name) == (folder / name).read_bytes()
    assert (made.parameters, made.ranks, made.parent, made.tokens) == (TINY.parameters, RANKS, "", 0)
    hashes = {file["name"]: file["sha256"] for file in record.config["files"]}
    assert hashes == {name: entry.sha256 for name, entry in record.files.items()}
    assert record.config["source"] == str(folder)


def test_the_same_content_elsewhere_has_the_same_digest_and_changed_content_another(bench: Bench, folder: Path):
    first = adopted(bench, folder)
    assert adopted(bench, folder).reused
    moved = folder.rename(folder.with_name("moved"))
    second = adopted(bench, moved)
    assert second.record.id != first.record.id
    assert second.artifact.digest == first.artifact.digest
    weights = next(moved.glob("model-*.safetensors"))
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    assert adopted(bench, moved).artifact.digest != first.artifact.digest


def test_sft_starts_from_it(bench: Bench, folder: Path):
    base = adopted(bench, folder).artifact
    config = SFTConfig(batch_size=4, epochs=1, max_tokens=64, precision="fp32", learning_rate=1e-2)
    tuned = bench.run(train_sft, "sft", parent=base, chats=bench.chats(12), config=config)
    assert tuned.parent == base.digest
    before = load_hf(folder)[0].state_dict()
    after = load_hf(Path(bench.session.store.full(tuned.address)))[0].state_dict()
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_anneal_starts_from_it_with_fresh_moments_only(bench: Bench, folder: Path, tmp_path: Path):
    base = adopted(bench, folder).artifact
    mix = tiny_mix(bench, tmp_path)
    small = {"sequence_length": 32, "batch_size": 2, "steps": 3, "log_every": 1}
    with pytest.raises(ValueError, match="no Adam moments"):
        bench.run(anneal_checkpoint, "anneal", parent=base, mix=mix, config=AnnealConfig(**small))
    config = AnnealConfig(**small, moments="fresh")
    annealed = bench.run(anneal_checkpoint, "anneal", parent=base, mix=mix, config=config)
    assert (annealed.parent, annealed.steps) == (base.digest, 3)


@pytest.mark.parity
def test_a_folder_saved_by_transformers_is_adopted(bench: Bench, tmp_path: Path):
    from transformers import Olmo2Config, Olmo2ForCausalLM

    config = Olmo2Config(
        vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )  # fmt: skip
    folder = tmp_path / "theirs"
    theirs = Olmo2ForCausalLM(config).to(torch.bfloat16)
    theirs.save_pretrained(folder)
    TOKENIZER.save(folder)
    made = adopted(bench, folder).artifact
    assert made.ranks == RANKS
    assert made.parameters == sum(parameter.numel() for parameter in theirs.parameters())


def test_a_hub_id_is_pinned_to_the_snapshot_of_its_commit(
    bench: Bench, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The hub itself is out of reach here; its client's cache is laid out as the client lays it out."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--someone--model"
    (cached / "snapshots").mkdir(parents=True)
    folder.rename(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = AdoptConfig(source="someone/model").pinned()
    assert config.revision == commit
    made = bench.outcome(adopt_checkpoint, "adopt", config=config)
    assert made.record.config["revision"] == commit
    assert "optimizer.safetensors" not in made.record.files
    with pytest.raises(ValueError, match="'someone/other' is neither a local folder nor a model"):
        AdoptConfig(source="someone/other").pinned()


def test_what_is_no_olmo2_checkpoint_is_refused_by_name(bench: Bench, folder: Path, tmp_path: Path):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        adopted(bench, folder)
    (folder / "config.json").write_text(json.dumps(settings))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"].pop("lm_head.weight")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = {path: load_file(path) for path in folder.glob("model-*.safetensors")}
    for path, tensors in weights.items():
        if tensors.pop("lm_head.weight", None) is not None:
            save_file(tensors, path, metadata={"format": "pt"}) if tensors else path.unlink()
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        adopted(bench, folder)
    with pytest.raises(ValueError, match=r"no config\.json"):
        AdoptConfig(source=str(tmp_path)).pinned()
    with pytest.raises(ValueError, match="is for hub ids"):
        AdoptConfig(source=str(folder), revision="main").pinned()


def test_a_foreign_vocabulary_is_refused(bench: Bench, folder: Path):
    data = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="is not the vocabulary that it should be at 320 ranks: 2 tokens differ"):
        adopted(bench, folder)


def test_weights_that_are_not_finite_are_refused(bench: Bench, folder: Path):
    path = next(path for path in folder.glob("model-*.safetensors") if "lm_head.weight" in load_file(path))
    tensors = load_file(path)
    tensors["lm_head.weight"][0, 0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not finite in head\.weight"):
        adopted(bench, folder)


def test_a_folder_that_changes_meanwhile_is_refused(bench: Bench, folder: Path):
    config = AdoptConfig(source=str(folder)).pinned()
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(ValueError, match="changed while it was adopted"):
        bench.outcome(adopt_checkpoint, "adopt", config=config)
