"""ASGI middleware that asks Prefect's app again when its SQLite database was locked.

SQLite has one writer: a transaction that read before another one wrote is rolled back, and Prefect answers 503. Its Python
client tries again, but a browser's form and a script are simply refused. Nothing was kept, so asking again is safe.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PATIENCE_SECONDS = 20.0
"""How long a request is tried for before its caller gets the 503."""
FIRST_WAIT_SECONDS = 0.05
_LONGEST_WAIT_SECONDS = 1.0
LARGEST_BODY = 4 << 20
"""Bytes of a request that are kept for another try; a larger one is passed on and tried once."""


class BusyRetry:
    """Answers 503 only when the app still does after `_PATIENCE_SECONDS`."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Imported here: it takes a while, and the command line imports this module.
        from sqlalchemy.exc import SQLAlchemyError

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, whole = await _read(receive)
        deadline, wait = time.monotonic() + _PATIENCE_SECONDS, FIRST_WAIT_SECONDS
        while True:
            last = not whole or time.monotonic() + wait > deadline
            busy = _Busy(send, pass_on=last)
            # Each try gets a scope of its own, which the app's routers write into.
            try:
                await self._app(dict(scope), _replay(body, receive), busy)
            except SQLAlchemyError:
                # Starlette answers an error and then raises it as well, for the server's log.
                if last or not busy.found:
                    raise
            if last or not busy.found:
                return
            # A random part, so that requests that met once do not meet again.
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)


class _Busy:
    """Passes an answer on, unless it is a 503 and there is another try."""

    def __init__(self, send: Send, *, pass_on: bool):
        self._send = send
        self._pass_on = pass_on
        self.found = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.found = message["status"] == 503
        if self._pass_on or not self.found:
            await self._send(message)


async def _read(receive: Receive) -> tuple[list[Message], bool]:
    """The messages of a request's body so far, and whether they are all of it."""
    messages, size = [], 0
    while size <= LARGEST_BODY:
        message = await receive()
        messages.append(message)
        size += len(message.get("body", b""))
        # A disconnect is the other kind of message, and after it nothing comes.
        if message["type"] != "http.request" or not message.get("more_body", False):
            return messages, True
    return messages, False


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """A receive that gives these messages first."""
    left = iter(messages)

    async def replayed() -> Message:
        for message in left:
            return message
        # The rest of the messages comes from the client itself.
        return await receive()

    return replayed
