"""Rollouts of the policy before the last updates. Oracles: weights and loss written out from whole logits, the answers of a model
that was put aside, a training whose policy stands still, the bytes of an undisturbed run, and a server that answers only when the
training has made an update."""

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from infra.language_models.client import EndpointError
from infra.settings import EndpointSettings
from infra.stopping import Interrupted, request_stop
from model.decoding.generate import Completion, Sampling
from model.network.transformer import Transformer
from model.parallel.group import Group
from model.training.loop import to_device
from model.training.objectives import grpo_objective
from tasks.generation import local_generator
from tasks.training import rlvr
from tasks.training.answers.kl_control import KLControl
from tasks.training.answers.sampled_ahead import PendingAnswers, RolloutTiming, importance_weights
from tasks.training.answers.verified_answers import EncodedPrompt, VerifiedAnswer, mixed_seed
from tasks.training.ppo import PPOConfig, train_ppo
from tasks.training.rlvr import GRPORollouts, RLVRConfig, train_rlvr
from tasks.verifiers import Verdict
from tests.model.groups import run_group
from tests.openai_server import OpenAIServer
from tests.tasks.training import test_ppo, test_served_rollouts
from tests.tasks.training.conftest import TINY, TOKENIZER, Rows, make_prompts
from tests.tasks.training.test_served_rollouts import LOWER_CASE, Sampler, bench_with, join, server_settings

BEHIND = RolloutTiming(lag=1)
CONFIG = test_served_rollouts.CONFIG.model_copy(update={"rollouts": BEHIND})


def start(bench, **changes):
    prompts = bench.run(make_prompts, config=Rows(rows=LOWER_CASE))
    return {"policy": bench.base(), "prompts": prompts, "config": CONFIG.model_copy(update=changes)}


def train(bench, name: str = "rlvr", **changes):
    return bench.outcome(train_rlvr, name, **start(bench, **changes))


def train_pair(bench, **changes):
    config = test_ppo.CONFIG.model_copy(update={"rollouts": BEHIND} | changes)
    judge = test_ppo.judge_of(bench)
    return bench.outcome(train_ppo, policy=bench.base(), judge=judge, prompts=bench.prompts(6), config=config)


def lines(bench, outcome) -> list[dict[str, float]]:
    return [json.loads(line) for line in bench.read(outcome.artifact, "metrics.jsonl").splitlines()]


# --- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RLVRConfig, PPOConfig])
def test_the_newest_policy_samples_by_default_and_says_nothing(kind):
    """What a config says of itself makes a stage's id."""
    assert kind().rollouts.lag == 0
    assert "rollouts" not in kind().model_dump(mode="json")
    assert kind(rollouts={"lag": 1}).model_dump(mode="json")["rollouts"] == {"lag": 1, "importance_cap": 2.0}


def test_a_cap_without_a_lag_is_refused():
    with pytest.raises(
        ValueError, match=r"importance_cap=3\.0 bounds the correction of a lag, and lag is 0; say lag: 1"
    ):
        RolloutTiming(importance_cap=3.0)
    assert RolloutTiming(lag=1, importance_cap=None).importance_cap is None


# --- arithmetic ---------------------------------------------------------------------------------------


def answer(ids: list[int], logprobs: list[float]) -> VerifiedAnswer:
    return VerifiedAnswer(Completion(ids, "", logprobs, "stop"), Verdict(True, "", ""))


def test_weights_are_the_ratio_of_trainer_and_sampler_up_to_the_cap():
    """Ratios of 2, 0.5 and 4. The last answer's EOS was not reported, so it has no ratio."""
    prompts = [EncodedPrompt({}, [5, 6]), EncodedPrompt({}, [5])]
    said = [answer([8, 9], [np.log(0.2), np.log(0.6)]), answer([8], [np.log(0.1)])]
    own = [np.log([1, 0.4, 0.3, 1]), np.log([0.4, 0.7, 1])]
    trained = [values.astype(np.float32) for values in own]
    found, facts = importance_weights(prompts, said, trained, 3.0)
    assert found is not None
    assert found[0].tolist() == pytest.approx([1, 2, 0.5, 1])
    assert found[1].tolist() == pytest.approx([3, 1, 1])
    assert facts == {
        "importance_weight": pytest.approx(6.5 / 3),
        "largest_importance_weight": pytest.approx(4),
        "importance_cut": pytest.approx(1 / 3),
    }
    nothing, facts = importance_weights(prompts, said, trained, None)
    assert nothing is None
    assert facts.keys() == {"importance_weight", "largest_importance_weight"}


def test_answers_that_wait_are_the_same_after_a_save_point():
    made = [Completion([8, 9, TOKENIZER.eos_id], TOKENIZER.decode([8, 9]), [-0.1, -1 / 3, -2.5e-7], "stop")]
    pending = PendingAnswers(3, lambda: made)
    loaded = PendingAnswers.load(pending.dump(), TOKENIZER)
    assert (loaded.rollout, loaded.take()) == (3, made)


