"""One Ray connection for this process: started at first use, shared by all stages, let go soon after the last one.

A local Ray costs most of a gigabyte and some cores, which later training stages need. A process that is connected to a Ray
also dies with that Ray.
"""

import atexit
import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psutil
from tenacity import retry, stop_after_attempt

from infra.processor import wait_passively
from infra.settings import parsed_address

OBJECT_STORE_BYTES = 256 * 2**20
"""Shards hand over small JSON values, so a local Ray needs little shared memory."""

LINGER_SECONDS = 10.0
"""How long the connection outlives its last user: the next data stage usually follows at once."""

_TOKEN_BYTES = 32
"""Of a token that nobody guesses."""
_END_SECONDS = 1.0
"""How long the processes of a local Ray that was shut down may take to end by themselves."""
_KILL_SECONDS = 5.0
"""How long the kernel may take to end those that were killed."""
START_SECONDS = "90"
"""How long the server of a local Ray may take to begin."""
START_ATTEMPTS = 3
"""Tries to start a local Ray."""
PROBE_SECONDS = 5.0
"""How long the head of a cluster may take to answer; Ray itself takes minutes to say that nobody is there."""

_lock = threading.Lock()
# Ray asks the kernel to kill its processes when the thread that started them ends (PR_SET_PDEATHSIG). A stage's thread ends
# with its phase, so a thread that lives as long as this process starts them instead.
_keeper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray keeper")
_started: list[psutil.Process] = []
"""The raylet of the local Ray that was started here, and its agents; what somebody else started here is not ours to end."""
_users = 0
_timer: threading.Timer | None = None
_made_here = False
"""Whether this process made its connection itself. One of Ray's own workers has it from its start, and keeps it."""


def check_answers(address: str) -> None:
    """Raise ValueError where no cluster answers at an address; `local` and `off` need none."""
    place = parsed_address(address)
    if place is None:
        return
    try:
        # Connected and closed at once: Ray would wait minutes for a head that is not there.
        socket.create_connection(place, timeout=PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"no Ray answers at execution.ray={address} ({error}); start its head there (ray start --head --port "
            f"{place[1]}), mend the address, or set execution.ray to local (this machine) or off"
        ) from error


@contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """The `ray` module, connected to a local cluster (`local`) or to the one at an address."""
    global _users, _made_here
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else Ray hides all GPUs from tasks that ask for none, by an empty CUDA_VISIBLE_DEVICES.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray gives its server 30 s to begin, which a machine with other work to do may need more of.
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", START_SECONDS)
    # What is forked here becomes another program at once; gRPC's care for forks that go on using it may crash them before.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    wait_passively()
    if address == "local":
        _ask_for_a_token()
    import ray

    with _lock:
        _users += 1
        # The last user has let go, but the timer has not fired yet.
        if _timer is not None:
            _timer.cancel()
    try:
        with _lock:
            if not ray.is_initialized():
                _keeper.submit(_connect, ray, address).result()
                _made_here = True
        yield ray
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _made_here:
                _linger()


def _ask_for_a_token() -> None:
    """Let the local Ray answer only those who know a token that this process makes: its ports are open on all interfaces.

    Ray reads both variables when it is imported, and its workers inherit them. Our programs import it here first; one that
    imported it before keeps its own environment. Whoever set a mode has decided that already.
    """
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_urlsafe(_TOKEN_BYTES))


def _connect(ray: ModuleType, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        _start(ray, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    else:
        ray.init(address=address, **quiet)
    atexit.register(_end, ray)


@retry(stop=stop_after_attempt(START_ATTEMPTS), reraise=True)
def _start(ray: ModuleType, **settings: Any) -> None:
    """A local Ray.

    Ray forks its servers from this process. Where threads of an earlier Ray are still in it, the fork has been seen to crash
    before it became the server; the next try makes another.
    """
    # What a failed try has left would make the next one fail as well.
    _end(ray)
    others = _raylets()
    try:
        ray.init(address="local", **settings)
    finally:
        _started.extend(_raylets() - others)


def _linger() -> None:
    global _timer
    _timer = threading.Timer(LINGER_SECONDS, _let_go)
    _timer.daemon = True
    _timer.start()


def _let_go() -> None:
    import ray

    # At the interpreter's end the keeper takes no more work, and the exit handler does this.
    with _lock, contextlib.suppress(RuntimeError):
        # A new user may have come between the timer's end and the lock.
        if _users == 0:
            _keeper.submit(_end, ray).result()


def _end(ray: ModuleType) -> None:
    """Let go of the Ray there is, and end what is left of one that was started here.

    Its raylet may be killed before it has ended its agents: by the kernel, since the keeper ends before the exit handlers run,
    or by Ray, which gives it one second. The agents then look for it for up to a minute.
    """
    left = {*_started}
    for process in _started:
        # It may have ended already.
        with contextlib.suppress(psutil.NoSuchProcess):
            left.update(process.children(recursive=True))
    _started.clear()
    ray.shutdown()
    _, alive = psutil.wait_procs(left, timeout=_END_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_KILL_SECONDS)


def _raylets() -> set[psutil.Process]:
    """Those that this process has started, for its own Ray or for another one, with what they have started."""
    found = set()
    for child in psutil.Process().children():
        # It may end while it is looked at.
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "raylet":
                found |= {child, *child.children(recursive=True)}
    return found
