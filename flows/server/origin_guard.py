"""A guard around a local web server: it answers its own page and programs, and no other website.

A browser lets any page send requests to 127.0.0.1. Such a request is told by three headers that a page cannot forge:
Host (a foreign name means DNS rebinding), Origin (sent with every fetch, form and websocket) and Sec-Fetch-Site.
"""

import json
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAMES = ("127.0.0.1", "localhost")
OWN_SITES = (b"same-origin", b"none")
"""Sec-Fetch-Site of the own page, and of an address that a person typed."""
_POLICY = [
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
]
"""No other page may frame, embed or hold on to an answer."""


def host_headers(names: Iterable[str], port: int) -> frozenset[bytes]:
    """What a Host header says of these names and this port; a browser leaves port 80 out."""
    # An IPv6 address stands in brackets in a Host header.
    written = [f"[{name}]" if ":" in name else name.lower() for name in names]
    named = {f"{name}:{port}" for name in written} | (set(written) if port == 80 else set())
    return frozenset(name.encode() for name in named)


class OriginGuard:
    """ASGI middleware that refuses with 403 whatever is not from the own page or from a program.

    `hosts` are the allowed Host headers; None allows any, for a server that asks for a password and is reached under names
    that it does not know. Under the name `localhost` a page is sent on to `canonical`, so that it has one origin only.
    With `keep_policy` the app's own content policy holds together with ours; a browser enforces both.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: frozenset[bytes] | None,
        canonical: str,
        api: str = "/api",
        *,
        keep_policy: bool = False,
    ):
        self._app = app
        self._hosts = hosts
        self._canonical = canonical.encode()
        self._api = api
        self._keep_policy = keep_policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refused = self.refusal(scope)
        if refused is not None:
            await _refuse(scope, receive, send, refused)
        elif place := self._moved(scope):
            await _answer(send, 307, b"", [(b"location", place)])
        else:
            await self._app(scope, receive, _guarded(send, self._canonical, self._keep_policy))

    def refusal(self, scope: Scope) -> str | None:
        """Why a request is refused, or None."""
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        # Two Host headers may be read differently by the guard and the server behind it.
        if len(hosts) != 1 or (self._hosts is not None and hosts[0].lower() not in self._hosts):
            known = "" if self._hosts is None else f"; this server is {self._canonical.decode()}"
            return f"the Host header names {_shown(hosts)}{known}"
        # Behind a password the server may stand behind TLS, so its page may be of either scheme.
        own = {b"http://" + hosts[0].lower()} | ({b"https://" + hosts[0].lower()} if self._hosts is None else set())
        if any(origin.lower() not in own for origin in origins):
            return f"the request comes from a page of {_shown(origins)}; only this server's own page may ask"
        if scope["type"] == "websocket" and origins:
            return None  # browsers do not agree on Sec-Fetch-Site here, and all of them send Origin
        sites = _values(scope, b"sec-fetch-site")
        if any(site not in OWN_SITES for site in sites) and not self._is_link(scope):
            return f"the request comes from another site (Sec-Fetch-Site {_shown(sites)})"
        return None

    def _is_link(self, scope: Scope) -> bool:
        """Whether somebody follows a link to a page here, which tells the page they come from nothing."""
        return (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and _values(scope, b"sec-fetch-mode") == [b"navigate"]
            # Only a document: an image or a script from another page is no link that somebody follows.
            and _values(scope, b"sec-fetch-dest") == [b"document"]
            and not _below(scope["path"], self._api)
        )

    def _moved(self, scope: Scope) -> bytes | None:
        """Where a page that was opened as `localhost` lies: its scripts ask under the canonical name."""
        name = _values(scope, b"host")[0].lower().rpartition(b":")[0] or _values(scope, b"host")[0].lower()
        path = scope.get("raw_path") or scope["path"].encode()
        is_page = scope["type"] == "http" and b"navigate" in _values(scope, b"sec-fetch-mode")
        if name != b"localhost" or b"//localhost" in self._canonical or not is_page or not path.startswith(b"/"):
            return None
        query = scope.get("query_string", b"")
        return self._canonical + path + (b"?" + query if query else b"")


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def _shown(values: list[bytes]) -> str:
    return ", ".join(repr(value[:100].decode("latin-1")) for value in values) or "nothing"


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _guarded(send: Send, canonical: bytes, keep_policy: bool) -> Send:
    """Adds the policy to an answer, and takes out leave for any other origin."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            named = {name for name, _ in _POLICY} - ({b"content-security-policy"} if keep_policy else set())
            kept = [
                (name, value)
                for name, value in message.get("headers", [])
                if name.lower() not in named
                # Leave to read is kept for the own origin only.
                and not (name.lower() == b"access-control-allow-origin" and value.lower() != canonical)
            ]
            # Ours stand in place of the app's own.
            message = {**message, "headers": [*kept, *_POLICY]}
        await send(message)

    return guarded


async def _refuse(scope: Scope, receive: Receive, send: Send, reason: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        # Closed before it was accepted: the client sees status 403.
        await send({"type": "websocket.close", "code": 1008, "reason": reason[:100]})
        return
    body = json.dumps({"detail": f"refused: {reason}"}).encode()
    await _answer(send, 403, body, [(b"content-type", b"application/json")])


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length, *_POLICY]})
    await send({"type": "http.response.body", "body": body})
