"""The training loop: every gradient-trained stage runs through `train`.

Source: RECIPE D (precision, clipping, metrics every 10 steps), J (garbage collection at fixed steps, resume).
A step is a pure function of the state and of `batches(step)`, so a resumed run equals an undisturbed one bit
for bit on the same CPU.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.config import Compute
from model.optim import OptimConfig, Optimizer
from model.schedule import ScheduleConfig, update_learning_rate
from model.watchdog import Watchdog

Batch = dict[str, Any]
"""Arrays or tensors of one micro-batch by name. Names `ids` and `*_ids` are token ids and are counted as
trained tokens.
"""
Objective = Callable[[Any, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
"""(model, batch on the device) -> scalar to minimise and metrics, kept on the device."""


@dataclass
class TrainState:
    """What training changes: the model, the optimizer, and counters of finished updates and tokens."""

    model: nn.Module
    optimizer: Optimizer
    step: int = 0
    tokens: int = 0


def new_state(model: nn.Module, optim: OptimConfig, compute: Compute) -> TrainState:
    """State at step 0 with fresh moments; moves the model to the device. Fill it with `checkpoint.load_state`
    to resume.
    """
    model.to(compute.device)
    return TrainState(model, Optimizer(model.named_parameters(), optim))


def train(
    model: nn.Module,
    objective: Objective,
    batches: Callable[[int], Sequence[Batch]],
    *,
    optim: OptimConfig,
    schedule: ScheduleConfig,
    steps: int,
    compute: Compute,
    state: TrainState | None = None,
    checkpoint: Callable[[TrainState], None] | None = None,
    checkpoint_every: int = 0,
    log: Callable[[int, dict[str, float]], None] | None = None,
    log_every: int = 10,
) -> TrainState:
    """Train from `state.step` (or 0) to `steps` updates and return the state.

    `batches(step)` gives the micro-batches of a 0-based step; gradients and metrics are averaged over them.
    `log` gets the number of finished updates and the step's metrics (loss, the objective's own, grad_norm,
    skipped, lr, tokens, tokens_per_second). `checkpoint` is called after every `checkpoint_every` updates
    except the last. Raises FloatingPointError at a non-finite loss or gradient, before it reaches the weights
    or a checkpoint.
    """
    if compute.threads:
        torch.set_num_threads(compute.threads)
    state = state or new_state(model, optim, compute)
    if compute.compile == "blocks":
        compile_model(model)
    model.train()
    pending: list[tuple[int, dict[str, Any]]] = []
    saved = state.step
    with _manual_gc(), Watchdog(compute.stall_seconds) as watchdog:
        clock, clock_tokens = time.perf_counter(), state.tokens
        while state.step < steps:
            micro_batches = [to_device(batch, compute.device) for batch in batches(state.step)]
            metrics = train_step(state, objective, micro_batches, optim, schedule, steps)
            watchdog.beat()
            pending.append((state.step, metrics))
            due = bool(checkpoint and checkpoint_every and state.step % checkpoint_every == 0 and state.step < steps)
            if state.step % log_every == 0 or state.step == steps or due:
                fetched = _fetch(pending, saved)
                seconds = time.perf_counter() - clock
                rate = (state.tokens - clock_tokens) / max(seconds, 1e-9)
                if log and (state.step % log_every == 0 or state.step == steps):
                    log(state.step, fetched | {"tokens_per_second": rate})
                if checkpoint and due:
                    checkpoint(state)
                    saved = state.step
                clock, clock_tokens = time.perf_counter(), state.tokens
            if state.step % compute.gc_every == 0:
                gc.collect(1)
    return state


def train_step(
    state: TrainState,
    objective: Objective,
    micro_batches: Sequence[dict[str, Tensor]],
    optim: OptimConfig,
    schedule: ScheduleConfig,
    steps: int,
) -> dict[str, Any]:
    """One update: forward and backward of every micro-batch, then clip and apply. Metrics that are tensors
    stay on the device.
    """
    if not micro_batches:
        raise ValueError(f"batches({state.step}) is empty; every step before {steps} needs at least one micro-batch")
    device = next(iter(micro_batches[0].values())).device.type
    share = 1.0 / len(micro_batches)
    sums: dict[str, Tensor] = {}
    batch_tokens = 0
    for batch in micro_batches:
        batch_tokens += sum(value.numel() for name, value in batch.items() if name == "ids" or name.endswith("_ids"))
        with torch.autocast(device, torch.bfloat16, enabled=optim.precision == "bf16"):
            loss, metrics = objective(state.model, batch)
        (loss if share == 1.0 else loss * share).backward()
        for name, value in ({"loss": loss} | metrics).items():
            value = value.detach().float() * share
            sums[name] = sums[name] + value if name in sums else value
    lr = update_learning_rate(schedule, step=state.step, tokens=state.tokens, batch_tokens=batch_tokens, steps=steps)
    update = state.optimizer.step(lr, sums.get("ce", sums["loss"]))
    state.step += 1
    state.tokens += batch_tokens
    return sums | update | {"lr": lr, "tokens": float(state.tokens)}


def compile_model(model: nn.Module) -> None:
    """Compile the blocks of every Transformer inside `model`, in place."""
    for part in model.modules():
        if hasattr(part, "compile_blocks"):
            part.compile_blocks()  # type: ignore[operator]


def to_device(batch: Batch, device: str) -> dict[str, Tensor]:
    """A micro-batch as tensors; unsigned token arrays become int64, which embeddings index with."""
    tensors = {}
    for name, value in batch.items():
        if isinstance(value, np.ndarray) and value.dtype == np.uint32:
            value = value.astype(np.int64)
        tensors[name] = torch.as_tensor(value).to(device, non_blocking=True)
    return tensors


def _fetch(pending: list[tuple[int, dict[str, Any]]], saved: int) -> dict[str, float]:
    """Metrics of the newest pending step as floats, after checking all pending ones for non-finite values;
    empties the list.
    """
    values: dict[str, float] = {}
    for step, metrics in pending:
        values = {name: float(value) for name, value in metrics.items()}
        if not (np.isfinite(values["loss"]) and np.isfinite(values["grad_norm"])):
            raise FloatingPointError(
                f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}. A run may not go on from a "
                f"non-finite value; the last good state is step {saved}. Lower the learning rate or inspect the batch of "
                f"step {step - 1} (0-based)"
            )
    pending.clear()
    return values


@contextlib.contextmanager
def _manual_gc() -> Iterator[None]:
    """Switch automatic garbage collection off, so that pauses fall on chosen steps; restores what was."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
