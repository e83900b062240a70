"""Retries on object storage: which faults pass by themselves, and for how long they are waited out.

A server that is busy (429, 5xx), a connection that is reset or hangs and an answer that ends early pass. The pause doubles up to
half a minute, and a random part of it is waited (full jitter), so that the workers of a cluster do not come back together.
A server that has refused the very first connection is not there; nobody waits for it.

What only reads a small object is asked once more as soon as the answer is late, and the first answer counts (a hedged request;
Dean and Barroso, The Tail at Scale, 2013): the few connections that hang would else hold up all that comes after them.
"""

import asyncio
import errno
import http.client
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

R = TypeVar("R")

PATIENCE_SECONDS = 300.0
"""How long one request to a store is tried again; then the stage fails, and the same command resumes it."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0
BUSY = {409, 429, 500, 502, 503, 504}
"""HTTP answers that say nothing of the object: two conditional writes met, too many requests, the server's own trouble."""
_CONNECT_SECONDS = 10
ANSWER_SECONDS = 30
"""A connection on which nothing moves for so long hangs."""
LATE_SECONDS = 0.5
"""An answer to a small question takes hundredths of a second; after so long it is asked for on a second connection."""


def with_retries(call: Callable[[], R], patience: float, *, retry_refused: bool = True) -> R:
    """What `call` returns, tried again while its errors are transient and `patience` seconds have not passed.

    `retry_refused` says whether an endpoint that takes no connection is waited for as well.
    """

    def passes(error: BaseException) -> bool:
        return is_transient(error) and (retry_refused or not is_refused(error))

    attempts = Retrying(
        retry=retry_if_exception(passes),
        wait=wait_random_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
        stop=stop_before_delay(patience),
        reraise=True,
    )
    return attempts(call)


async def first_answer(ask: Callable[[], Coroutine[Any, Any, R]], late_seconds: float = LATE_SECONDS) -> R:
    """The answer, or the error, of whichever ends first: `ask()`, or another `ask()` that is begun when the first one is late.

    Asking must change nothing. The one that is not needed is cancelled.
    """
    asked = [asyncio.create_task(ask())]
    try:
        done, _ = await asyncio.wait(asked, timeout=late_seconds)
        if not done:
            asked.append(asyncio.create_task(ask()))
            done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in asked:
            task.cancel()
            # An error that nobody asks for would be printed when the task is collected.
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


def is_transient(error: BaseException) -> bool:
    """Whether an error of an object store's client passes by itself."""
    import aiohttp
    from botocore.exceptions import ConnectionError as Unconnected
    from botocore.exceptions import HTTPClientError
    from botocore.parsers import ResponseParserError

    status = http_status(error)
    if status is not None:
        return status in BUSY
    if isinstance(error, OSError) and error.errno in (errno.EBUSY, errno.EREMOTEIO):
        return True
    passing = (TimeoutError, ConnectionError, aiohttp.ClientError, http.client.IncompleteRead)
    return isinstance(error, (*passing, Unconnected, HTTPClientError, ResponseParserError))


def is_refused(error: BaseException) -> bool:
    """Whether nobody took the connection."""
    from botocore.exceptions import EndpointConnectionError

    return isinstance(error, EndpointConnectionError | ConnectionRefusedError)


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of s3fs; None if there was no answer."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        # s3fs turns botocore's error into an OSError and keeps it as the cause.
        error = error.__cause__
    return None


def s3_options() -> dict[str, object]:
    """How s3fs is opened: one request fails once, in bounded time, and its retries are ours.

    s3fs repeats single requests of a long transfer itself, five times; it is told which errors to repeat.
    """
    import s3fs.core

    s3fs.core.set_custom_error_handler(lambda error: is_transient(error) and not is_refused(error))
    # Said here, not left to botocore: fsspec hands out one client for equal options, whatever the environment says by then.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, object] = {
        "config_kwargs": {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": ANSWER_SECONDS,
        }
    }
    return options | {"endpoint_url": endpoint} if endpoint else options
