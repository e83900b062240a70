"""A budget for how far reinforcement may move from its reference: KL per token, measured on every rollout.

The published runs have a fixed coefficient β and no budget (RECIPE H.2, H.3); this is ours. The measure is the mean of the k3
estimator over the sampled tokens (`model.training.advantages.kl_estimate`), which is never negative. It depends on the rollout
alone, so a resumed training decides alike. `{budget: 0.05, beyond: adapt}` lets β grow as the square of the excess.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from model.config import Config
from model.data.chat_batches import LabelledRow
from model.training.advantages import kl_estimate
from model.training.loop import EndOfTraining


class KLControl(Config):
    """What the KL to the reference may reach, and what happens beyond."""

    budget: float = Field(gt=0)
    """Nats per token."""
    beyond: Literal["adapt", "stop"] = "adapt"
    """`adapt` multiplies β by (KL / budget)² for the rollout's updates; `stop` ends the training before them."""


def rollout_kl(log_probs: Sequence[np.ndarray], reference: Sequence[np.ndarray], rows: Sequence[LabelledRow]) -> float:
    """Mean KL per sampled token in nats, k3; both log-probabilities are 0 outside the answers."""
    total = sum(
        # In fp64: the k3 estimate is a small difference, and thousands of them are added.
        float(kl_estimate(torch.from_numpy(own.astype(np.float64) - other), "k3").sum())
        for own, other in zip(log_probs, reference, strict=True)
    )
    return total / sum(row.trained_tokens for row in rows)


def coefficient_at(coefficient: float, kl: float, control: KLControl | None) -> float:
    """β for the updates of a rollout with this KL. Raises EndOfTraining where the budget is used up and ends the training."""
    if control is None or kl <= control.budget:
        return coefficient
    if control.beyond == "stop":
        raise EndOfTraining(
            f"the KL to the reference is {kl:.4g} nats per token, beyond kl_control.budget={control.budget:g}; the model of "
            "the update before is kept"
        )
    # The square: at twice the budget β is four times as strong.
    return coefficient * (kl / control.budget) ** 2
