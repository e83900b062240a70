"""Measures training stability: spike score, growth exponent, norms of parameters, gradients and updates.

Source: RECIPE D (both spike scores, growth exponent), paper section 3.2; golden/spike_score.json; the rule of OLMo-core's
`StabilityMonitorCallback`. Choices where no source settles the matter (RECIPE K): the score uses the previous values only
and the sample standard deviation, and starts when its window is full. A window that is flat judges nothing, as in OLMo-core.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from model.network.sharded_tensors import local_part, total_norm
from model.network.transformer import Transformer

PAPER_WINDOW, PAPER_DEVIATIONS = 1000, 7.0
MONITOR_WINDOW, MONITOR_DEVIATIONS, MONITOR_STEPS = 128, 6.0, 10_000
FLAT = 1e-10
"""Standard deviation below which a window is flat and nothing after it a spike (OLMo-core)."""
FRAME_VALUES = 1 << 20
"""Values of all windows that are worked on at once: 8 MB, however long the run."""


def _scores(values: Float[np.ndarray, " steps"], window: int, ddof: int) -> Float[np.ndarray, " later"]:
    """Distance of every value after the first `window` from the mean of the `window` before it, in standard
    deviations with this `ddof`; 0 after a flat window.
    """
    scores = np.zeros(max(0, len(values) - window))
    at_once = max(1, FRAME_VALUES // window)
    for start in range(0, len(scores), at_once):
        later = slice(start, min(start + at_once, len(scores)))
        # A view of [steps, window] without copies; only its reductions take memory.
        frames = np.lib.stride_tricks.sliding_window_view(values[start : later.stop + window - 1], window)
        mean, deviation = frames.mean(axis=1), frames.std(axis=1, ddof=ddof)
        judging = deviation >= FLAT
        distance = values[window:][later] - mean
        np.divide(distance, deviation, out=scores[later], where=judging)
    return scores


def spike_score(values: Sequence[float], window: int = PAPER_WINDOW, deviations: float = PAPER_DEVIATIONS) -> float:
    """Percent of values at least `deviations` away, either way, from the rolling mean before them (paper
    section 3.2).

    Values before the window is full are not judged; with none to judge the score is 0. Raises ValueError for a window that
    has no standard deviation.
    """
    if window < 2:
        raise ValueError(
            f"window={window}: a standard deviation needs at least 2 values; the paper's window is {PAPER_WINDOW:,}"
        )
    scores = _scores(np.asarray(values, dtype=np.float64), window, ddof=1)
    return 100.0 * float((np.abs(scores) >= deviations).mean()) if scores.size else 0.0


class MonitorScore(NamedTuple):
    """Percent of steps that are spikes to OLMo-core's monitor; those that fill its first window count as none."""

    total: float
    """Of all steps."""
    recent: float
    """Of the last 10,000, or of all in a shorter run."""


def monitor_spike_score(losses: Sequence[float], gradient_norms: Sequence[float]) -> MonitorScore:
    """OLMo-core's later monitor: steps whose cross-entropy or gradient norm is over the mean of the 128 values before it
    by more than 6 of their population standard deviations.

    Raises ValueError where the two series differ in length.
    """
    if len(losses) != len(gradient_norms):
        raise ValueError(f"{len(losses)} losses and {len(gradient_norms)} gradient norms; give one of each per step")
    spikes = np.zeros(len(losses), dtype=bool)
    for values in (losses, gradient_norms):
        scores = _scores(np.asarray(values, dtype=np.float64), MONITOR_WINDOW, ddof=0)
        spikes[MONITOR_WINDOW:] |= scores > MONITOR_DEVIATIONS
    if not spikes.size:
        return MonitorScore(0.0, 0.0)
    return MonitorScore(100.0 * float(spikes.mean()), 100.0 * float(spikes[-MONITOR_STEPS:].mean()))


class Growth(NamedTuple):
    """Growth exponents per layer; 0 is neither growth nor decay through the depth."""

    activations: float
    """Of the residual stream after a layer."""
    gradients: float
    """Of the loss gradient in the residual stream after a layer: below 0 where it grows on its way back to the first."""
    contributions: float
    """Of what a layer adds to the residual stream."""


