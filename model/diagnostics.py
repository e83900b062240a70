"""Measures of training stability: spike score, growth exponent, norms per parameter.

Source: RECIPE D (both spike scores, growth exponent), paper section 3.2; golden/spike_score.json. Choices
where no source settles the matter (RECIPE K): the paper's score uses the previous values only, the sample
standard deviation, and starts when its window is full.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.transformer import Transformer

PAPER_WINDOW, PAPER_DEVIATIONS = 1000, 7.0
MONITOR_WINDOW, MONITOR_DEVIATIONS, MONITOR_STEPS = 128, 6.0, 10_000


def _scores(values: Float[np.ndarray, " steps"], window: int) -> Float[np.ndarray, " later"]:
    """Distance of every value after the first `window` from the mean of the `window` before it, in sample
    deviations.
    """
    if len(values) <= window:
        return np.empty(0)
    frames = np.lib.stride_tricks.sliding_window_view(values[:-1], window)
    mean, deviation = frames.mean(axis=1), frames.std(axis=1, ddof=1)
    return (values[window:] - mean) / np.maximum(deviation, np.finfo(np.float64).tiny)


def spike_score(values: Sequence[float], window: int = PAPER_WINDOW, deviations: float = PAPER_DEVIATIONS) -> float:
    """Percent of values at least `deviations` away, either way, from the rolling mean before them (paper
    section 3.2).

    Values before the window is full are not judged; with none to judge the score is 0.
    """
    scores = _scores(np.asarray(values, dtype=np.float64), window)
    return 100.0 * float((np.abs(scores) >= deviations).mean()) if scores.size else 0.0


def monitor_spike_score(losses: Sequence[float], gradient_norms: Sequence[float]) -> float:
    """OLMo-core's later monitor: percent of the last 10,000 steps whose loss or gradient norm rose over 6
    deviations of 128 values.

    Raises ValueError where the two series differ in length.
    """
    if len(losses) != len(gradient_norms):
        raise ValueError(f"{len(losses)} losses and {len(gradient_norms)} gradient norms; give one of each per step")
    series = (np.asarray(values, dtype=np.float64) for values in (losses, gradient_norms))
    spikes = np.logical_or(*(_scores(values, MONITOR_WINDOW) > MONITOR_DEVIATIONS for values in series))
    recent = spikes[-MONITOR_STEPS:]
    return 100.0 * float(recent.mean()) if recent.size else 0.0


class Growth(NamedTuple):
    """Growth exponents per layer; 0 is neither growth nor decay through the depth."""

    activations: float
    gradients: float


def growth_exponent(model: Transformer, ids: Int[Tensor, "documents seq"]) -> Growth:
    """ln(norm at the last layer / norm at the first) / n_layers, of residual activations and of the loss
    gradient in them.

    Vectors are averaged over documents and positions before the norm is taken; embeddings are left out (the
    first vector is the first block's output). Needs at least two layers; the paper uses 50 random documents.
    """
    if len(model.blocks) < 2:
        raise ValueError(f"n_layers={len(model.blocks)}: growth through the depth needs at least 2 layers")
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    handles = [model.blocks[index].register_forward_hook(keep) for index in (0, -1)]
    training = model.training
    model.train()  # blocks are called, not bypassed, so that hooks run
    try:
        logits = model(ids)
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    model.zero_grad(set_to_none=True)
    first, last = outputs
    return Growth(
        _rate(first.detach(), last.detach(), len(model.blocks)), _rate(_grad(last), _grad(first), len(model.blocks))
    )


def _grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _rate(start: Tensor, end: Tensor, layers: int) -> float:
    norms = [tensor.float().mean(dim=(0, 1)).norm().item() for tensor in (start, end)]
    return math.log(norms[1] / norms[0]) / layers


def parameter_norms(model: nn.Module) -> Iterator[tuple[str, float]]:
    """Yields metric names and L2 norms of every parameter, and of its gradient where it has one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            yield f"param/{name}.norm", parameter.float().norm().item()
            if parameter.grad is not None:
                yield f"grad/{name}.norm", parameter.grad.float().norm().item()
