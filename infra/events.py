"""What a running stage tells whoever watches: progress, metrics, texts and tables.

A stage talks to `Events`; where the events go is the listener's affair (terminal, dashboard, the parent process). Each kind
of event is a frozen dataclass, which a listener tells apart with `match`.

    >>> told = []
    >>> Events(told.append).send(Warned("the disk is nearly full"))
    >>> told
    [Warned(text='the disk is nearly full')]
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True)
class Progress:
    """How far one piece of a stage's work is."""

    description: str
    done: float
    total: float | None
    """None where it is not known."""
    unit: str


@dataclass(frozen=True)
class Metrics:
    """Live metrics of a step."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Waiting:
    """The stage waits for something: another process, a node of the cluster."""

    text: str


@dataclass(frozen=True)
class Warned:
    """Something that a person should know of and the stage goes on with."""

    text: str


@dataclass(frozen=True)
class Markdown:
    """A text for the dashboard."""

    key: str
    text: str


@dataclass(frozen=True)
class TableRows:
    """A table for the dashboard."""

    key: str
    rows: Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class LogKept:
    """Where the whole traceback of a failed stage is."""

    place: str


@dataclass(frozen=True)
class Ended:
    """The stage has its artifact."""

    outcome: Any
    """An `infra.execution.attempt.Outcome`."""


@dataclass(frozen=True)
class Failed:
    """The stage ended with an error, or was asked to stop."""

    error: BaseException


Event = Progress | Metrics | Waiting | Warned | Markdown | TableRows | LogKept | Ended | Failed
Listener = Callable[[Event], None]
"""Hears of one stage."""
LabelledListener = Callable[[str, Event], None]
"""Hears of all stages: the label of the one that tells, and the event."""


@dataclass(frozen=True)
class Returned:
    """The last message of a stage's process, worker or actor: what the stage function returned."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """The last message of a stage's process, worker or actor: what the stage function raised."""

    error: BaseException


StageMessage = Event | Returned | Raised
"""What comes from where a stage runs."""


def silent(event: Event) -> None:
    """The listener of whoever only wants the result."""


class Events:
    """Sends events to a listener in this process, to the parent through a pipe, or nowhere."""

    def __init__(self, target: Listener | Connection | None = None):
        self._target = target
        self._lock = threading.Lock()

    def __reduce__(self):
        return (Events, (self._target if isinstance(self._target, Connection) else None,))

    def send(self, event: Event) -> None:
        """Tell an event. Threads of a stage may call this at once."""
        if self._target is None:
            return
        if isinstance(self._target, Connection):
            with self._lock:
                self._target.send(event)
        else:
            self._target(event)
