"""Retries on object storage: which faults pass by themselves, and for how long they are waited out.

A server that is busy (429, 5xx), a connection that is reset or hangs and an answer that ends early pass. The pause doubles up to
half a minute, and a random part of it is waited (full jitter), so that the workers of a cluster do not come back together.
A server that has refused the very first connection is not there; nobody waits for it.
"""

import errno
import http.client
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")

PATIENCE_SECONDS = 300.0
"""How long one request to a store is tried again; then the stage fails, and the same command resumes it."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0
BUSY = {409, 429, 500, 502, 503, 504}
"""HTTP answers that say nothing of the object: two conditional writes met, too many requests, the server's own trouble."""
CONNECT_SECONDS = 10
ANSWER_SECONDS = 30
"""A connection on which nothing moves for so long hangs."""


def with_retries(call: Callable[[], R], patience: float, *, retry_refused: bool = True) -> R:
    """What `call` returns, tried again while its errors are transient and `patience` seconds have not passed.

    `retry_refused` says whether an endpoint that takes no connection is waited for as well.
    """
    deadline = time.monotonic() + patience
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except Exception as error:  # every kind is looked at, and raised unless it is known to be transient
            wait = random.uniform(0, pause)
            refused = is_refused(error) and not retry_refused
            if refused or not is_transient(error) or time.monotonic() + wait > deadline:
                raise
        time.sleep(wait)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


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
        error = error.__cause__
    return None


def s3_options() -> dict[str, Any]:
    """How s3fs is opened: one request fails once, in bounded time, and its retries are ours.

    s3fs repeats single requests of a long transfer itself, five times; it is told which errors to repeat.
    """
    import s3fs.core

    s3fs.core.set_custom_error_handler(lambda error: is_transient(error) and not is_refused(error))
    return {
        "config_kwargs": {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": ANSWER_SECONDS,
        }
    }
