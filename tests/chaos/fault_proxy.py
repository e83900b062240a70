"""An S3 endpoint with faults: a proxy that answers some requests badly, by one seed, and passes the others on.

Faults: 503 and 429 (before anything is done), a reset in the middle of the answer, an answer that never comes, a reply lost after
the work was done (of a create-only write too), a wrong ETag, and slow answers.
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlparse

KINDS = ("503", "429", "reset", "hang", "lost reply", "wrong etag", "slow")
HANG_SECONDS = 3.0
"""Longer than what the client waits for an answer in these tests."""
SLOW_SECONDS = 0.3
PASSED_ON = ("transfer-encoding", "connection", "content-length")
"""Headers that the proxy sets by itself."""


class FaultProxy:
    """The proxy, for the time of a `with`. `rate` is the share of requests that go wrong; `counts` are faults by kind."""

    def __init__(self, endpoint: str, rate: float, seed: int, kinds: tuple[str, ...] = KINDS):
        self.target = urlparse(endpoint)
        self.rate, self.kinds = rate, kinds
        self.counts: Counter[str] = Counter()
        self.hanging: Counter[str] = Counter()
        """Requests by method whose answer does not come just now."""
        self._chance = random.Random(seed)
        self._lock = threading.Lock()

    def choose(self) -> str:
        """The fault of the next request; empty for none."""
        with self._lock:
            fault = self._chance.choice(self.kinds) if self._chance.random() < self.rate else ""
            self.counts[fault or "none"] += 1
            return fault

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultProxy

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        body = self._body()
        fault = self.proxy.choose()
        if fault in ("503", "429"):
            code = "SlowDown" if fault == "503" else "TooManyRequests"
            self._send(
                int(fault), [("Content-Type", "application/xml")], f"<Error><Code>{code}</Code></Error>".encode()
            )
            return
        if fault == "hang":
            self.proxy.hanging[self.command] += 1
            time.sleep(HANG_SECONDS)
            self.proxy.hanging[self.command] -= 1
            self._reset()
            return
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        status, headers, data = self._ask(body)
        if fault == "lost reply":
            self._reset()
        elif fault == "reset":
            self._send(status, headers, data, cut=len(data) // 2)
        elif fault == "wrong etag":
            self._send(status, [(name, '"0"' if name.lower() == "etag" else value) for name, value in headers], data)
        else:
            self._send(status, headers, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815 - http.server's own names

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the real server answers. The Host header stays, since the request is signed with it."""
        target = self.proxy.target
        assert target.hostname is not None
        connection = http.client.HTTPConnection(target.hostname, target.port, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in (*PASSED_ON, "expect"):
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), data

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, cut: int | None = None) -> None:
        self.send_response_only(status)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
        for name, value in headers:
            if name.lower() not in PASSED_ON:
                self.send_header(name, value)
        # The answer to a HEAD tells the object's length and has no body.
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        self.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self._reset()

    def _reset(self) -> None:
        """End the connection as a crash does: RST, not FIN."""
        self.wfile.flush()
        linger: Any = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()
