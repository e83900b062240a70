"""Runs shards as Ray tasks: as many at once as the cluster has cores, on any free node, again where one lags or dies.

No shard is bound to a node, since all of them share the store. Ray itself runs a task again whose worker or node died. A
straggler (a slow disk, a sick node) gets a second run once no other shard waits for a core. The first of the two to finish
commits, the other is cancelled, like MapReduce's backup tasks (Dean and Ghemawat 2004, section 3.6). Two runs of one shard
are safe, because a shard's bytes depend on its item only and its commit is create-only.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from types import ModuleType
from typing import Any

from infra.stopping import check_stopping

RETRIES = 3
"""How often a shard is run again after its worker or its node died; one that kills every worker must end."""

LOOK_SECONDS = 2.0
"""How often stragglers, new nodes and a request to stop are looked for while no shard ends."""

STRAGGLER_FACTOR = 3.0
"""A shard that has taken so many times the median is run a second time. Spark and Hadoop use a small multiple too; shards of
one stage are of about equal size."""

STRAGGLER_SECONDS = 10.0
"""A shard that has taken less than this is no straggler: a second run would cost as much as it saves."""

STRAGGLER_MIN_DONE = 3
"""Shards that must have ended before their median means anything."""


class ShardDied(Exception):
    """A shard's worker was killed again and again."""


@dataclass
class ShardRun:
    """One run of a shard that has been handed to Ray."""

    key: str
    began: float
    """Monotonic seconds when it was handed over. Little more than the cluster's cores are, so it began soon after."""


class Flight:
    """The shards that are under way, from the first to the last.

    It applies back-pressure: a shard is handed to Ray only when a core is about to be free, never the whole list.
    `launch(key)` hands one to Ray and returns its reference. State of one thread.
    """

    def __init__(self, ray: ModuleType, launch: Callable[[str], Any], keys: list[str]):
        self._ray = ray
        self._launch = launch
        self._waiting = iter(keys)
        self._all_launched = False
        self._running: dict[Any, ShardRun] = {}
        self._seconds: list[float] = []
        self._cores = 1
        self._looked = float("-inf")

    def results(self) -> Iterator[tuple[str, Any]]:
        """(key, result) of every shard once, as they end; whatever happens, no run outlives this."""
        try:
            while self._fill():
                for reference in self._wait():
                    run = self._running.pop(reference, None)
                    if run is None:
                        continue  # its twin ended in the same moment
                    result = self._result(reference, run)
                    self._seconds.append(time.monotonic() - run.began)
                    # The slower one of two twins is of no more use.
                    self._cancel([other for other, twin in self._running.items() if twin.key == run.key])
                    yield run.key, result
        finally:
            self._cancel(list(self._running))

    def _fill(self) -> bool:
        """Hand over as many shards as there is room for. False when there is nothing left to wait for."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            # Nodes come and go.
            self._cores = int(self._ray.cluster_resources().get("CPU", 0))
            self._looked = time.monotonic()
        # A few more than cores: a core that falls free has its next shard at once, and an autoscaler sees the demand.
        room = self._cores + max(2, self._cores // 4)
        while not self._all_launched and len(self._running) < room:
            key = next(self._waiting, None)
            if key is None:
                self._all_launched = True
            else:
                self._start(key)
        if self._all_launched:
            self._start_again()
        return bool(self._running)

    def _start(self, key: str) -> None:
        self._running[self._launch(key)] = ShardRun(key, time.monotonic())

    def _start_again(self) -> None:
        """Second runs for stragglers, on cores that have nothing else to do."""
        if len(self._seconds) < STRAGGLER_MIN_DONE:
            return
        # The median, for a straggler would raise the mean and so hide itself.
        limit = max(STRAGGLER_SECONDS, STRAGGLER_FACTOR * median(self._seconds))
        runs = [run.key for run in self._running.values()]
        now = time.monotonic()
        for run in list(self._running.values()):
            # One twin for a shard is enough: its count is 2 from then on.
            if len(self._running) < self._cores and now - run.began > limit and runs.count(run.key) == 1:
                self._start(run.key)

    def _wait(self) -> list[Any]:
        """References of the shards that ended, at least one."""
        while True:
            check_stopping()
            first, _ = self._ray.wait(list(self._running), num_returns=1, timeout=LOOK_SECONDS)
            if first:
                # All that ended meanwhile are taken in one call, since there may be thousands of shards.
                done, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
                return done
            self._fill()

    def _result(self, reference: Any, run: ShardRun) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            raise ShardDied(
                f"shard {run.key} was run {RETRIES + 1} times and its worker or node died each time ({error}); most often "
                "memory is short. Smaller shards or fewer cores per node help; the same command runs only what is missing."
            ) from error

    def _cancel(self, references: list[Any]) -> None:
        for reference in references:
            del self._running[reference]
            if self._ray.is_initialized():
                self._ray.cancel(reference)
