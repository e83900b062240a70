"""Averages of weights (RECIPE E): uniform arithmetic mean in fp32."""

from collections.abc import Sequence

import torch
from torch import Tensor


def average_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of several state dicts, in fp32, parameter by parameter. Raises ValueError when names or shapes differ."""
    first = states[0]
    for number, state in enumerate(states[1:], 2):
        different = sorted(first.keys() ^ state.keys()) or [
            name for name in first if first[name].shape != state[name].shape
        ]
        if different:
            raise ValueError(f"ingredient {number} differs from the first in {', '.join(different[:5])}")
    return {name: torch.stack([state[name].float() for state in states]).mean(0) for name in first}
