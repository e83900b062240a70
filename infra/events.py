"""What a running stage tells whoever watches: progress, metrics, texts and tables.

A stage talks to `Events`; where the events go is the listener's affair (terminal, dashboard, the parent process).
"""

import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Listener = Callable[..., None]


class Events:
    """Sends events to a listener in this process, to the parent through a pipe, or nowhere."""

    def __init__(self, target: Listener | Connection | None = None):
        self._target = target
        self._lock = threading.Lock()

    def __reduce__(self):
        # A listener is a function of this process and does not travel; a pipe does.
        return (Events, (self._target if isinstance(self._target, Connection) else None,))

    def send(self, kind: str, *values: Any) -> None:
        if self._target is None:
            return
        if isinstance(self._target, Connection):
            # Threads of a stage may tell at the same time, and a pipe would mix what they send.
            with self._lock:
                self._target.send((kind, *values))
        else:
            self._target(kind, *values)
