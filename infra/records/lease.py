"""A lease lets one attempt at a time work on an artifact id.

Leases are numbered, create-only objects in the id's own progress folder; the highest number is current and is the attempt's
fencing token. A heartbeat object next to it changes every few seconds. Nobody compares clocks: a waiter takes over when the
heartbeat has not changed while the waiter's own clock measured `stale_seconds`. It takes over at once when the holder was a
process of this same boot of this machine that no longer lives.

Numbers have no gaps, so whether a lease was lost is one question for the next number, not a listing, which may lag.
"""

import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypedDict

import orjson

from infra.stopping import check_stopping
from infra.storage.store import Store, StoreError

Holder = Literal["none", "dead", "alive"]
"""Who has a lease: nobody, a process that certainly lives no longer, or one that may live."""

BACK_OFF_SECONDS = 0.05
"""Pause after a first lost race for a number, doubled with each further one up to 3 s; a random part of it is waited."""


class LeaseLost(Exception):
    """Another attempt has taken this id over: this attempt must not commit."""


class ProcessIdentity(TypedDict):
    """One process on one boot of one machine."""

    host: str
    boot_id: str
    namespace: str
    pid: int
    start_ticks: int


def process_identity() -> ProcessIdentity:
    """Who holds a lease: enough to prove, on the same machine and boot, that the holder is dead.

    The kernel's boot id and the start in clock ticks since boot do not move when a clock is set. A host name and a boot time
    may be those of another machine. Where the kernel gives none, nobody is ever proven dead.
    """
    return {
        "host": socket.gethostname(),
        "boot_id": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _pid_namespace(),
        "pid": os.getpid(),
        "start_ticks": _state_and_start(os.getpid())[1],
    }


def is_dead(holder: ProcessIdentity) -> bool:
    """True only if the holder certainly no longer lives: same boot and pid namespace, and no such process."""
    here = (_text("/proc/sys/kernel/random/boot_id"), _pid_namespace())
    if not all(here) or (holder.get("boot_id"), holder.get("namespace")) != here:
        return False
    # Signal 0 asks only whether the process exists.
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it lives, and belongs to somebody else
    state, start = _state_and_start(holder["pid"])
    # A process that may not be looked at is taken for the holder.
    # Z is a zombie, X a dead process; another start time means that the number was given to a new process.
    return state in ("Z", "X") or (start > 0 and start != holder.get("start_ticks"))


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _state_and_start(pid: int) -> tuple[str, int]:
    """State letter and start in clock ticks since boot of a process (proc(5), fields 3 and 22); ("", 0) if not told."""
    # The name, field 2, is in parentheses and may have any character.
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[0], int(fields[19])) if len(fields) > 19 else ("", 0)


class Lease:
    """One attempt's hold on a progress folder, whose number is its fencing token; use as a context manager.

    `check` asks the store whether a higher number exists, `check_alive` whether the heartbeat has found so or has died.
    Both raise LeaseLost.
    """

    def __init__(self, store: Store, folder: str, number: int, beat_seconds: float, token: str = ""):
        self.store = store
        self.folder = folder
        self.number = number
        self.token = token
        """What this attempt writes into its objects, to know them again when the reply to a creation is lost."""
        self._beat_seconds = beat_seconds
        self._stop = threading.Event()
        self._failure = ""
        self._thread = threading.Thread(target=self._watch, name=f"lease {folder}", daemon=True)

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
        self.check_alive()
        if self.store.exists(lease_path(self.folder, self.number + 1)):
            raise LeaseLost(f"{self.folder}: attempt {self.number} was superseded by attempt {self.number + 1}")

    def check_alive(self) -> None:
        """Raise LeaseLost once the heartbeat has ended, of whatever; asks nobody."""
        if self._failure:
            raise LeaseLost(self._failure)

    def _watch(self) -> None:
        """Beat until the attempt ends; whatever ends the beat before that ends the attempt."""
        try:
            self._beat()
        except LeaseLost as error:
            self._failure = str(error)
        except BaseException as error:
            self._failure = (
                f"{self.folder}: the heartbeat of attempt {self.number} ended with {type(error).__name__}: {error}. Others "
                "would take the attempt for dead, so it ends. Run the same command again: it resumes."
            )
            raise

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(self._beat_seconds):
            count += 1
            # A beat that a full or unreachable store missed is made up by the next; `check` tells if it came too late.
            with suppress(StoreError):
                self.check()
                self.store.write(f"{self.folder}/lease-{self.number:06d}.beat", str(count).encode())


