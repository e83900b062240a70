"""Brings metrics from the device to the log in a background thread, so that no step waits for them.

Source: RECIPE J (metrics stay on the device until the logging interval, then go to a thread), D (every 10 steps). What the
optimizer did is told of every step, since spikes and skipped updates are single steps. All values of an interval cross in
one copy.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.training.measuring.throughput import Meter

EVERY_STEP = ("loss", "ce", "z", "grad_norm", "skipped")
"""What is recorded of every step; the other metrics are recorded of the steps that are logged."""
SHOWN_INSTANCES = 64
"""Examples of a bad batch that an error lists."""

Log = Callable[[int, dict[str, float]], None]
Instances = Callable[[int], Sequence[Any]]
"""0-based step -> what names the examples of its batch."""
Scalars = dict[str, Tensor | float]
"""Metrics by name; tensors hold one value each and are still on the device."""
StepFacts = Callable[[int], Mapping[str, Tensor | float]]
"""Number of the newest update -> metrics that join its own."""


@dataclass
class AskedSteps:
    """Steps whose values have been asked for; the newest may be one that is logged."""

    steps: list[int]
    tokens: int
    """Trained when the line was sent."""
    waited: float
    """Seconds that the training had waited for data by then."""
    logged: bool
    values: Future[tuple[list[dict[str, float]], float]]
    """Metrics of each step, and when they were there."""


class MetricsLog:
    """Context manager that collects each step's metrics and hands them on in order, on the caller's thread.

    `record` gets every step: all that is known of logged ones, `EVERY_STEP` of the others. `log` gets the logged ones,
    with rates that differ between equal runs, and `skipped_steps`, the updates left out since the last one.
    """

    def __init__(
        self, log: Log | None, record: Log | None, instances: Instances | None, saved: int, meter: Meter
    ) -> None:
        self.log, self.record, self.instances = log, record, instances
        self.saved = saved
        """The newest step that a checkpoint holds."""
        self._meter = meter
        self._waited = 0.0
        self._skipped = 0.0
        self._collected: list[tuple[int, Scalars]] = []
        self._sent: deque[AskedSteps] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error nobody reads the values, and waiting could hang on a broken device.
        self._thread.shutdown(wait=error is None, cancel_futures=True)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the training waits for besides its own work: the next batch."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - began

    def collect(self, step: int, metrics: Scalars) -> None:
        """Keep the metrics of a finished update; tensors stay where they are."""
        self._collected.append((step, metrics))

    def send(self, tokens: int, facts: Mapping[str, Tensor | float], logged: bool) -> None:
        """Ask for all collected values. `facts` join the newest step's, which is logged or not."""
        steps, metrics = zip(*self._collected, strict=True)
        # The copy is queued here, on the training's thread; the other thread only waits for it.
        values = self._thread.submit(Crossing([*metrics[:-1], metrics[-1] | facts]).end)
        self._sent.append(AskedSteps(list(steps), tokens, self._waited, logged, values))
        self._collected = []

    def end(self, tokens: int) -> None:
        """Send and deliver what is left of a training that ended before its last step."""
        if self._collected:
            self.send(tokens, {}, logged=True)
        self.deliver(wait=True)

    def deliver(self, wait: bool) -> None:
        """Check, record and log what has arrived, or, waiting for it, all. Raises FloatingPointError for a value that is
        not finite.
        """
        # From the oldest on, so lines reach the log in the order of their steps.
        while self._sent and (wait or self._sent[0].values.done()):
            line = self._sent.popleft()
            values, arrived = line.values.result()
            for step, metrics in zip(line.steps, values, strict=True):
                self._check(step, metrics)
                self._skipped += metrics.get("skipped", 0.0)
                if self.record:
                    whole = line.logged and step == line.steps[-1]
                    self.record(step, metrics if whole else {n: metrics[n] for n in EVERY_STEP if n in metrics})
            if self.log and line.logged:
                rates = self._meter.since_last(arrived, line.tokens, values[-1].get("flops"), line.waited)
                self.log(line.steps[-1], values[-1] | {"skipped_steps": self._skipped} | rates)
                self._skipped = 0.0

    def _check(self, step: int, metrics: dict[str, float]) -> None:
        if np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]):
            return
        named = ""
        if self.instances:
            names = list(self.instances(step - 1))
            more = f" and {len(names) - SHOWN_INSTANCES:,} more" if len(names) > SHOWN_INSTANCES else ""
            named = f", which holds {', '.join(str(name) for name in names[:SHOWN_INSTANCES])}{more}"
        raise FloatingPointError(
            f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}. A run may not go on from a "
            f"non-finite value; the last good state is step {self.saved}. Lower the learning rate or inspect the batch of "
            f"step {step - 1} (0-based){named}"
        )


class Crossing:
    """Scalars of some steps on their way to the host, all in one copy that is queued when this is made."""

    def __init__(self, steps: Sequence[Scalars]) -> None:
        self.steps = steps
        scalars = [
            value.detach().float() for metrics in steps for value in metrics.values() if isinstance(value, Tensor)
        ]
        # Stacked on the device first: one copy of n values instead of n copies of one.
        self.values = torch.stack(scalars) if scalars else torch.empty(0)
        self.copied: torch.cuda.Event | None = None
        if self.values.is_cuda:
            # Only into pinned memory does a copy overlap with the host; its event comes before what is launched later. The copy
            # is queued on the stream of the values' device, which need not be the current one.
            host = torch.empty(self.values.shape, pin_memory=True)
            host.copy_(self.values, non_blocking=True)
            device, self.values, self.copied = self.values.device, host, torch.cuda.Event()
            self.copied.record(torch.cuda.current_stream(device))

    def end(self) -> tuple[list[dict[str, float]], float]:
        """Wait for the copy; every step's metrics as floats, and when they were there."""
        if self.copied is not None:
            self.copied.synchronize()
        found = iter(self.values.tolist())
        floats = [
            {name: float(next(found) if isinstance(value, Tensor) else value) for name, value in metrics.items()}
            for metrics in self.steps
        ]
        return floats, time.perf_counter()
