"""Rollouts by a server that takes the policy's weights. Oracles: a server on a real socket that decodes with the folder that it
was last told to load, by the routes that vLLM and SGLang document; the bytes of an undisturbed training; the counts of what the
server was asked."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from flows.running.readiness import check_generation
from infra.execution.plan import PlanRow
from infra.language_models.client import EndpointError
from infra.settings import ComputeSettings, EndpointSettings, Execution, ParallelSettings, WeightFolder
from infra.storage.store import Store
from infra.workspace import WorkSettings, Workspace
from model.config import Compute, Parallel
from model.decoding.generate import Sampling
from model.files.weights import load_hf
from model.network.initial_weights import initial_rows
from model.network.transformer import Transformer, on_meta_device
from model.parallel.group import Group, distribute, fill_weights
from tasks.artifacts import Checkpoint, Prompts
from tasks.training.answers import verified_answers
from tasks.training.answers.served_rollouts import ServedPolicy, served_policy
from tasks.training.answers.verified_answers import EncodedPrompt, VerifiedAnswer
from tasks.training.ppo import PPOConfig, train_ppo
from tasks.training.rlvr import GRPORollouts, RLVRConfig, train_rlvr
from tasks.verifiers import Verdict
from tests.model.groups import run_group
from tests.openai_server import OpenAIServer
from tests.tasks.test_generation import served
from tests.tasks.training.conftest import RANKS, TINY, TOKENIZER, Rows, make_prompts, user

CONFIG = RLVRConfig(
    learning_rate=1e-3,
    episodes=4 * 24,
    prompts_per_rollout=6,
    samples=4,
    max_prompt_tokens=64,
    max_new_tokens=8,
    unfinished_score=None,
    precision="fp32",
)
# About half of what an untrained model says has a capital, so there is something to learn.
LOWER_CASE = [
    {"messages": [user(f"{i}")], "ground_truth": {"func_name": "validate_lowercase"}, "dataset": "ifeval"}
    for i in range(6)
]


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
    return {"policy": bench.base(), "prompts": bench.run(make_prompts, config=Rows(rows=LOWER_CASE)), "config": CONFIG}


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


def test_answers_that_failed_the_comparison_are_asked_for_again(make_bench, tmp_path):
    """The command that the error promises to go on, with a server that was mended. Oracle: a training that met no such server."""
    sampler = Sampler()
    with OpenAIServer(sampler.reply, control=sampler.vllm) as server:
        sound = bench_with(make_bench, "sound", server, tmp_path / "weights")
        undisturbed = sound.run(train_rlvr, "rlvr", **start(sound))
        sampler.model, sampler.reloads = Transformer(TINY, seed=9), False
        bench = bench_with(make_bench, "served", server, tmp_path / "weights")
        for _ in range(2):
            with pytest.raises(EndpointError, match="rollout 0: the log-probabilities"):
                bench.run(train_rlvr, "rlvr", **start(bench))
        sampler.reloads = True
        assert bench.run(train_rlvr, "rlvr", **start(bench)).digest == undisturbed.digest


def test_answers_to_other_weights_are_not_learnt_from(make_bench, tmp_path, killed):
    """A served attempt keeps rollouts 0 to 2, a local one goes its own way up to step 4, and a served one goes on from there."""
    sampler = Sampler()
    refusing = [True]

    def reply(body: dict[str, Any]) -> dict[str, Any] | int:
        return 401 if refusing[0] and sampler.asked == 3 * 24 else sampler.reply(body)

    with OpenAIServer(reply, control=sampler.vllm) as server:
        first = bench_with(make_bench, "one", server, tmp_path / "weights", save_every=100)
        with pytest.raises(EndpointError, match="HTTP 401"):
            first.run(train_rlvr, "rlvr", **start(first))
        kept = [name[-13:] for name in first.session.store.walk("_progress") if "/rollouts/" in name]
        assert kept == [f"{rollout:08d}.json" for rollout in range(3)]
        local = make_bench("one", save_every=4)
        killed(4)
        with pytest.raises(KeyboardInterrupt):
            local.run(train_rlvr, "rlvr", **start(local))
        refusing[0], sampler.loaded = False, []
        last = bench_with(make_bench, "one", server, tmp_path / "weights", save_every=4)
        outcome = last.outcome(train_rlvr, "rlvr", **start(last))
    assert outcome.record.resumed_from == "step 4"
    assert [name[-8:] for name in sampler.loaded] == ["00000002", "00000003"]
    assert sampler.asked == (3 + 2) * 24


def join(root: str, settings: EndpointSettings) -> tuple[ServedPolicy, Transformer, Group]:
    """In each of two workers: the server, the policy and the group that holds it."""
    ws = Workspace(
        Store(root),
        stage="rlvr",
        id="1",
        payload="rlvr/1/g0001",
        progress_folder="_progress/rlvr/1",
        settings=WorkSettings(generation="endpoint", endpoints={"rlvr": settings}),
    )
    model = on_meta_device(TINY)
    group = distribute(model, Compute(parallel=Parallel(workers=2, data="fsdp")), "fp32")
    fill_weights(model, partial(initial_rows, TINY, 0), group)
    policy = served_policy(ws, TOKENIZER, "fp32", 2)
    assert policy is not None
    return policy, model, group


def ask_together(root: str, settings: EndpointSettings, prompts: list[list[int]]) -> list[list[int]]:
    """In each of two workers: a rollout in which both ask for samples of one prompt."""
    policy, model, group = join(root, settings)
    sampling = Sampling(max_new_tokens=8, temperature=1.0, seed=3)
    given, kept = (policy.completions(model, group, 0, prompts, sampling) for _ in range(2))
    assert given == kept
    return [answer.ids for answer in given]


def server_settings(server: OpenAIServer, folder: Path) -> EndpointSettings:
    return EndpointSettings(url=server.url, served_name="policy", weights=WeightFolder(server="vllm", path=str(folder)))


def judge_together(root: str, settings: EndpointSettings) -> tuple[list[str], list[list[VerifiedAnswer]]]:
    """In each of two workers: the texts that it verifies itself in a rollout, and all answers."""
    served, model, group = join(root, settings)
    prompts = [EncodedPrompt(row, [5, 6, 7 + place]) for place, row in enumerate(LOWER_CASE[:5])]
    rollouts = GRPORollouts(CONFIG, model, group, model, group, TOKENIZER, prompts, 256, served=served)
    verified, verify = [], verified_answers.verify

    def counted(dataset: str, text: str, *rest: Any) -> Verdict:
        verified.append(text)
        return verify(dataset, text, *rest)

    verified_answers.verify = counted
    return verified, rollouts.answers(0, prompts, 2)


def test_every_answer_is_verified_by_one_worker(tmp_path):
    """Verdicts have limits of time: workers that verified all by themselves could learn from different ones."""
    sampler = Sampler()
    with OpenAIServer(sampler.reply, control=sampler.vllm) as server:
        settings = server_settings(server, tmp_path / "weights")
        (first, all_answers), (second, same) = run_group(2, judge_together, str(tmp_path / "store"), settings)
    assert all_answers == same
    texts = [answer.completion.text for group in all_answers for answer in group]
    # Five prompts of two answers each: the share of rank 0 is two prompts.
    assert (first, second) == (texts[:4], texts[4:])
    assert len(texts) == sampler.asked == 10


def test_workers_that_share_a_prompt_ask_for_other_samples(tmp_path):
    sampler = Sampler()
    with OpenAIServer(sampler.reply, control=sampler.vllm) as server:
        settings = server_settings(server, tmp_path / "weights")
        first, second = run_group(2, ask_together, str(tmp_path / "store"), settings, [[5, 6, 7]] * 6)
        assert first == second
        assert sampler.asked == len({body["seed"] for body in server.bodies}) == 6
    assert len({tuple(ids) for ids in first}) == 6


def test_ppo_on_several_workers_refuses_a_server_before_it_loads_anything(tmp_path):
    settings = EndpointSettings(
        url="http://nowhere/v1", weights=WeightFolder(server="vllm", path=str(tmp_path / "weights"))
    )
    ws = Workspace(
        Store(str(tmp_path / "store")),
        stage="ppo",
        id="1",
        payload="ppo/1/g0001",
        progress_folder="_progress/ppo/1",
        settings=WorkSettings(
            compute=ComputeSettings(parallel=ParallelSettings(workers=2)),
            generation="endpoint",
            endpoints={"ppo": settings},
        ),
    )
    absent = Checkpoint.model_construct(address="checkpoint/absent/g0001")
    with pytest.raises(ValueError, match=r"execution\.endpoints\.ppo samples for a policy in one process"):
        train_ppo(
            ws, absent, None, Prompts.model_construct(address="prompts/absent/g0001"), PPOConfig.model_construct()
        )


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


def test_the_key_of_a_sampler_is_looked_for_before_a_run(monkeypatch):
    waiting = PlanRow("rlvr", "rlvr", "run", "", "0", (), {}, None)
    server = EndpointSettings(
        url="http://nowhere/v1", key_env="SAMPLER_KEY", weights=WeightFolder(server="vllm", path="/weights")
    )
    execution = Execution(generation={"rlvr": "endpoint"}, endpoints={"rlvr": server})
    monkeypatch.delenv("SAMPLER_KEY", raising=False)
    with pytest.raises(ValueError, match=r"the key of rlvr is looked for in \$SAMPLER_KEY, which is not set"):
        check_generation([waiting], execution)
    # Rollouts that are decoded here ask nobody.
    check_generation([waiting], Execution(endpoints={"rlvr": server}))
    monkeypatch.setenv("SAMPLER_KEY", "sesame")
    check_generation([waiting], execution)