def whole_log_probs(model: Transformer, ids: list[int]) -> Tensor:
    """log p of each token but the first, from the logits of all positions."""
    logits = model(torch.tensor([ids]))[0, :-1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_the_second_rollout_is_the_first_policys_and_its_loss_is_the_formula(monkeypatch):
    """Verdicts by the answer's first token, so that advantages differ; a cap of 1 cuts every weight above it."""
    monkeypatch.setattr(
        "tasks.training.answers.verified_answers.verify",
        lambda dataset, text, truth, rules: Verdict("!" <= text[:1] <= "~", text, ""),
    )
    config = CONFIG.model_copy(
        update={"rollouts": RolloutTiming(lag=1, importance_cap=1.0), "mini_batches": 1, "kl_coefficient": 0.1}
    )
    policy, initial = Transformer(TINY, seed=1), Transformer(TINY, seed=1)
    prompts = [EncodedPrompt({"dataset": "x", "ground_truth": ""}, [5, 6, 7 + place]) for place in range(6)]
    rollouts = GRPORollouts(config, policy, Group(), initial, Group(), TOKENIZER, prompts, 256, count=3)
    rollouts.roll(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.02)
    (passes,), facts = rollouts.roll(1)

    order = rollouts.places(1)
    asked = [prompts[place].ids for place in order for _ in range(config.samples)]
    sampling = Sampling(max_new_tokens=8, temperature=1.0, seed=mixed_seed(config.seed, 1))
    said = local_generator(initial, TOKENIZER, "fp32")(asked, sampling)
    total, ratios, advantages, tokens = torch.zeros(()), [], [], 0
    for first in range(0, len(said), config.samples):
        group = said[first : first + config.samples]
        scores = torch.tensor([10.0 * ("!" <= one.text[:1] <= "~") for one in group])
        advantages += ((scores - scores.mean()) / (scores.std() + 1e-8)).tolist()
    for ids, one, advantage in zip(asked, said, advantages, strict=True):
        new = whole_log_probs(policy, ids + one.ids)[len(ids) - 1 :]
        before = whole_log_probs(initial, ids + one.ids)[len(ids) - 1 :].detach()
        weights = torch.exp(new.detach() - before)
        ratios += weights.tolist()
        distance = new - before
        total = total + (-advantage * weights.clamp(max=1.0) * torch.exp(new - new.detach())).sum()
        total = total + 0.1 * (torch.exp(-distance) - 1 + distance).sum()
        tokens += len(one.ids)
    expected = total / tokens
    expected.backward()
    gradient = policy.head.weight.grad
    policy.head.weight.grad = None

    objective = grpo_objective(
        clip_low=0.2, clip_high=0.2, kl_coefficient=0.1, kl_estimator="k3", temperature=1.0
    )  # fmt: skip
    loss = torch.stack([objective(policy, to_device(batch, "cpu"))[0] for batch in passes]).mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    torch.testing.assert_close(policy.head.weight.grad, gradient, rtol=1e-3, atol=1e-5)
    assert facts["importance_weight"] == pytest.approx(np.mean(ratios), rel=1e-4)
    assert facts["largest_importance_weight"] == pytest.approx(max(ratios), rel=1e-4)
    assert 0.2 < facts["importance_cut"] < 0.8
    assert max(ratios) > 1.2


# --- trainings ----------------------------------------------------------------------------------------


def test_a_policy_that_stands_still_is_its_own_sampler(make_bench):
    """Without learning, the answers are those of the newest policy, and no weight is other than 1."""
    (behind, newest), (one, two) = zip(
        *((bench, train(bench, rollouts=how, learning_rate=0.0)) for bench, how in (
            (make_bench("a"), BEHIND), (make_bench("b"), RolloutTiming())
        )), strict=True,
    )  # fmt: skip
    ours, theirs = lines(behind, one), lines(newest, two)
    assert len(ours) == len(theirs) == 8
    assert len({row["score"] for row in ours}) > 1
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["importance_weight"] == pytest.approx(1, abs=1e-5)
        assert mine["largest_importance_weight"] == pytest.approx(1, abs=1e-3)
        assert mine["importance_cut"] == 0
        assert {name: mine[name] for name in other} == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert not any("importance" in name for name in theirs[0])


def test_the_first_two_rollouts_are_of_the_initial_policy_and_later_ones_lag(bench):
    rows = lines(bench, train(bench, learning_rate=1e-2))
    weights = [row["importance_weight"] for row in rows[::2]]
    assert weights[0] == pytest.approx(1, abs=1e-5)
    assert all(row["largest_importance_weight"] > 1.05 for row in rows[2:])
    # Under the sampler, the mean of the weights is 1 whatever has been learnt.
    assert weights[1:] == pytest.approx([1] * 3, abs=0.2)


TRAININGS: dict[str, Callable[..., Any]] = {"rlvr": train, "ppo": train_pair}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_resumed_run_writes_the_same_bytes(make_bench, killed, name):
    """Killed after its save point of step 4, when the third rollout's answers are of weights that no save point has."""
    whole, broken = make_bench("a", save_every=3), make_bench("b", save_every=3)
    undisturbed = TRAININGS[name](whole)
    if name == "ppo":
        # Its save points are not those that the kill is meant for.
        test_ppo.judge_of(broken)
    killed(4)
    with pytest.raises(KeyboardInterrupt):
        TRAININGS[name](broken)
    resumed = TRAININGS[name](broken)
    assert resumed.record.resumed_from == "step 4"
    assert resumed.artifact.digest == undisturbed.artifact.digest
    assert lines(whole, undisturbed)[-1]["largest_importance_weight"] > 1.001


@pytest.mark.learning
@pytest.mark.parametrize("cap", [2.0, None])
def test_a_rewarded_habit_grows_one_step_behind(bench, monkeypatch, cap):
    """As tests/tasks/training/test_rlvr.py has it for the newest policy."""
    monkeypatch.setattr(
        "tasks.training.answers.verified_answers.verify",
        lambda dataset, text, truth, rules: Verdict("!" <= text[:1] <= "~", text, ""),
    )
    outcome = train(
        bench,
        rollouts=RolloutTiming(lag=1, importance_cap=cap),
        episodes=15 * 24,
        max_new_tokens=1,
        learning_rate=2e-2,
        kl_coefficient=0.0,
    )
    rows = lines(bench, outcome)
    assert np.mean([row["correct"] for row in rows[:4]]) < 0.7
    assert np.mean([row["correct"] for row in rows[-6:]]) > 0.9


# --- servers ------------------------------------------------------------------------------------------


class Waiting(Sampler):
    """A server that answers what it is asked by the weights of a later rollout only after the training has made an update.

    The first answers after each load are those by which it is compared with the trainer, who waits for them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trained, self.arrived, self.late = threading.Event(), threading.Event(), 0
        self.since_load = 0

    def load(self, path: str) -> None:
        super().load(path)
        self.since_load = 0
        self.arrived.clear()
        self.trained.clear()

    def reply(self, body: dict[str, Any]) -> dict[str, Any] | int:
        self.since_load += 1
        if len(self.loaded) > 1 and self.since_load > 6 and not self.trained.is_set():
            self.late += 1
            self.arrived.set()
            if not self.trained.wait(60):
                # Whoever waits for the answers before the update waits for ever.
                return 401
        return super().reply(body)


def test_a_server_samples_while_the_training_makes_updates(make_bench, tmp_path, monkeypatch):
    sampler, step = Waiting(), rlvr.train_step

    def made(*arguments: Any) -> Any:
        metrics = step(*arguments)
        # An update may be quicker than a request is on its way.
        if len(sampler.loaded) > 1 and not sampler.trained.is_set():
            sampler.arrived.wait(30)
        sampler.trained.set()
        return metrics

    monkeypatch.setattr(rlvr, "train_step", made)
    with OpenAIServer(sampler.reply, control=sampler.vllm) as server:
        bench = bench_with(make_bench, "served", server, tmp_path / "weights")
        outcome = bench.outcome(train_rlvr, "rlvr", **start(bench))
    # At each of the three later rollouts some request was under way when an update ended.
    assert sampler.late >= 3
    assert [name[-8:] for name in sampler.loaded] == [f"{rollout:08d}" for rollout in range(4)]
    # Six answers of each rollout are for the comparison.
    assert sampler.asked == 4 * (24 + 6)
    rows = lines(bench, outcome)
    assert rows[0]["importance_weight"] == pytest.approx(1, abs=1e-3)
    assert rows[-1]["largest_importance_weight"] > 1.001
    assert outcome.record.notes["sampler_gap"] < 5e-3
    assert not list((tmp_path / "weights").iterdir())


def test_a_server_that_keeps_other_weights_is_found_before_it_samples(make_bench, tmp_path):
    sampler = Sampler(reloads=False)
    with OpenAIServer(sampler.reply, control=sampler.vllm) as server:
        bench = bench_with(make_bench, "served", server, tmp_path / "weights")
        with pytest.raises(EndpointError, match=r"rollout 0: the log-probabilities of http.* differ.*other weights"):
            bench.run(train_rlvr, "rlvr", **start(bench))
    assert sampler.asked == 6


def test_a_server_that_stops_reloading_is_found_though_the_policy_has_moved_on(make_bench, tmp_path):
    """It takes the first two rollouts' weights, which are the same, and no others; after a large step they differ."""
    sampler = Sampler()

    def control(route: str, body: dict[str, Any]) -> dict[str, Any] | int:
        sampler.reloads = len(sampler.loaded) < 2
        return sampler.vllm(route, body)

    with OpenAIServer(sampler.reply, control=control) as server:
        bench = bench_with(make_bench, "served", server, tmp_path / "weights")
        with pytest.raises(EndpointError, match="rollout 2: the log-probabilities"):
            bench.run(train_rlvr, "rlvr", **start(bench, learning_rate=3e-2))


def test_a_resumed_training_learns_from_the_answers_of_its_save_point(make_bench, tmp_path, killed):
    sampler = Sampler()
    with OpenAIServer(sampler.reply, control=sampler.vllm) as server:
        whole = bench_with(make_bench, "whole", server, tmp_path / "weights", save_every=4)
        undisturbed = whole.outcome(train_rlvr, "rlvr", **start(whole))
        broken = bench_with(make_bench, "broken", server, tmp_path / "weights", save_every=4)
        killed(4)
        with pytest.raises(KeyboardInterrupt):
            broken.run(train_rlvr, "rlvr", **start(broken))
        sampler.loaded = []
        resumed = broken.outcome(train_rlvr, "rlvr", **start(broken))
    assert resumed.record.resumed_from == "step 4"
    assert resumed.artifact.digest == undisturbed.artifact.digest
    # The third rollout is in the save point, so only the last one may need a server.
    assert {name[-8:] for name in sampler.loaded} <= {"00000003"}
    assert not [name for name in broken.session.store.walk("_progress") if "/rollouts/" in name]


def test_a_training_that_ends_by_its_budget_leaves_no_answers_under_way(make_bench, tmp_path):
    """The second rollout is the first that is away from the reference; by then the server has been asked for the third."""
    sampler = Sampler()
    with OpenAIServer(sampler.reply, control=sampler.vllm, delay_seconds=0.02) as server:
        bench = bench_with(make_bench, "served", server, tmp_path / "weights")
        outcome = bench.outcome(train_rlvr, "rlvr", **start(bench, kl_control=KLControl(budget=1e-9, beyond="stop")))
    assert outcome.artifact.facts()["steps"] == 2
    assert outcome.record.notes["ended_early"].startswith("rollout 1: the KL to the reference is")
    assert [name[-8:] for name in sampler.loaded] == ["00000000", "00000001", "00000002"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("endpoint")]


def begin_together(root: str, settings: EndpointSettings, prompts: list[list[int]]) -> list[list[Completion]]:
    """In each of two workers: a rollout that is begun and taken, and the same from what was kept."""
    policy, model, group = join(root, settings)
    sampling, checked = Sampling(max_new_tokens=8, temperature=1.0, seed=3), []
    found = []
    for _ in range(2):
        pending = policy.begin(model, group, 0, prompts, sampling, lambda: checked.append(1))
        found.append(pending.take())
    assert len(checked) == 1
    return found


def test_workers_ask_for_their_shares_and_all_get_all_answers(tmp_path):
    sampler = Sampler()
    with OpenAIServer(sampler.reply, control=sampler.vllm) as server:
        settings = server_settings(server, tmp_path / "weights")
        first, second = run_group(2, begin_together, str(tmp_path / "store"), settings, [[5, 6, 7]] * 5)
        assert sampler.asked == len({body["seed"] for body in server.bodies}) == 5
    assert first == second
    assert first[0] == first[1]
    assert len({tuple(one.ids) for one in first[0]}) == 5


def test_a_training_that_is_stopped_waits_for_the_answers_that_its_save_point_needs(make_bench, tmp_path, monkeypatch):
    """Asked to stop in an update while the next rollout is under way, it saves after it; the same command goes on from there."""
    sampler, step, stopping = Sampler(), rlvr.train_step, threading.Event()
    monkeypatch.setattr("infra.stopping._stopping", stopping)

    def made(*arguments: Any) -> Any:
        request_stop()
        return step(*arguments)

    with OpenAIServer(sampler.reply, control=sampler.vllm, delay_seconds=0.02) as server:
        whole = bench_with(make_bench, "whole", server, tmp_path / "weights")
        undisturbed = whole.outcome(train_rlvr, "rlvr", **start(whole))
        stopped = bench_with(make_bench, "stopped", server, tmp_path / "weights")
        with monkeypatch.context() as patch:
            patch.setattr(rlvr, "train_step", made)
            with pytest.raises(Interrupted, match="stopped on request after step 2, which is saved"):
                stopped.run(train_rlvr, "rlvr", **start(stopped))
        stopping.clear()
        resumed = stopped.outcome(train_rlvr, "rlvr", **start(stopped))
    assert resumed.record.resumed_from == "step 2"
    assert resumed.artifact.digest == undisturbed.artifact.digest
