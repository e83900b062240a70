"""A server that speaks the OpenAI protocol on a real socket, with faults that depend on the request alone.

Whether a request meets a fault is decided by its hash, and a request meets its fault on its first sending only, so that
every run of a test sees the same faults whatever the timing.
"""

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_TWICE = ("none", "too_many", "broken_server", "broken_json", "no_choices", "hang_up", "none")
FAULTS = (*_TWICE, *_TWICE, "stall")
"""Equally likely; a stall takes a client's whole time limit and so comes once where the others come twice."""

Reply = Callable[[dict[str, Any]], str | dict[str, Any] | int]
Control = Callable[[str, dict[str, Any]], dict[str, Any] | int]
"""Answers a route outside `/v1`, such as those by which a server takes other weights: (route, body) -> JSON or a status."""


class OpenAIServer:
    """Answers with `reply(body)`: a text, a whole JSON body, or a status. Use as a context manager."""

    def __init__(
        self,
        reply: Reply,
        *,
        faults: bool = False,
        stall_seconds: float = 20.0,
        delay_seconds: float = 0.0,
        control: Control | None = None,
    ):
        self.reply = reply
        self.control = control
        self.faults = faults
        self.stall_seconds = stall_seconds
        self.delay_seconds = delay_seconds
        self.models: list[dict[str, Any]] | None = None
        """What `GET /models` lists; None answers 404."""
        self.sent: Counter[str] = Counter()
        """Sendings of every request."""
        self.paid: Counter[str] = Counter()
        """Answers sent out for every request."""
        self.met: Counter[str] = Counter()
        """Faults that were played."""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._http = QuietServer(("127.0.0.1", 0), handler_of(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> "OpenAIServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def fault_of(self, key: str) -> str:
        """The fault of a request when it is sent for the first time."""
        return FAULTS[int(key, 16) % len(FAULTS)] if self.faults and self.sent[key] == 1 else "none"

    def come(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[str, str]:
        """Count a request; returns its hash and its fault."""
        key = hashlib.sha256(json.dumps([path, body], sort_keys=True).encode()).hexdigest()
        with self._lock:
            self.sent[key] += 1
            self.bodies.append(body)
            self.headers.append(headers)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            fault = self.fault_of(key)
            self.met[fault] += 1
        return key, fault

    def gone(self) -> None:
        with self._lock:
            self._at_once -= 1

    def pay(self, key: str) -> None:
        with self._lock:
            self.paid[key] += 1


class QuietServer(ThreadingHTTPServer):
    """Does not print that a client went away: some of them are killed."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def handler_of(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    """A request handler for one server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if server.models is None or not self.path.endswith("/models"):
                return self.say(404, b"{}")
            return self.say(200, json.dumps({"object": "list", "data": server.models}).encode())

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.loads(data) if data else {}
            if not self.path.startswith("/v1/"):
                said = server.control(self.path, body) if server.control else 404
                status = said if isinstance(said, int) else 200
                return self.say(status, b"{}" if isinstance(said, int) else json.dumps(said).encode())
            key, fault = server.come(self.path, body, dict(self.headers))
            try:
                self.play(fault, key, body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                server.gone()

        def play(self, fault: str, key: str, body: dict[str, Any]) -> None:
            match fault:
                case "too_many":
                    self.say(429, b'{"error": "slow down"}', {"Retry-After": "0.02"})
                case "broken_server":
                    self.say(500, b"<html>oops</html>")
                case "stall":
                    # A status and half a body, then silence.
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                    self.wfile.flush()
                    time.sleep(server.stall_seconds)
                    self.close_connection = True
                case "broken_json":
                    self.say(200, b'{"choices": [{"mess')
                case "no_choices":
                    self.say(200, b'{"error": {"message": "overloaded"}}')
                case "hang_up":
                    self.close_connection = True
                    self.connection.close()
                case _:
                    time.sleep(server.delay_seconds)
                    self.answer(key, body)

        def answer(self, key: str, body: dict[str, Any]) -> None:
            reply = server.reply(body)
            if isinstance(reply, int):
                return self.say(reply, b'{"error": {"message": "no"}}')
            if isinstance(reply, str):
                reply = completed(reply, chat=self.path.endswith("/chat/completions"))
            server.pay(key)
            return self.say(200, json.dumps(reply).encode())

        def say(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def completed(text: str, *, chat: bool = True, finish: str = "stop") -> dict[str, Any]:
    """An answer's JSON; 10 prompt tokens, and as many answer tokens as words."""
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "id": f"answer-{time.time_ns()}",
        "choices": [{"index": 0, "finish_reason": finish, **said}],
        "usage": {"prompt_tokens": 10, "completion_tokens": len(text.split())},
    }
