"""PPO's numerics. Oracles: RECIPE H.2 written as loops over one row, two optimizers that know nothing of each other, autograd."""

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.network.transformer import Linear, Transformer
from model.training.configs import OptimConfig
from model.training.objectives import clipped_policy_loss, label_log_probs
from model.training.optim import Optimizer
from model.training.ppo import ActorCritic, JointOptimizer, estimate, ppo_objective

SHAPE = ModelConfig(
    d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=16, mlp_hidden=64, vocab_size=128, max_sequence_length=32
)


def pair() -> ActorCritic:
    policy, critic = Transformer(SHAPE, seed=0), Transformer(SHAPE, seed=1)
    critic.head = Linear(SHAPE.d_model, 1)
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(2))
    return ActorCritic(policy, critic)


def worked(log_ratio, values, score, length, beta, gamma, lam) -> tuple[list[float], list[float]]:
    """Advantages (before whitening) and returns of one row, slot by slot as the rule is told."""
    limit = len(values)
    rewards, kept = [0.0] * limit, [0.0] * limit
    for t in range(limit):
        rewards[t] = -beta * log_ratio[t] if t < length else 0.0
        kept[t] = values[t] if t <= length else 0.0
    rewards[length if length < limit else limit - 1] += score
    advantages, running = [0.0] * limit, 0.0
    for t in reversed(range(limit)):
        following = kept[t + 1] if t + 1 < limit else 0.0
        running = rewards[t] + gamma * following - kept[t] + gamma * lam * running
        advantages[t] = running
    return advantages, [a + v for a, v in zip(advantages, kept, strict=True)]


def test_estimates_are_the_rule_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths, scores = [3, 6, 1, 5], [10.0, -10.0, 0.0, 10.0]
    log_ratio, values = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    made = estimate(
        log_ratio, values, torch.tensor(scores, dtype=torch.float64), torch.tensor(lengths),
        kl_coefficient=0.05, gamma=1.0, lam=0.95, whiten_batch=2,
    )  # fmt: skip
    rows = [
        worked(*(x.tolist() for x in (log_ratio[i], values[i])), scores[i], lengths[i], 0.05, 1.0, 0.95)
        for i in range(4)
    ]
    for first in (0, 2):
        raw = [rows[i][0][t] for i in (first, first + 1) for t in range(lengths[i])]
        white = (np.array(raw) - np.mean(raw)) / np.sqrt(np.var(raw, ddof=1) + 1e-8)
        got = torch.cat([made.advantages[i, : lengths[i]] for i in (first, first + 1)])
        np.testing.assert_allclose(got.numpy(), white, rtol=1e-9)
    for i, length in enumerate(lengths):
        assert made.advantages[i, length:].abs().sum() == 0
        judged = min(length + 1, 6)
        assert made.judged[i].tolist() == [True] * judged + [False] * (6 - judged)
        np.testing.assert_allclose(made.returns[i, :judged].numpy(), rows[i][1][:judged], rtol=1e-9)


def test_a_remainder_is_whitened_with_the_last_run() -> None:
    made = estimate(
        torch.zeros(5, 3), torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.arange(5.0),
        torch.tensor([1, 2, 3, 2, 1]), kl_coefficient=0.0, gamma=1.0, lam=0.95, whiten_batch=2,
    )  # fmt: skip
    # Two runs, of three rows and of two.
    assert float(made.advantages[:3].sum()) == pytest.approx(0, abs=1e-5)
    assert float(made.advantages[3:].sum()) == pytest.approx(0, abs=1e-5)


def test_each_model_clips_its_own_gradient() -> None:
    config = OptimConfig(weight_decay=0.0, clip_norm=1.0, precision="fp32")
    together, apart = pair(), pair()
    joint = JointOptimizer(together, config)
    alone = [Optimizer(part.named_parameters(), config) for part in (apart.policy, apart.critic)]
    for step in range(3):
        for model in (together, apart):
            for name, parameter in model.named_parameters():
                scale = 5.0 if name.startswith("critic") else 0.01
                parameter.grad = torch.full_like(parameter, scale * (step + 1))
        metrics = joint.step(1e-3, torch.tensor(1.0))
        norms = [optimizer.step(1e-3, torch.tensor(1.0))["grad_norm"] for optimizer in alone]
        assert [metrics["grad_norm"], metrics["value_grad_norm"]] == norms
    for name, parameter in together.named_parameters():
        assert torch.equal(parameter, dict(apart.named_parameters())[name]), name
    assert {name.split("/", 1)[1] for name in joint.moments()} == dict(together.named_parameters()).keys()
    again = JointOptimizer(pair(), config)
    again.restore_moments(joint.moments())
    assert all(torch.equal(value, again.moments()[name]) for name, value in joint.moments().items())


def test_the_objective_trains_each_model_by_its_own_loss() -> None:
    model, ids = pair(), torch.arange(12).reshape(2, 6)
    labels = torch.full((2, 6), -100)
    labels[:, 2:5] = ids[:, 3:6]
    trained = (labels != -100).float()
    judged = torch.zeros(2, 6)
    judged[:, 2:6] = 1.0
    old = label_log_probs(model.policy, ids, labels).detach()
    said = model.critic.head(model.critic.hidden(ids)).squeeze(-1).detach()
    advantages = torch.linspace(-1, 1, 12).reshape(2, 6) * trained
    batch = {
        "ids": ids, "labels": labels, "weights": trained / 6, "token_share": trained / 6, "old_log_probs": old,
        "advantages": advantages, "old_values": said, "returns": said + 0.3, "value_share": judged / 8,
    }  # fmt: skip
    objective = ppo_objective(clip=0.2, value_clip=0.2, value_coefficient=0.1, temperature=1.0)
    loss, metrics = objective(model, batch)
    loss.backward()
    # 0.5 (v - R)^2 with v at its old value and R 0.3 above it.
    assert float(metrics["value_loss"].detach()) == pytest.approx(0.5 * 0.09, rel=1e-5)
    expected = clipped_policy_loss(old, old, advantages, 0.2, 0.2)[trained.bool()].mean()
    assert float(metrics["policy_loss"]) == pytest.approx(float(expected), abs=1e-6)
    assert float(loss.detach()) == pytest.approx(float(expected) + 0.1 * 0.045, rel=1e-5)
    assert (float(metrics["ratio"]), float(metrics["clip_share"])) == (pytest.approx(1, abs=1e-6), 0.0)
    wanted = torch.autograd.grad(
        -(trained / 6 * advantages * label_log_probs(model.policy, ids, labels)).sum(), model.policy.head.weight
    )[0]
    torch.testing.assert_close(model.policy.head.weight.grad, wanted)
    assert model.critic.head.weight.grad is not None
    assert model.critic.head.weight.grad.abs().sum() > 0
    # Where an older policy sampled, each token's policy loss has its weight, and the value loss has none.
    model.policy.head.weight.grad = None
    importance = torch.linspace(0.2, 2, 12).reshape(2, 6)
    loss, weighted = objective(model, batch | {"importance": importance})
    loss.backward()
    expected = (trained / 6 * importance * -advantages).sum()
    assert float(weighted["policy_loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(weighted["value_loss"].detach()) == float(metrics["value_loss"].detach())
    wanted = torch.autograd.grad(
        -(trained / 6 * importance * advantages * label_log_probs(model.policy, ids, labels)).sum(),
        model.policy.head.weight,
    )[0]
    torch.testing.assert_close(model.policy.head.weight.grad, wanted)
