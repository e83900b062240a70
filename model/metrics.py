"""Metrics on their way from the device to the log: fetched in a background thread, so that no step waits for them.

Source: RECIPE J (metrics stay on the device until the logging interval, then go to a thread), D (every 10 steps).
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

SHOWN_INSTANCES = 64
"""Examples of a bad batch that an error lists."""

Log = Callable[[int, dict[str, float]], None]
Instances = Callable[[int], Sequence[Any]]
"""0-based step -> what names the examples of its batch."""


@dataclass
class Line:
    """Steps whose values have been asked for, and what the log gets for the newest of them."""

    steps: list[tuple[int, dict[str, Any]]]
    tokens: int
    """Trained when the line was sent."""
    facts: dict[str, float]
    logged: bool
    values: Future[tuple[list[dict[str, float]], float]]
    """Metrics of each step, and when they were there."""


class Metrics:
    """Context manager that collects each step's metrics and logs lines of them in order, on the caller's thread."""

    def __init__(self, log: Log | None, instances: Instances | None, saved: int, tokens: int) -> None:
        self.log, self.instances = log, instances
        self.saved = saved
        """The newest step that a checkpoint holds."""
        self._collected: list[tuple[int, dict[str, Any]]] = []
        self._sent: deque[Line] = deque()
        self._last = (time.perf_counter(), tokens)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=error is None, cancel_futures=True)

    def collect(self, step: int, metrics: dict[str, Any]) -> None:
        """Keep the metrics of a finished update; tensors stay where they are."""
        self._collected.append((step, metrics))

    def send(self, tokens: int, facts: dict[str, float], logged: bool) -> None:
        """Ask for all collected values. `facts` join the newest step's, which goes to the log if `logged`."""
        values = self._thread.submit(_fetch, self._collected)
        self._sent.append(Line(self._collected, tokens, facts, logged, values))
        self._collected = []

    def deliver(self, wait: bool) -> None:
        """Check and log the lines that have arrived, or, waiting for them, all. Raises FloatingPointError for a
        value that is not finite.
        """
        while self._sent and (wait or self._sent[0].values.done()):
            line = self._sent.popleft()
            values, arrived = line.values.result()
            for (step, _), metrics in zip(line.steps, values, strict=True):
                self._check(step, metrics)
            seconds, tokens = arrived - self._last[0], line.tokens - self._last[1]
            self._last = (arrived, line.tokens)
            if self.log and line.logged:
                rate = {"tokens_per_second": tokens / max(seconds, 1e-9)}
                self.log(line.steps[-1][0], values[-1] | line.facts | rate)

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


def _fetch(steps: list[tuple[int, dict[str, Any]]]) -> tuple[list[dict[str, float]], float]:
    """Every step's metrics as floats, and when they were there."""
    values = [{name: float(value) for name, value in metrics.items()} for _, metrics in steps]
    return values, time.perf_counter()
