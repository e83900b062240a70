"""The KL budget of reinforcement. Oracles: the k3 estimator by hand, and a training whose KL is known to pass the budget."""

import json
import math

import numpy as np
import pytest

from model.data.chat_batches import make_row
from model.training.loop import EndOfTraining
from tasks.training.answers.kl_control import KLControl, coefficient_at, rollout_kl
from tasks.training.answers.rollouts import final_answers
from tasks.training.ppo import train_ppo
from tasks.training.rlvr import RLVRConfig, train_rlvr
from tasks.verifiers import Verdict
from tests.tasks.training.test_ppo import CONFIG as PPO
from tests.tasks.training.test_ppo import judge_of
from tests.tasks.training.test_rlvr import CONFIG

ROWS = [make_row(np.array([5, 6, 7, 8], dtype=np.uint32), np.array([False, False, True, True]))]


def lines(bench, made) -> list[dict[str, float]]:
    return [json.loads(line) for line in bench.read(made, "metrics.jsonl").splitlines()]


def test_the_measure_is_k3_per_trained_token():
    own = [np.array([0.0, -1.0, -2.0, 0.0], dtype=np.float32)]
    other = [np.array([0.0, -1.5, -2.0, 0.0], dtype=np.float32)]
    assert rollout_kl(own, other, ROWS) == pytest.approx((math.exp(-0.5) - 1 + 0.5) / 2)
    assert rollout_kl(own, own, ROWS) == 0


def test_within_the_budget_nothing_changes_and_beyond_it_the_coefficient_grows_or_the_training_ends():
    adapt, stop = KLControl(budget=0.1), KLControl(budget=0.1, beyond="stop")
    assert coefficient_at(0.02, 5.0, None) == 0.02
    assert coefficient_at(0.02, 0.1, adapt) == coefficient_at(0.02, 0.1, stop) == 0.02
    assert coefficient_at(0.02, 0.3, adapt) == pytest.approx(0.18)
    with pytest.raises(EndOfTraining, match=r"is 0.3 nats per token, beyond kl_control.budget=0.1"):
        coefficient_at(0.02, 0.3, stop)


@pytest.fixture
def habit(monkeypatch):
    """A verifier that accepts answers beginning with a printable ASCII character, a quarter of the tokens: something to learn."""
    monkeypatch.setattr(
        "tasks.training.answers.verified_answers.verify",
        lambda dataset, text, truth, rules: Verdict("!" <= text[:1] <= "~", text, ""),
    )


def reinforced(bench, **changes):
    fixed = {"learning_rate": 2e-2, "kl_coefficient": 0.1, "unfinished_score": None}
    config = CONFIG.model_copy(update=fixed | changes)
    return bench.outcome(train_rlvr, policy=bench.base(), prompts=bench.prompts(6), config=config)


def test_a_training_beyond_its_budget_ends_with_the_model_of_the_update_before(bench, habit):
    whole = reinforced(bench)
    stopped = reinforced(bench, kl_control=KLControl(budget=1e-6, beyond="stop"))
    assert whole.artifact.steps == 8
    # The first rollout is the reference's own; the second one is beyond.
    assert stopped.artifact.steps == 2
    assert "rollout 1: the KL to the reference is" in stopped.record.notes["ended_early"]
    assert lines(bench, stopped.artifact) == [row | {"kl_coefficient": 0.1} for row in lines(bench, whole.artifact)[:2]]


def test_an_adapting_coefficient_is_logged_and_changes_the_loss_from_the_rollout_beyond_on(bench, habit):
    plain = lines(bench, reinforced(bench).artifact)
    adapted = lines(bench, reinforced(bench, kl_control=KLControl(budget=1e-6)).artifact)
    assert [row["kl_coefficient"] for row in adapted[:2]] == [0.1, 0.1]
    assert adapted[2]["kl_coefficient"] == pytest.approx(0.1 * (adapted[2]["rollout_kl"] / 1e-6) ** 2)
    assert [row["loss"] for row in adapted[:2]] == [row["loss"] for row in plain[:2]]
    assert adapted[2]["loss"] > plain[2]["loss"]


def test_ppo_ends_too(bench, habit):
    policy = bench.base()
    config = PPO.model_copy(
        update={"learning_rate": 2e-2, "unfinished_score": None, "kl_control": KLControl(budget=1e-6, beyond="stop")}
    )
    made = bench.outcome(train_ppo, policy=policy, judge=judge_of(bench), prompts=bench.prompts(6), config=config)
    assert made.artifact.steps == PPO.epochs * PPO.mini_batches
    assert "ended_early" in made.record.notes


def test_without_a_budget_the_published_coefficient_stays():
    assert RLVRConfig().kl_control is None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("12 + 3: The answer is 15.", 1),
        ("The answer is 4. \\boxed{4}", 1),
        ("\\boxed{1} and the final answer is 2", 2),
        ("The answer is 4, or the answer is 5.", 2),
        ("Let me think about 3 and 4", 0),
        ("#### 5", 1),
        ("", 0),
    ],
)
def test_final_answers_are_counted_by_their_values(text: str, count: int):
    assert final_answers(text) == count
