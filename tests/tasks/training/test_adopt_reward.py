"""Adopting a reward model. Oracles: transformers' own scores of the folder, the folder's bytes, PPO's value model from there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.inspection.artifacts import export_checkpoint
from infra.records.artifact import Artifact
from infra.records.reader import Reader
from model.data.chat_batches import LabelledRow
from model.files.weights import load_hf
from model.parallel.group import Group
from model.training.reference_scores import row_scores, row_values
from tasks.artifacts import RewardModel
from tasks.training.adopt import adopt_checkpoint
from tasks.training.adopt_reward import adopt_reward_model
from tasks.training.fitting.model_folder import AdoptConfig
from tasks.training.fitting.reward_head import HEAD_FILE, open_reward_model
from tasks.training.ppo import PPOConfig, train_ppo
from tasks.training.reward import RewardConfig, train_reward
from tests.tasks.training.conftest import RANKS, TINY, TOKENIZER, Bench

ROWS = [[300, 5, 17, 200, 41], [300, 9], list(range(60, 90)), [300, 7, 7, 7, 7, 8, 9, 10]]


def theirs(folder: Path, **changes):
    """A random reward model saved by transformers, in the layout of allenai/OLMo-2-1124-7B-RM: without padding rows."""
    from transformers import Olmo2Config, Olmo2ForSequenceClassification

    torch.manual_seed(3)
    config = Olmo2Config(
        vocab_size=TOKENIZER.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=TOKENIZER.pad_id, eos_token_id=TOKENIZER.eos_id,
        rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, **{"num_labels": 1} | changes,
    )  # fmt: skip
    model = Olmo2ForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    TOKENIZER.save(folder)
    return model


def adopted(bench: Bench, folder: Path) -> RewardModel:
    return bench.run(adopt_reward_model, "adopt_reward", config=AdoptConfig(source=str(folder)).pinned())


def exported(bench: Bench, made: Artifact, folder: Path) -> Path:
    export_checkpoint(bench.session.store, made.id, folder)
    return folder


def files_of(bench: Bench, made: Artifact) -> list[str]:
    return list(Reader(bench.session.store).files(made))


def opened(bench: Bench, judge: RewardModel):
    """The reward model with its weights, as PPO's value model is filled."""
    model, weights, tokenizer = open_reward_model(Reader(bench.session.store), judge)  # type: ignore[arg-type]
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights(name, parameter.shape, 0, len(parameter)))
    return model, tokenizer


@pytest.mark.parity
def test_scores_are_those_of_transformers(bench: Bench, tmp_path: Path):
    reference = theirs(tmp_path / "rm")
    judge = adopted(bench, tmp_path / "rm")
    model, tokenizer = opened(bench, judge)
    assert (judge.ranks, judge.pairs_held_out, judge.parent) == (RANKS, 0, "")
    assert judge.parameters == sum(value.numel() for value in reference.parameters())
    rows = [LabelledRow(np.array(ids), np.full(len(ids), -100)) for ids in ROWS]
    asked = {"pad_id": tokenizer.pad_id, "pass_tokens": 64, "precision": "fp32", "group": Group()}
    found = row_scores(model, rows, **asked)
    places = row_values(model, rows, **asked)
    for ids, score, values in zip(ROWS, found, places, strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([ids])).logits
            every = reference.score(reference.model(torch.tensor([ids])).last_hidden_state)[0, :, 0]
        assert logits.shape == (1, 1)
        assert float(score) == pytest.approx(float(logits), abs=1e-5)
        torch.testing.assert_close(torch.tensor(values), every, atol=1e-5, rtol=1e-4)


@pytest.mark.parity
def test_files_are_kept_byte_for_byte_and_ppo_begins_from_them(bench: Bench, tmp_path: Path):
    """The embedding has fewer rows than the policy's, as the released reward model's has."""
    theirs(tmp_path / "rm")
    judge = adopted(bench, tmp_path / "rm")
    for name in files_of(bench, judge):
        assert bench.read(judge, name) == (tmp_path / "rm" / name).read_bytes()
    config = PPOConfig(
        episodes=4, prompts_per_rollout=4, mini_batches=1, max_new_tokens=4, precision="fp32", whiten_batch=2
    )
    policy = bench.base(1)
    made = bench.run(train_ppo, "ppo", policy=policy, judge=judge, prompts=bench.prompts(4), config=config)
    assert (made.parent, made.ranks) == (policy.digest, RANKS)


@pytest.mark.parity
def test_what_is_no_reward_model_is_refused(bench: Bench, tmp_path: Path):
    theirs(tmp_path / "two", num_labels=2)
    with pytest.raises(ValueError, match=r"score\.weight has shape \(2, 32\), the config says \(1, 32\)"):
        adopted(bench, tmp_path / "two")
    theirs(tmp_path / "rm")
    config = AdoptConfig(source=str(tmp_path / "rm")).pinned()
    with pytest.raises(ValueError, match=r"Olmo2ForSequenceClassification, a reward model .*adopt it as reward"):
        bench.run(adopt_checkpoint, "adopt", config=config)
    weights = tmp_path / "rm" / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"score.weight": tensors["score.weight"] * float("nan")}, weights)
    with pytest.raises(ValueError, match=r"not finite in head\.weight"):
        adopted(bench, tmp_path / "rm")
    save_file({key: value for key, value in tensors.items() if key != "score.weight"}, weights)
    with pytest.raises(ValueError, match=r"lacks tensors \['score\.weight'\]"):
        adopted(bench, tmp_path / "rm")
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ValueError, match=r"lacks weight files .*refs/pr/1"):
        adopted(bench, tmp_path / "rm")


def test_a_language_model_is_no_reward_model(bench: Bench, tmp_path: Path):
    folder = exported(bench, bench.base(1), tmp_path / "policy")
    with pytest.raises(ValueError, match=r"is no reward model: .*give an Olmo2ForSequenceClassification folder"):
        adopted(bench, folder)


def test_what_was_made_and_exported_here_is_adopted_again(bench: Bench, tmp_path: Path):
    how = RewardConfig(batch_size=2, held_out=0.5, precision="fp32")
    own = bench.run(train_reward, "reward", parent=bench.base(2), pairs=bench.preferences(6), config=how)
    folder = exported(bench, own, tmp_path / "exported")
    judge = adopted(bench, folder)
    first, second = opened(bench, own)[0], opened(bench, judge)[0]
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    head = load_file(folder / HEAD_FILE)["score.weight"]
    save_file({"score.weight": head[:, :8].contiguous()}, folder / HEAD_FILE)
    with pytest.raises(ValueError, match=r"has shape \(1, 8\), not \(1, 32\)"):
        adopted(bench, folder)
    assert load_hf(folder)[1].d_model == TINY.d_model
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Olmo2ForCausalLM"]