def lease_path(folder: str, number: int) -> str:
    return f"{folder}/lease-{number:06d}.json"


def highest_lease(store: Store, folder: str) -> int:
    """The highest lease number taken in a progress folder, 0 if none."""
    # The name is `lease-000012.json`, so the number is characters 6 to 12.
    numbers = [int(name[6:12]) for name in store.names(folder) if name.startswith("lease-") and name.endswith(".json")]
    return max(numbers, default=0)


def acquire(
    store: Store,
    folder: str,
    stale_seconds: float,
    finished: Callable[[], bool] = lambda: False,
    waiting: Callable[[ProcessIdentity], None] = lambda holder: None,
) -> Lease | None:
    """Take the next lease number, waiting for a live holder to end.

    `finished` is asked while waiting: when it turns true (the holder has committed) there is nothing left to do and
    None is returned. `waiting` is told once who holds the lease. Raises Interrupted when the run was asked to stop.
    """
    # Four beats fit into the time after which a lease counts as lost, so one slow write loses nothing.
    beat_seconds = min(10.0, stale_seconds / 4)
    token = uuid.uuid4().hex
    body = orjson.dumps(process_identity() | {"token": token})
    seen: tuple[int, bytes] | None = None
    # The waiter's own monotonic clock: clocks of two machines may differ by minutes.
    seen_at = time.monotonic()
    highest = pause = 0
    while True:
        check_stopping()
        # A listing may lag behind a creation; what is known to be taken stays so.
        highest = max(highest, highest_lease(store, folder))
        if highest == 0 or _holder(store, folder, highest) != "alive":
            # Create-only: of all waiters that see a free number, one gets it.
            if store.create(lease_path(folder, highest + 1), body):
                return Lease(store, folder, highest + 1, beat_seconds, token)
            highest, pause = highest + 1, min(pause + 1, 6)
            time.sleep(random.uniform(0, BACK_OFF_SECONDS * 2**pause))
            continue
        # The number belongs to what is compared, since a new holder counts its beats from 1.
        beat = (highest, _read_or_empty(store, f"{folder}/lease-{highest:06d}.beat"))
        if beat != seen:
            if seen is None:
                waiting(store.read_json(lease_path(folder, highest)))
            seen, seen_at = beat, time.monotonic()
        elif time.monotonic() - seen_at > stale_seconds:
            # Marked, not taken: the next round takes the number as any released one, by the same race.
            store.create(f"{folder}/lease-{highest:06d}.released", b"stale")
            continue
        if finished():
            return None
        # Jitter, so that hundreds of waiters do not list the folder in one moment.
        time.sleep(min(1.0, beat_seconds) * random.uniform(0.75, 1.25))


def holder_of(store: Store, folder: str) -> Holder:
    """Who has the newest lease of a progress folder."""
    number = highest_lease(store, folder)
    return _holder(store, folder, number) if number else "none"


def sign_of_life(store: Store, folder: str) -> str:
    """The object that the holder of a folder's newest lease wrote last."""
    lease = f"{folder}/lease-{highest_lease(store, folder):06d}"
    # The lease itself stands for a holder that has not beaten yet.
    return f"{lease}.beat" if store.exists(f"{lease}.beat") else f"{lease}.json"


def _holder(store: Store, folder: str, number: int) -> Holder:
    if store.exists(f"{folder}/lease-{number:06d}.released"):
        return "none"
    return "dead" if is_dead(store.read_json(lease_path(folder, number))) else "alive"


def _read_or_empty(store: Store, path: str) -> bytes:
    try:
        return store.read(path)
    except FileNotFoundError:
        return b""
