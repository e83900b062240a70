"""Threads alongside the training loop make what a step needs before it is asked for.

Source: RECIPE C.9 (the order of a training is a function of its step), D (the data-loading share as a metric). What is
made is a pure function of its step, so neither the number of threads nor what runs ahead changes any of it.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

AHEAD = 4
"""Steps made before they are needed: what hides one slow answer of an object store."""
WORKERS = 2
"""Threads that make them."""


_Made = TypeVar("_Made")


class ReadAhead(Generic[_Made]):
    """`make(step)`, with the next steps in the making; use it in a `with` block, which ends its threads.

    Back-pressure: no more than `ahead` steps are made before they are asked for, and none at or beyond `steps`.
    `waited_seconds` is how long callers had to wait in all. An error of `make` is raised where its step is asked for.
    """

    def __init__(self, make: Callable[[int], _Made], steps: int, *, ahead: int = AHEAD, workers: int = WORKERS) -> None:
        self.make, self.steps, self.ahead = make, steps, ahead
        self.waited_seconds = 0.0
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
        self._pending: dict[int, Future[_Made]] = {}

    def __call__(self, step: int) -> _Made:
        # The asked step is made in any case; only what runs ahead ends at `steps`.
        wanted = range(step, max(step + 1, min(step + 1 + self.ahead, self.steps)))
        # A jump to another step (a resume) makes older futures useless; dropping them frees their batches.
        self._pending = {at: made for at, made in self._pending.items() if at in wanted}
        for at in wanted:
            if at not in self._pending:
                self._pending[at] = self._pool.submit(self.make, at)
        # Only waiting counts here, not making: the data-loading share of a step is what the threads could not hide.
        began = time.perf_counter()
        made = self._pending.pop(step).result()
        self.waited_seconds += time.perf_counter() - began
        return made

    def __enter__(self) -> "ReadAhead[_Made]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Steps that nobody will ask for must not delay the end of a training.
        self._pool.shutdown(cancel_futures=True)
