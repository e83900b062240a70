"""What a server says it serves. Oracle: real replies over a socket, right ones and bad ones."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infra.language_models.served import MOST_BYTES, ServedModel, served_models

REPLIES = {
    "/v1/models": (200, json.dumps({"data": [{"id": "a", "max_model_len": 4096}, {"id": "b"}]}).encode()),
    "/web/models": (200, b"<html>"),
    "/other/models": (200, b'{"models": []}'),
    "/locked/models": (401, b"no"),
    "/endless/models": (200, b" " * (MOST_BYTES + 10)),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, body = REPLIES[self.path]
        if self.headers.get("Authorization") == "Bearer planted":
            status, body = REPLIES["/v1/models"]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *values: object) -> None:
        """Nothing: the test's output is no server's log."""


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_models_and_their_windows_are_read(base: str) -> None:
    assert served_models(f"{base}/v1/") == [ServedModel("a", 4096), ServedModel("b", None)]


def test_the_key_is_that_of_its_variable(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_KEY", "planted")
    assert len(served_models(f"{base}/locked", "PLANTED_KEY")) == 2


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("web", "does not list models in the OpenAI protocol"),
        ("other", "does not list models in the OpenAI protocol"),
        ("locked", "answers HTTP 401"),
        ("endless", "lists more than 4,000,000 bytes"),
    ],
)
def test_other_replies_are_refused(base: str, place: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        served_models(f"{base}/{place}")


def test_nobody_there_is_said() -> None:
    with pytest.raises(ValueError, match="nothing answers at"):
        served_models("http://127.0.0.1:1/v1")
