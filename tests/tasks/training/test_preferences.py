"""Preferences as a stage: rows, binarisation, ties, shards and refusals. Oracles: RECIPE G; how often the policy is loaded."""

import json
from pathlib import Path

import pytest
import zstandard

from infra.settings import EndpointSettings
from model.network.transformer import Transformer
from tasks.training import preferences as module
from tasks.training.preferences import PreferencesConfig, build_preferences
from tests.openai_server import OpenAIServer
from tests.tasks.test_generation import served
from tests.tasks.training.conftest import TINY

CONFIG = PreferencesConfig(samples=3, max_prompt_tokens=64, max_new_tokens=16, precision="fp32")


def read_rows(bench, artifact, name):
    data = zstandard.ZstdDecompressor().stream_reader(bench.read(artifact, name)).read()
    return [json.loads(line) for line in data.splitlines()]


def run(bench, **changes):
    config = CONFIG.model_copy(update=changes)
    return bench.run(build_preferences, policy=bench.base(), prompts=bench.prompts(6), config=config)


def test_rows_agree_with_the_samples(bench, monkeypatch):
    monkeypatch.setattr(module, "SHARD_PROMPTS", 4)
    made = run(bench)
    rows = read_rows(bench, made, "preferences.jsonl.zst")
    names = bench.session.store.names(f"{made.address}/samples")
    samples = [sample for name in sorted(names) for sample in read_rows(bench, made, f"samples/{name}")]
    assert made.pairs == len(rows) == 6
    assert len(names) == 2
    assert len(samples) == 18
    for row in rows:
        own = [sample for sample in samples if sample["id"] == row["id"]]
        ratings = [sample["rating"] for sample in own]
        assert row["chosen_rating"] == max(ratings)
        assert row["chosen"][-1] == {"role": "assistant", "content": own[ratings.index(max(ratings))]["text"]}
        assert row["chosen"][:-1] == row["rejected"][:-1]
        assert row["rejected"][-1]["content"] in [sample["text"] for sample in own]
    assert made.ties == sum(row["chosen_rating"] == row["rejected_rating"] for row in rows)
    assert made.mean_chosen >= made.mean_rejected


def test_equal_runs_give_equal_bytes_and_seeds_matter(make_bench):
    first, second = run(make_bench("a")), run(make_bench("b"))
    assert first.digest == second.digest
    assert run(make_bench("c"), seed=2).digest != first.digest


def test_ties_can_be_dropped(make_bench):
    kept = run(make_bench("a"))
    bench = make_bench("b")
    if kept.ties == kept.pairs:
        with pytest.raises(ValueError, match="no pair is left"):
            run(bench, ties="drop")
    else:
        dropped = run(bench, ties="drop")
        assert dropped.pairs == kept.pairs - kept.ties


def test_prompts_must_leave_room_for_the_answer(bench):
    with pytest.raises(ValueError, match="no room for a prompt in the model's window of 128"):
        run(bench, max_new_tokens=128)
    with pytest.raises(ValueError, match="no pair is left"):
        run(bench, max_new_tokens=125)


def test_a_worker_loads_the_policy_once_for_all_its_shards(bench, monkeypatch):
    loads = []

    def load(*arguments):
        loads.append(arguments)
        return load_checkpoint(*arguments)

    load_checkpoint = module.load_checkpoint
    monkeypatch.setattr(module, "SHARD_PROMPTS", 2)
    monkeypatch.setattr(module, "load_checkpoint", load)
    made = run(bench)
    assert len(bench.session.store.names(f"{made.address}/samples")) == 3
    assert len(loads) == 1


def test_shards_of_a_version_before_pools_are_taken(make_bench, monkeypatch):
    """Three shards, of which the last two are made by this version. Oracle: an attempt that made them all."""
    monkeypatch.setattr(module, "SHARD_PROMPTS", 2)
    whole = run(make_bench("whole"))
    current = module.sample_and_rate

    def earlier(ws, item, loaded):
        if item["start"]:
            raise KeyboardInterrupt
        found = current(ws, item, loaded)
        return {key: found[key] for key in ("pairs", "too_long", "unrated")} | {
            "endpoint": {"requests": 3, "cost": 0.5}
        }

    bench = make_bench("interrupted")
    monkeypatch.setattr(module, "sample_and_rate", earlier)
    with pytest.raises(KeyboardInterrupt):
        run(bench)
    monkeypatch.setattr(module, "sample_and_rate", current)
    arguments = {"policy": bench.base(), "prompts": bench.prompts(6), "config": CONFIG}
    outcome = bench.outcome(build_preferences, **arguments)
    assert outcome.record.resumed_from == "shard 1 of 3 (sample and rate)"
    assert outcome.artifact.digest == whole.digest
    assert outcome.record.notes["endpoint"] == {"requests": 3, "cost": 0.5}


def test_where_a_server_answers_neither_weights_nor_device_are_touched(make_bench):
    """This machine need not have the device, and what lies where the weights were is none."""
    digest = make_bench("other").base().digest
    with OpenAIServer(served(Transformer(TINY, seed=0), digest)) as server:
        endpoints = {"default": EndpointSettings(url=server.url)}
        bench = make_bench("a", device="cuda", generation={"default": "endpoint"}, endpoints=endpoints)
        weights = Path(bench.session.store.full(f"{bench.base().address}/model.safetensors"))
        weights.write_bytes(bytes(weights.stat().st_size))
        assert run(bench).pairs == 6
        assert server.sent.total() == 6 * CONFIG.samples


class Asked(Exception):
    """The device that shards are asked to compute on."""


def test_where_it_samples_itself_every_worker_wants_a_gpu(make_bench, monkeypatch):
    def run_shards(*arguments, loading, **options):
        raise Asked(loading.device)

    monkeypatch.setattr("infra.execution.attempt.run_shards", run_shards)
    with pytest.raises(Asked, match="cuda"):
        run(make_bench("a", device="cuda"))
    with pytest.raises(Asked, match="cpu"):
        run(make_bench("b", device="cuda", generation={"default": "endpoint"}))


def test_half_the_memory_gives_the_same_answers(make_bench, monkeypatch):
    half = run(make_bench("a"), precision="bf16")
    monkeypatch.setattr(module, "halve", lambda model: None)
    assert run(make_bench("b"), precision="bf16").digest == half.digest
