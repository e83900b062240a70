"""A lease lets one attempt at a time work on an artifact id.

Leases are numbered, create-only objects in the id's own progress folder; the highest number is current and is the
attempt's fencing token. A heartbeat object beside it changes every few seconds. Nobody compares clocks: a waiter
takes over when the heartbeat has not changed while the waiter's own clock measured `stale_seconds`, or at once when
the holder was a process of this same machine and boot that no longer lives.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import orjson
import psutil

from infra.compute.processes import check_stopping
from infra.storage.store import Store, StoreError

Holder = Literal["none", "dead", "alive"]
"""Who has a lease: nobody, a process that certainly lives no longer, or one that may live."""


class LeaseLost(Exception):
    """Another attempt has taken this id over: this attempt must not commit."""


def process_identity() -> dict[str, str | int | float]:
    """Who holds a lease: enough to prove, on the same machine and boot, that the holder is dead."""
    process = psutil.Process()
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return {
        "host": socket.gethostname(),
        "boot": round(psutil.boot_time()),
        "namespace": namespace,
        "pid": process.pid,
        "started": process.create_time(),
    }


def is_dead(holder: dict) -> bool:
    """True only if the holder certainly no longer lives: same host, boot and pid namespace, and no such process."""
    me = process_identity()
    # The boot time is derived from clocks and may wobble by a second between two readings.
    if (holder["host"], holder["namespace"]) != (me["host"], me["namespace"]) or abs(holder["boot"] - me["boot"]) > 2:
        return False
    try:
        process = psutil.Process(holder["pid"])
        alive = abs(process.create_time() - holder["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    return not alive


class Lease:
    """One attempt's hold on a progress folder; use as a context manager.

    Raises LeaseLost from `check` once a higher number exists.
    """

    def __init__(self, store: Store, folder: str, number: int, beat_seconds: float):
        self.store = store
        self.folder = folder
        self.number = number
        self._beat_seconds = beat_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {folder}", daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        # Not released, it is taken over a little later; an error here would hide the one that ends the attempt.
        with suppress(StoreError):
            self.store.create(f"{self.folder}/lease-{self.number:06d}.released", b"")

    def check(self) -> None:
        """Raise LeaseLost unless this attempt still has the highest number."""
        highest = highest_lease(self.store, self.folder)
        if highest != self.number:
            raise LeaseLost(f"{self.folder}: attempt {self.number} was superseded by attempt {highest}")

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(self._beat_seconds):
            count += 1
            # A beat that a full or unreachable store missed is made up by the next; `check` tells if it came too late.
            with suppress(StoreError):
                self.store.write(f"{self.folder}/lease-{self.number:06d}.beat", str(count).encode())


def highest_lease(store: Store, folder: str) -> int:
    """The highest lease number taken in a progress folder, 0 if none."""
    numbers = [int(name[6:12]) for name in store.names(folder) if name.startswith("lease-") and name.endswith(".json")]
    return max(numbers, default=0)


def acquire(
    store: Store,
    folder: str,
    stale_seconds: float,
    finished: Callable[[], bool] = lambda: False,
    waiting: Callable[[dict], None] = lambda holder: None,
) -> Lease | None:
    """Take the next lease number, waiting for a live holder to end.

    `finished` is asked while waiting: when it turns true (the holder has committed) there is nothing left to do and
    None is returned. `waiting` is told once who holds the lease. Raises Interrupted when the run was asked to stop.
    """
    beat_seconds = min(10.0, stale_seconds / 4)
    seen: tuple[int, bytes] | None = None
    seen_at = time.monotonic()
    while True:
        check_stopping()
        highest = highest_lease(store, folder)
        if highest == 0 or _holder(store, folder, highest) != "alive":
            body = orjson.dumps(process_identity())
            if store.create(f"{folder}/lease-{highest + 1:06d}.json", body):
                return Lease(store, folder, highest + 1, beat_seconds)
            continue
        beat = (highest, _read_or_empty(store, f"{folder}/lease-{highest:06d}.beat"))
        if beat != seen:
            if seen is None:
                waiting(store.read_json(f"{folder}/lease-{highest:06d}.json"))
            seen, seen_at = beat, time.monotonic()
        elif time.monotonic() - seen_at > stale_seconds:
            store.create(f"{folder}/lease-{highest:06d}.released", b"stale")
            continue
        if finished():
            return None
        time.sleep(min(1.0, beat_seconds))


def holder_of(store: Store, folder: str) -> Holder:
    """Who has the newest lease of a progress folder."""
    number = highest_lease(store, folder)
    return _holder(store, folder, number) if number else "none"


def sign_of_life(store: Store, folder: str) -> str:
    """The object that the holder of a folder's newest lease wrote last."""
    lease = f"{folder}/lease-{highest_lease(store, folder):06d}"
    return f"{lease}.beat" if store.exists(f"{lease}.beat") else f"{lease}.json"


def _holder(store: Store, folder: str, number: int) -> Holder:
    if store.exists(f"{folder}/lease-{number:06d}.released"):
        return "none"
    return "dead" if is_dead(store.read_json(f"{folder}/lease-{number:06d}.json")) else "alive"


def _read_or_empty(store: Store, path: str) -> bytes:
    try:
        return store.read(path)
    except FileNotFoundError:
        return b""
