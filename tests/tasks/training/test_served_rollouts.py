"""Rollouts by a server that takes the policy's weights. Oracles: a server on a real socket that decodes with the folder that it
was last told to load, by the routes that vLLM and SGLang document; the bytes of an undisturbed training; the counts of what the
server was asked."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from flows.running.readiness import check_generation
from infra.execution.plan import PlanRow
from infra.language_models.client import EndpointError
from infra.settings import EndpointSettings, Execution, WeightFolder
from model.files.weights import load_hf
from model.network.transformer import Transformer
from tasks.training.rlvr import RLVRConfig, train_rlvr
from tests.openai_server import OpenAIServer
from tests.tasks.test_generation import served
from tests.tasks.training.conftest import RANKS, TINY

CONFIG = RLVRConfig(
    learning_rate=1e-3,
    episodes=4 * 24,
    prompts_per_rollout=6,
    samples=4,
    max_prompt_tokens=64,
    max_new_tokens=8,
    precision="fp32",
)


class Sampler:
    """A server's model, and what it was told."""

    def __init__(self, *, reloads: bool = True):
        self.model = Transformer(TINY, seed=9)
        self.reloads = reloads
        self.loaded: list[str] = []
        self.routes: list[str] = []
        self.asked = 0

    def reply(self, body: dict[str, Any]) -> dict[str, Any] | int:
        self.asked += 1
        return served(self.model, "policy")(body)

    def load(self, path: str) -> None:
        self.loaded.append(Path(path).name)
        if self.reloads:
            self.model = load_hf(Path(path), ranks=RANKS)[0]

    def vllm(self, route: str, body: dict[str, Any]) -> dict[str, Any] | int:
        self.routes.append(route)
        if route == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.load(body["kwargs"]["weights_path"])
        return {"results": [None]}

    def sglang(self, route: str, body: dict[str, Any]) -> dict[str, Any] | int:
        self.routes.append(route)
        assert (route, body["flush_cache"]) == ("/update_weights_from_disk", True)
        self.load(body["model_path"])
        return {"success": self.reloads, "message": "as told"}


def start(bench):
    return {"policy": bench.base(), "prompts": bench.prompts(6), "config": CONFIG}


def bench_with(make_bench, name, server, folder, kind: Literal["vllm", "sglang"] = "vllm", **execution):
    settings = EndpointSettings(
        url=server.url,
        served_name="policy",
        first_wait_seconds=0.01,
        weights=WeightFolder(server=kind, path=str(folder)),
    )
    return make_bench(name, generation={"rlvr": "endpoint"}, endpoints={"rlvr": settings}, **execution)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_server_gets_the_weights_of_every_rollout(make_bench, tmp_path, kind):
    """Its noise is that of one prompt at a time, so its answers are other draws; what it decodes with is the policy."""
    sampler = Sampler()
    with OpenAIServer(sampler.reply, control=getattr(sampler, kind)) as server:
        bench = bench_with(make_bench, "served", server, tmp_path / "weights", kind)
        outcome = bench.outcome(train_rlvr, "rlvr", **start(bench))
    assert [name[-8:] for name in sampler.loaded] == [f"{rollout:08d}" for rollout in range(4)]
    assert sampler.asked == 4 * 24
    # vLLM's prefixes are forgotten by a route of their own.
    assert len(sampler.routes) == (8 if kind == "vllm" else 4)
    assert not list((tmp_path / "weights").iterdir())
    rows = [json.loads(line) for line in bench.read(outcome.artifact, "metrics.jsonl").splitlines()]
    # The trainer's own log-probabilities are the old ones: the first ratio of each rollout is 1.
    assert [rows[i]["ratio"] for i in range(0, 8, 2)] == pytest.approx([1] * 4, abs=1e-5)
    notes = outcome.record.notes
    assert notes["sampler_gap"] < 5e-3
    assert 0 < notes["generating_share"] < 1


def test_a_server_that_keeps_other_weights_ends_the_training(make_bench, tmp_path):
    sampler = Sampler(reloads=False)
    with OpenAIServer(sampler.reply, control=sampler.vllm) as server:
        bench = bench_with(make_bench, "served", server, tmp_path / "weights")
        with pytest.raises(EndpointError, match=r"rollout 0: the log-probabilities of http.* differ.*other weights"):
            bench.run(train_rlvr, "rlvr", **start(bench))
    with OpenAIServer(sampler.reply, control=sampler.sglang) as server:
        bench = bench_with(make_bench, "other", server, tmp_path / "weights", "sglang")
        with pytest.raises(EndpointError, match="did not take the weights"):
            bench.run(train_rlvr, "rlvr", **start(bench))
    with OpenAIServer(sampler.reply) as server:
        bench = bench_with(make_bench, "third", server, tmp_path / "weights")
        with pytest.raises(EndpointError, match=r"collective_rpc answered HTTP 404.*VLLM_SERVER_DEV_MODE=1"):
            bench.run(train_rlvr, "rlvr", **start(bench))


def test_a_resumed_training_asks_only_for_what_it_was_not_given(make_bench, tmp_path, killed):
    sampler = Sampler()
    with OpenAIServer(sampler.reply, control=sampler.vllm) as server:
        whole = bench_with(make_bench, "whole", server, tmp_path / "weights", save_every=4)
        undisturbed = whole.outcome(train_rlvr, "rlvr", **start(whole))
        broken = bench_with(make_bench, "broken", server, tmp_path / "weights", save_every=4)
        killed(4)
        with pytest.raises(KeyboardInterrupt):
            broken.run(train_rlvr, "rlvr", **start(broken))
        before, loads = sampler.asked, len(sampler.loaded)
        # The save point is written in the background: a third rollout may have been answered when it ended the training.
        answered = (before - 4 * 24) // 24
        resumed = broken.outcome(train_rlvr, "rlvr", **start(broken))
        assert resumed.record.resumed_from == "step 4"
        assert answered in (2, 3)
        assert sampler.asked - before == (4 - answered) * 24
        assert len(sampler.loaded) - loads == 4 - answered
    assert resumed.artifact.digest == undisturbed.artifact.digest
    assert not [name for name in broken.session.store.walk("_progress") if "/rollouts/" in name]


def test_a_server_without_weights_is_refused_before_a_run():
    named = {"rlvr": EndpointSettings(url="http://nowhere/v1")}
    waiting = PlanRow("rlvr", "rlvr", "run", "", "0", (), {}, None)
    for endpoints in ({}, named):
        execution = Execution(generation={"rlvr": "endpoint"}, endpoints=endpoints)
        with pytest.raises(ValueError, match="rollouts of rlvr to a server, and none that takes weights is named"):
            check_generation([waiting], execution)
        # Nobody is asked by what is there already.
        check_generation([replace(waiting, action="reused")], execution)
    check_generation([waiting], Execution(generation={"default": "endpoint"}, endpoints=named))