def growth_exponent(model: Transformer, ids: Int[Tensor, "documents seq"]) -> Growth:
    """ln(norm at the last layer / norm at the first) / n_layers, of three vectors of a layer.

    Vectors are averaged over documents and positions before the norm is taken; embeddings are left out (the
    first vector is the first block's). NaN where a vector is zero. Needs at least two layers; the paper uses 50
    random documents. Parameters keep their `requires_grad` and have no gradient afterwards.
    """
    if len(model.blocks) < 2:
        raise ValueError(f"n_layers={len(model.blocks)}: growth through the depth needs at least 2 layers")
    added: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        added.append((output - inputs[0]).detach())
        # The residual stream is no leaf, so autograd would drop its gradient after use.
        output.retain_grad()
        outputs.append(output)

    with _only_activations_differentiated(model):
        handles = [model.blocks[index].register_forward_hook(keep) for index in (0, -1)]
        try:
            logits = model(ids)
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
            loss.backward()
        finally:
            for handle in handles:
                handle.remove()
    first, last = outputs
    layers = len(model.blocks)
    return Growth(
        activations=_rate(first.detach(), last.detach(), layers),
        gradients=_rate(_grad(first), _grad(last), layers),
        contributions=_rate(added[0], added[1], layers),
    )


@contextmanager
def _only_activations_differentiated(model: Transformer) -> Iterator[None]:
    """Training mode, in which blocks are called and hooks run; of all parameters only the embedding has a gradient."""
    training, wanted = model.training, {p: p.requires_grad for p in model.parameters()}
    model.train()
    model.requires_grad_(False)
    # Something must require a gradient, or backward would not pass the blocks at all.
    model.embedding.requires_grad_(True)
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
        for parameter, needed in wanted.items():
            parameter.requires_grad_(needed)


def _grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _rate(start: Tensor, end: Tensor, layers: int) -> float:
    norms = [tensor.float().mean(dim=(0, 1)).norm().item() for tensor in (start, end)]
    return math.log(norms[1] / norms[0]) / layers if all(norms) else math.nan


def group_of(name: str) -> str:
    """The group of a parameter: `embedding`, `head`, `norm` or its block, such as `blocks.3`."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]


Batches = TypeVar("Batches")


class NormWatch:
    """L2 norms per group of parameters at every `every`-th update (0: never), read around the optimizer's step.

    Use it in a `with` block, tell it each 0-based step before its update with `arm`, and take `metrics(n)` after the n-th
    update. `param_norm/<group>` is from after the update and `grad_norm/<group>` from before clipping. `update_norm/<group>`
    is of the difference that the update made, weight decay included. A watched update holds a second copy of the weights.
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        self.model, self.every = model, every
        self.update = 0
        """Number of the update that `found` is of, 0 before the first watched one."""
        self.found: dict[str, Tensor] = {}
        self._due = False
        self._before: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def arm(self, step: int) -> None:
        """Say which step comes next."""
        self._due = self.every > 0 and (step + 1) % self.every == 0
        if self._due:
            self.update = step + 1

    def watching(self, batches: Callable[[int], Batches]) -> Callable[[int], Batches]:
        """The same batches; asking for a step's arms the watch for it."""

        def armed(step: int) -> Batches:
            self.arm(step)
            return batches(step)

        return armed

    def metrics(self, update: int) -> dict[str, Tensor | float]:
        """Norms of that update, still on the device; empty where it was not watched."""
        return dict(self.found) if update == self.update else {}

    def __enter__(self) -> "NormWatch":
        self._handles = [
            register_optimizer_step_pre_hook(self._look_before),
            register_optimizer_step_post_hook(self._look_after),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _look_before(self, optimizer: torch.optim.Optimizer, _: Any, __: Any) -> None:
        if not self._due:
            return
        watched = self._watched(optimizer)
        gradients = {name: parameter.grad for name, parameter in watched if parameter.grad is not None}
        self.found = _group_norms("grad_norm", gradients)
        # Cloned, since the fused optimizer updates in place.
        self._before = {name: parameter.detach().clone() for name, parameter in watched}

    @torch.no_grad()
    def _look_after(self, optimizer: torch.optim.Optimizer, _: Any, __: Any) -> None:
        if not self._due:
            return
        watched = self._watched(optimizer)
        self.found |= _group_norms("param_norm", dict(watched))
        self.found |= _group_norms("update_norm", {name: p - self._before[name] for name, p in watched})
        self._before, self._due = {}, False

    def _watched(self, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
        # By memory, since an optimizer of sharded parameters holds this process's rows of each.
        held = {parameter.data_ptr() for group in optimizer.param_groups for parameter in group["params"]}
        return [(n, p) for n, p in self.model.named_parameters() if local_part(p.detach()).data_ptr() in held]


def _group_norms(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(group_of(name), []).append(tensor.detach().float())
    return {f"{kind}/{group}": total_norm(members) for group, members in groups.items()}
