"""Averages weights (RECIPE E): the uniform arithmetic mean, in fp32."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


@torch.no_grad()
def average_weights(states: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of several state dicts, in fp32, parameter by parameter; one of them at a time is held besides the sum.

    Raises ValueError when names or shapes differ, or when there is none.
    """
    total: dict[str, Tensor] = {}
    number = 0
    for number, state in enumerate(states, 1):
        if number == 1:
            # copy=True: an fp32 tensor would otherwise be the ingredient's own memory, which the sum overwrites.
            total = {name: value.detach().to(torch.float32, copy=True) for name, value in state.items()}
            continue
        different = sorted(total.keys() ^ state.keys()) or [
            name for name in total if total[name].shape != state[name].shape
        ]
        # Sorted names, at most five: a wrong ingredient differs in hundreds.
        if different:
            raise ValueError(f"ingredient {number} differs from the first in {', '.join(different[:5])}")
        for name, value in state.items():
            total[name] += value.float()
    if not number:
        raise ValueError("a soup of no ingredients: give at least one state")
    return {name: value.div_(number) for name, value in total.items()}


@torch.no_grad()
def distances(state: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> dict[str, float]:
    """How far each tensor lies from its average, as a share of the average's norm: ‖w − mean‖ / ‖mean‖."""
    return {
        # clamp_min: a tensor of zeros would otherwise divide by zero.
        name: float((state[name].float() - mean).norm() / mean.norm().clamp_min(torch.finfo(torch.float32).tiny))
        for name, mean in average.items()
    }
