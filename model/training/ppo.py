"""Trains a policy and its value model side by side (PPO), and has the arithmetic of a rollout.

Source: RECIPE H.2 steps 3 to 7; paper Table 18. The two models share a batch, a loop and save points, and nothing else: each
has an optimizer of its own, which clips its own gradient. Axis names as in `model.training.advantages`.
"""

from itertools import chain
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.transformer import Transformer
from model.parallel.group import Objective
from model.training.advantages import generalized_advantages, keep_values, token_rewards, whiten
from model.training.configs import OptimConfig
from model.training.objectives import (
    ObjectiveMetrics,
    SampledBatch,
    clipped_policy_loss,
    clipped_value_loss,
    label_log_probs,
    token_values,
    weighted_advantages,
)
from model.training.optim import Optimizer


class ActorCritic(nn.Module):
    """A policy and a value model of its shape; the value model's head has one output."""

    def __init__(self, policy: Transformer, critic: Transformer) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    @property
    def config(self) -> ModelConfig:
        """The policy's."""
        return self.policy.config

    @property
    def blocks(self) -> list[nn.Module]:
        """Those of both, as the parts that weights are cut by."""
        return list(chain(self.policy.blocks, self.critic.blocks))


def joint_flops(flops: float, tokens: int, config: ModelConfig) -> float:
    """Training FLOPs of both models where the policy took `flops` for `tokens`: the value model's head has one output
    (RECIPE A.7).
    """
    # The policy's head has vocab_size outputs, the critic's has one: it lacks 6 FLOPs per missing weight and token.
    return 2 * flops - 6.0 * (config.vocab_size - 1) * config.d_model * tokens


class JointOptimizer:
    """An optimizer for each of the two models, an `Updater` of both."""

    def __init__(self, model: ActorCritic, config: OptimConfig) -> None:
        self.config = config
        self.policy, self.critic = (
            Optimizer(((f"{name}.{key}", value) for key, value in part.named_parameters()), config)
            for name, part in (("policy", model.policy), ("critic", model.critic))
        )
        # Save points hold a history. Reinforcement runs plain AdamW, which judges no spikes, so it stays as it is.
        self.history, self.seen = self.policy.history, 0

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Those of both, by name."""
        return self.policy.parameters | self.critic.parameters

    def step(self, learning_rate: float, loss: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """Apply both models' gradients; `grad_norm` is the policy's, `value_grad_norm` the critic's."""
        policy, critic = self.policy.step(learning_rate, loss), self.critic.step(learning_rate, loss)
        # One flag for both: whoever reads the metrics should see that either model stood still.
        skipped = torch.maximum(policy["skipped"], critic["skipped"])
        return policy | {"value_grad_norm": critic["grad_norm"], "skipped": skipped}

    def moments(self) -> dict[str, Tensor]:
        """Those of both, by parameter name."""
        return self.policy.moments() | self.critic.moments()

    def restore_moments(self, tensors: dict[str, Tensor]) -> None:
        """Take moments by parameter name. Raises ValueError naming what is missing or has another shape."""
        self.policy.restore_moments(tensors)
        self.critic.restore_moments(tensors)


class Estimates(NamedTuple):
    """What a rollout's answers are worth, per response token; index `length` is the slot after an answer's end."""

    advantages: Float[Tensor, "batch time"]
    """Whitened; 0 beyond the answer."""
    returns: Float[Tensor, "batch time"]
    """What the value model should have said."""
    judged: Bool[Tensor, "batch time"]
    """Where it has to say it: the answer and the slot after it."""


def estimate(
    log_ratio: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    scores: Float[Tensor, " batch"],
    lengths: Int[Tensor, " batch"],
    *,
    kl_coefficient: float,
    gamma: float,
    lam: float,
    whiten_batch: int,
) -> Estimates:
    """Advantages and returns of finished rows (H.2 steps 4 and 5). `log_ratio` is log π − log π_ref; `time` is the limit of
    answer tokens, `lengths` count real ones. Advantages are whitened over runs of `whiten_batch` rows, longer where the
    number of rows is no multiple. Raises ValueError where a run has a single token.
    """
    rewards = token_rewards(log_ratio, scores, lengths, kl_coefficient)
    advantages, returns = generalized_advantages(rewards, keep_values(values, lengths), gamma, lam)
    positions = torch.arange(values.shape[1])
    real = positions < lengths[:, None]
    # Whitening over batches of the published size keeps the statistics of the original trainer.
    # array_split gives runs of nearly equal length, so no short last run is whitened by a few tokens.
    runs = np.array_split(np.arange(len(values)), max(1, len(values) // whiten_batch))
    white = torch.cat([whiten(advantages[run], real[run]) for run in runs])
    return Estimates(white, returns, positions <= lengths[:, None])


class EstimatedBatch(SampledBatch):
    """Sampled answers with what the value model says of every position."""

    advantages: Float[Tensor, "batch seq"]
    old_values: Float[Tensor, "batch seq"]
    returns: Float[Tensor, "batch seq"]
    value_share: Float[Tensor, "batch seq"]
    """The weight of each position's value."""


def ppo_objective(*, clip: float, value_clip: float, value_coefficient: float, temperature: float) -> Objective:
    """Clipped policy loss, weighted per token, plus the clipped value loss.

    Metrics: `policy_loss`, `value_loss`, and as token means `ratio` and `clip_share`.
    """

    def objective(model: Any, batch: EstimatedBatch) -> tuple[Tensor, ObjectiveMetrics]:
        pair, share, old = cast(ActorCritic, model), batch["token_share"], batch["old_log_probs"]
        log_probs = label_log_probs(pair.policy, batch["ids"], batch["labels"], temperature)
        advantages = weighted_advantages(batch["advantages"], batch)
        policy = (batch["weights"] * clipped_policy_loss(log_probs, old, advantages, clip, clip)).sum()
        said = token_values(pair.critic, batch["ids"])
        value = (
            batch["value_share"] * clipped_value_loss(said, batch["old_values"], batch["returns"], value_clip)
        ).sum()
        ratio = torch.exp(log_probs.detach() - old)
        return policy + value_coefficient * value, {
            "policy_loss": policy.detach(),
            "value_loss": value.detach(),
            "ratio": (share * ratio).sum(),
            "clip_share": (share * ((ratio - 1).abs() > clip)).sum(),
        }

    return objective
