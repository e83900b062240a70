"""Adopting a permanent save point. Oracle: the payload of the same training ended at that step; the later stages themselves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
import xxhash
from safetensors.torch import load_file

from infra.records.save_points import HASH
from infra.storage.store import Store, StoreError
from infra.workspace import Workspace
from model.files.weights import load_hf
from model.network.sharded_tensors import rows_of_shard
from model.training.configs import OptimConfig
from model.training.state_files import FILES, file_name, write_tensors
from tasks.artifacts import Checkpoint, Mix, Tokens
from tasks.data.mix import MixConfig, mix_tokens
from tasks.training.adopt_step import adopt_save_point, pin_step
from tasks.training.anneal import AnnealConfig, anneal_checkpoint
from tasks.training.ppo import PPOConfig, train_ppo
from tasks.training.pretrain import PretrainConfig, train_base
from tasks.training.reward import RewardConfig, train_reward
from tasks.training.sft import SFTConfig, train_sft
from tests.tasks.training.conftest import RANKS, TINY, Bench, Seed

WINDOWS = {"sequence_length": 32, "batch_size": 2, "log_every": 1, "optim": OptimConfig(precision="fp32")}
KEPT = {"save_every": 2, "keep_every": 4}


def pretraining(steps: int) -> PretrainConfig:
    """Its schedule does not depend on the number of steps."""
    return PretrainConfig(model=TINY, steps=steps, **WINDOWS)


def write_tokens(ws: Workspace, config: Seed) -> Tokens:
    ids = torch.randint(0, 300, (30 * 32,), generator=torch.Generator().manual_seed(config.seed)).numpy().astype("<u4")
    ws.write("tokens/0.npy", ids.tobytes())
    return ws.artifact(
        Tokens, source="web", tokens=ids.size, documents=1, ranks=RANKS, files={"tokens/0.npy": ids.size}
    )


def mix_in(bench: Bench) -> Mix:
    tokens = bench.run(write_tokens, config=Seed())
    return bench.run(mix_tokens, "mix", sources=[tokens], config=MixConfig())


def adopted(bench: Bench, id: str, step: int) -> Any:
    config = pin_step(bench.session.store, id, step)
    return bench.outcome(adopt_save_point, "adopt_step", config=config)


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench("kept", **KEPT)


def id_of(store: Store, stage: str) -> str:
    (id,) = store.names(f"_progress/{stage}")
    return id


def pretrained(bench: Bench) -> str:
    """The id of a finished pre-training with a save point of step 4."""
    return bench.outcome(train_base, "pretrain", mix=mix_in(bench), config=pretraining(6)).record.id


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "killed"])
def test_it_is_what_the_training_would_have_made_had_it_ended_there(
    finished: bool, bench: Bench, make_bench: Callable[..., Bench], killed: Callable[[int], None]
) -> None:
    mix = mix_in(bench)
    if finished:
        bench.run(train_base, "pretrain", mix=mix, config=pretraining(6))
    else:
        killed(4)
        with pytest.raises(KeyboardInterrupt):
            bench.run(train_base, "pretrain", mix=mix, config=pretraining(6))
    other = make_bench("ended")
    ended = other.outcome(train_base, "pretrain", mix=mix_in(other), config=pretraining(4))
    id = id_of(bench.session.store, "pretrain")
    outcome = adopted(bench, id[:6], 4)
    assert outcome.record.files == ended.record.files
    assert {"config.json", "tokenizer.json", "optimizer.safetensors", "metrics.jsonl"} <= outcome.record.files.keys()
    assert outcome.artifact.facts() == ended.artifact.facts()
    said = outcome.record.config
    assert (said["stage"], said["id"], said["generation"], said["step"]) == ("pretrain", id, 1, 4)
    assert adopted(bench, id, 4).reused


def test_shards_are_put_together(bench: Bench) -> None:
    id = pretrained(bench)
    store = bench.session.store
    whole = adopted(bench, id, 4)
    folder = f"_progress/pretrain/{id}/g0001/kept/0000000004"
    into_shards(store, folder, 3)
    parts = adopted(bench, id, 4)
    assert parts.record.id != whole.record.id
    assert parts.artifact.digest == whole.artifact.digest


def into_shards(store: Store, folder: str, shards: int) -> None:
    """The same save point as that many processes would have written it: every tensor cut by rows."""
    with store.staging("_progress") as made:
        for kind in FILES:
            tensors = load_file(store.full(f"{folder}/{kind}.safetensors"))
            for shard in range(shards):
                cut = {
                    name: value if kind == "counters" else value[slice(*rows_of_shard(len(value), shard, shards))]
                    for name, value in tensors.items()
                }
                write_tensors(made / file_name(kind, shard, shards), {k: v.contiguous() for k, v in cut.items()})
            store.remove(f"{folder}/{kind}.safetensors")
        state = store.read_json(f"{folder}/state.json")
        store.write(f"{folder}/state.json", json.dumps(state | {"shards": shards}).encode())
        for path in sorted(made.iterdir()):
            store.move(path, f"{folder}/{path.name}")
    marker = {}
    for path in store.walk(folder):
        data = store.read(path)
        marker[path.rsplit("/", 1)[-1]] = {"size": len(data), HASH: xxhash.xxh3_128_hexdigest(data)}
    area, step = folder.rsplit("/", 1)
    store.write(f"{area}/point-{step}.json", orjson.dumps(marker))


def test_an_anneal_goes_on_from_it_with_its_moments(bench: Bench) -> None:
    base: Checkpoint = adopted(bench, pretrained(bench), 4).artifact
    config = AnnealConfig(steps=2, **WINDOWS)
    assert config.moments == "kept"
    annealed = bench.run(anneal_checkpoint, "anneal", parent=base, mix=mix_in(bench), config=config)
    assert (annealed.parent, annealed.steps) == (base.digest, 2)


def test_one_of_post_training_has_the_shape_of_its_parent_and_begins_with_eos(bench: Bench) -> None:
    base = bench.base()
    config = SFTConfig(batch_size=2, epochs=1, max_tokens=64, precision="fp32", learning_rate=1e-2)
    tuned = bench.outcome(train_sft, "sft", parent=base, chats=bench.chats(12), config=config)
    half = adopted(bench, tuned.record.id, 4).artifact
    assert (half.parent, half.ranks, half.steps) == (base.digest, RANKS, 4)
    for name in ("config.json", "olmo2.json", "generation_config.json", "tokenizer.json"):
        assert bench.read(half, name) == bench.read(tuned.artifact, name)
    assert half.digest != tuned.artifact.digest


def test_of_a_policy_with_a_value_model_the_policy_is_taken(bench: Bench) -> None:
    base = bench.base()
    rewarding = RewardConfig(batch_size=4, max_tokens=64, precision="fp32")
    judge = bench.run(train_reward, parent=base, pairs=bench.preferences(), config=rewarding)
    config = PPOConfig(
        learning_rate=1e-3, episodes=12, prompts_per_rollout=4, epochs=2, whiten_batch=2, max_prompt_tokens=64,
        max_new_tokens=8, precision="fp32",
    )  # fmt: skip
    made = bench.outcome(train_ppo, "ppo", policy=base, judge=judge, prompts=bench.prompts(6), config=config)
    half = adopted(bench, made.record.id, 4).artifact
    store = bench.session.store
    saved = load_file(store.full(f"_progress/ppo/{made.record.id}/g0001/kept/0000000004/weights.safetensors"))
    folder = Path(store.full(half.address))
    assert all(torch.equal(value, saved[f"policy.{name}"]) for name, value in load_hf(folder)[0].named_parameters())
    moments = load_file(folder / "optimizer.safetensors")
    assert len(moments) == 3 * sum(name.startswith("policy.") for name in saved)
    assert half.parent == base.digest
    # Rows of both have the same length.
    assert half.flops / half.tokens == pytest.approx(made.artifact.facts()["flops"] / made.artifact.facts()["tokens"])


def test_what_cannot_be_adopted_is_refused_by_name(bench: Bench) -> None:
    id = pretrained(bench)
    store = bench.session.store
    with pytest.raises(
        ValueError, match=rf"pretrain/{id} has no permanent save point of step 5 .*: it has those of steps 4"
    ):
        pin_step(store, id, 5)
    with pytest.raises(
        ValueError, match=r"abcd has no permanent save point of step 4 .*: it has none; execution\.keep_every"
    ):
        pin_step(store, "abcd", 4)
    config = pin_step(store, id, 4)
    with pytest.raises(ValueError, match=f"save point {id}@4 changed while it was adopted"):
        bench.run(adopt_save_point, "adopt_step", config=config.model_copy(update={"files": config.files[1:]}))
    folder = f"_progress/pretrain/{id}/g0001/kept/0000000004"
    store.write(f"{folder}/weights.safetensors", b"weights")
    with pytest.raises(StoreError, match=f"save point 4 of pretrain/{id} is damaged .*weights.safetensors"):
        bench.run(adopt_save_point, "adopt_step", config=config)


def test_a_save_point_of_a_stage_that_makes_no_checkpoint_is_refused(bench: Bench) -> None:
    store = bench.session.store
    store.write("_progress/reward/0123456789abcdef/g0001/kept/point-0000000004.json", b"{}")
    with pytest.raises(
        ValueError, match="save point of stage reward; only those of pretrain, anneal, sft, dpo, rlvr, ppo"
    ):
        pin_step(store, "0123", 4)
    store.write("_progress/pretrain/f123456789abcdef/g0001/kept/point-0000000004.json", b"{}")
    with pytest.raises(ValueError, match=r"what pretrain/f123456789abcdef computes is not known .*start it again"):
        pin_step(store, "f123", 4)
    store.write("_progress/pretrain/0123ffffffffffff/g0001/kept/point-0000000004.json", b"{}")
    with pytest.raises(ValueError, match="id '0123' is not unique"):
        pin_step(store, "0123", 4)
