"""Requests to a model server that ask no model: which models it has, which weights it shall take.

Questions to a model go through `client.py`, which is patient; these are sent once, and fail at once.
"""

from contextlib import suppress
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import orjson

from infra.language_models.client import EndpointError, shown
from infra.secrets import without_secrets

MOST_BYTES = 4_000_000
"""Of an answer; a server that sends without end is refused."""
_REFUSAL_BYTES = 4_096
"""Of a refusal's text, of which only the beginning is shown."""


class _NoRedirect(HTTPRedirectHandler):
    """Follows no redirect: the key is for the server that was named, and `urllib` would send it to any other."""

    def redirect_request(self, *_: object) -> None:
        """None, so that a redirect is an error like any other status."""


_opener = build_opener(_NoRedirect)


def ask_route(request: Request, timeout_seconds: float, way_out: str) -> Any:
    """The JSON that a route answers, None for an empty body. The limit is that of each wait for the server, in seconds.

    Raises EndpointError where nobody answers, for a refusal or a redirect, for more than MOST_BYTES and for what is no JSON; its
    text ends with the way out.
    """
    url = request.full_url
    try:
        with _opener.open(request, timeout=timeout_seconds) as response:
            content = response.read(MOST_BYTES + 1)
    except HTTPError as error:
        raise EndpointError(f"{url} answered HTTP {error.code}: {shown(_text(error))}; {way_out}") from error
    except (OSError, HTTPException) as error:
        # URLError and TimeoutError are OSErrors, and so is a connection that breaks within an answer.
        raise EndpointError(f"nothing answers at {url}: {without_secrets(str(error))}; {way_out}") from error
    if len(content) > MOST_BYTES:
        raise EndpointError(f"{url} answered more than {MOST_BYTES:,} bytes; {way_out}")
    try:
        return orjson.loads(content) if content.strip() else None
    except orjson.JSONDecodeError as error:
        raise EndpointError(f"{url} answered no JSON: {error}; {way_out}") from error


def _text(refusal: HTTPError) -> bytes:
    """What a refusal says; nothing where the connection breaks meanwhile, for its status tells enough."""
    with suppress(OSError, HTTPException):
        return refusal.read(_REFUSAL_BYTES)
    return b""
