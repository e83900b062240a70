"""A request to stop: how a run hears of it, and how an attempt that has lost its lease ends.

Loops that may last call `check_stopping` between two pieces of work. Example: Ctrl-C calls `request_stop`; the shard loop ends
at its next shard with `Interrupted`, what is committed stays, and the same command resumes.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Interrupted(Exception):
    """The run was asked to stop; what is committed stays, and the same command resumes."""


_stopping = threading.Event()
_in_order = threading.Event()
_fence: ContextVar[Callable[[], None] | None] = ContextVar("olmo2_fence", default=None)


def request_stop() -> None:
    """Let every loop that asks `check_stopping` end at its next piece of work."""
    _stopping.set()


def wait_for_stop(seconds: float | None = None) -> bool:
    """Whether the run was asked to stop, or is within so many seconds (None: wait until it is)."""
    return _stopping.wait(seconds)


def is_stopping() -> bool:
    """Whether the run was asked to stop."""
    return _stopping.is_set()


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Whoever works inside asks `is_stopping` itself and ends at a point from which the work goes on."""
    _in_order.set()
    try:
        yield
    finally:
        _in_order.clear()


def ends_in_order() -> bool:
    """Whether this process is left to end by itself once it was asked to stop."""
    return _in_order.is_set()


def check_stopping() -> None:
    """Raise Interrupted once the run was asked to stop; and what the fence of this attempt raises, if it has one."""
    if _stopping.is_set():
        raise Interrupted("stopped on request; the same command resumes")
    fence = _fence.get()
    if fence is not None:
        fence()


@contextmanager
def fenced(fence: Callable[[], None]) -> Iterator[None]:
    """Whatever this attempt does inside ends when `fence`, asked every second or more often, raises."""
    token = _fence.set(fence)
    try:
        yield
    finally:
        _fence.reset(token)
