"""Compares float8 with bf16 in the first steps of a training, and ends it where they disagree.

Before each of these steps the same batch goes through the same weights in bf16, forward and backward, and nothing is updated.
Then the step is made in float8. Loss and gradient norm of both are compared: the loss alone says little at the beginning, where
every model is at ln V, and nothing of the backward pass. Weights, moments and order stay those of a training without the check.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.network.float8 import multiplying_in_bf16
from model.network.sharded_tensors import total_norm
from model.training.measuring.metrics import Scalars
from model.training.optim import Optimizer

CHECKED_STEPS = 3
"""Steps from the start, or from a save point, that are made in both."""
LIMITS = {"loss": 0.01, "grad_norm": 0.1}
"""Largest difference of each, relative to bf16's."""


class UnappliedGradients(Optimizer):
    """An optimizer that says the norm of the gradients and forgets them."""

    @torch.no_grad()
    def step(self, learning_rate: float, loss: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """Return `grad_norm`, and clear the gradients."""
        norm = total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
        for parameter in self.parameters.values():
            parameter.grad = None
        return {"grad_norm": norm}


class Float8Check:
    """The comparison of one training; all ranks of a group make it, with values that are the whole group's."""

    def __init__(self, model: nn.Module, steps: int = CHECKED_STEPS) -> None:
        self.left = steps
        """Steps that are still to be compared."""
        self._model = model
        self._expected: dict[str, float] = {}
        self._largest = dict.fromkeys(LIMITS, 0.0)

    def expect(self, step: Callable[[], Scalars]) -> None:
        """Note what the next step finds in bf16; `step` makes it without an update."""
        if self.left:
            with multiplying_in_bf16(self._model):
                found = step()
            self._expected = {name: float(found[name]) for name in LIMITS}

    def compare(self, number: int, found: Scalars) -> str:
        """Compare what the step of this number found in float8. The line that says how far both were apart, after the last one,
        else nothing. Raises ValueError beyond a limit.
        """
        expected, self._expected = self._expected, {}
        for name, value in expected.items():
            # A bf16 that is not finite is no measure; the loop ends such a training itself.
            apart = abs(float(found[name]) - value) / max(abs(value), 1e-12) if math.isfinite(value) else 0.0
            # Asked this way round, so that a NaN is refused too.
            if not apart <= LIMITS[name]:
                raise ValueError(
                    f"precision=float8 at step {number}: {name} is {float(found[name]):.6g} and in bf16, with the same weights "
                    f"and batch, {value:.6g}: {apart:.2%} apart, allowed are {LIMITS[name]:.0%}. float8 rounds too coarsely for "
                    "this model, or the device multiplies it wrongly; train with optim: {precision: bf16}, another artifact"
                )
            self._largest[name] = max(self._largest[name], apart)
        self.left -= bool(expected)
        if self.left or not expected:
            return ""
        says = " and ".join(f"{name} {apart:.3%} (limit {LIMITS[name]:.0%})" for name, apart in self._largest.items())
        return f"float8 is apart from bf16 in the first steps by at most: {says}"
