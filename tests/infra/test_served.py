"""What a server says it serves, and how it takes weights. Oracle: real replies over a socket, right ones and bad ones."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infra.language_models.client import EndpointError
from infra.language_models.routes import MOST_BYTES
from infra.language_models.served import ServedModel, served_models
from infra.language_models.weight_servers import weight_server
from infra.settings import EndpointSettings, WeightFolder

REPLIES = {
    "/v1/models": (200, json.dumps({"data": [{"id": "a", "max_model_len": 4096}, {"id": "b"}]}).encode()),
    "/web/models": (200, b"<html>"),
    "/other/models": (200, b'{"models": []}'),
    "/locked/models": (401, b"no"),
    "/endless/models": (200, b" " * (MOST_BYTES + 10)),
    "/moved/models": (302, b"elsewhere"),
    "/moved/collective_rpc": (302, b"elsewhere"),
    "/taken/models": (200, b'{"data": [{"id": "a"}]}'),
    "/broken/collective_rpc": (500, b"the beginning"),
    "/endless/collective_rpc": (200, b" " * (MOST_BYTES + 10)),
    "/web/collective_rpc": (200, b"<html>"),
    "/vllm/collective_rpc": (200, b'{"results": [null]}'),
    "/vllm/reset_prefix_cache": (200, b""),
}
ASKED: list[tuple[str, str | None]] = []
"""Routes that were asked, with the key that came."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self) -> None:
        ASKED.append((self.path, self.headers.get("Authorization")))
        status, body = REPLIES[self.path]
        if status == 302:
            self.send_response(status)
            self.send_header("Location", "/taken/models")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.headers.get("Authorization") == "Bearer planted":
            status, body = REPLIES["/v1/models"]
        self.send_response(status)
        # A server that breaks promises more than it sends.
        self.send_header("Content-Length", str(len(body) + 1000 * (status == 500)))
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
        ("web", "answered no JSON"),
        ("other", "does not list models in the OpenAI protocol"),
        ("locked", "answered HTTP 401"),
        ("endless", "answered more than 4,000,000 bytes"),
    ],
)
def test_other_replies_are_refused(base: str, place: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        served_models(f"{base}/{place}")


@pytest.mark.parametrize("url", ["localhost", "file:///etc", "http://"])
def test_what_is_no_url_of_a_server_is_said(url: str) -> None:
    with pytest.raises(ValueError, match="is no URL of a model server"):
        served_models(url)


def test_nobody_there_is_said() -> None:
    with pytest.raises(ValueError, match="nothing answers at"):
        served_models("http://127.0.0.1:1/v1")


def test_a_key_that_is_not_set_is_refused(base: str) -> None:
    """Sent without it, the request would be refused for a reason that names no variable, or be taken by an open server."""
    before = len(ASKED)
    with pytest.raises(ValueError, match=r"\$NO_SUCH_KEY, which is not set"):
        served_models(f"{base}/locked", "NO_SUCH_KEY")
    with pytest.raises(ValueError, match=r"the key of policy is looked for in \$NO_SUCH_KEY"):
        weights_at(base, "vllm", key_env="NO_SUCH_KEY", served_name="policy")
    assert len(ASKED) == before


def test_no_redirect_takes_the_key_along(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it leads to lists models, so whoever follows it would be content."""
    monkeypatch.setenv("PLANTED_KEY", "sesame")
    before = len(ASKED)
    with pytest.raises(ValueError, match="answered HTTP 302"):
        served_models(f"{base}/moved", "PLANTED_KEY")
    with pytest.raises(EndpointError, match="answered HTTP 302"):
        weights_at(base, "moved", key_env="PLANTED_KEY")
    assert ASKED[before:] == [("/moved/models", "Bearer sesame"), ("/moved/collective_rpc", "Bearer sesame")]


def weights_at(base: str, place: str, **settings: str) -> None:
    folder = WeightFolder(server="vllm", path="/weights")
    # The routes are next to `/v1`.
    told = EndpointSettings(url=f"{base}/{place}/v1", weights=folder, timeout_seconds=20, **settings)
    weight_server(told).load("/weights/0001")


def test_weights_are_handed_over_and_old_prefixes_forgotten(base: str) -> None:
    before = len(ASKED)
    weights_at(base, "vllm")
    assert ASKED[before:] == [("/vllm/collective_rpc", None), ("/vllm/reset_prefix_cache", None)]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("broken", "answered HTTP 500.*VLLM_SERVER_DEV_MODE=1"),
        ("endless", "answered more than 4,000,000 bytes"),
        ("web", "answered no JSON"),
    ],
)
def test_weights_that_a_server_did_not_take_are_told(base: str, place: str, message: str) -> None:
    with pytest.raises(EndpointError, match=message):
        weights_at(base, place)


def test_weights_for_nobody_are_told() -> None:
    with pytest.raises(EndpointError, match=r"nothing answers at .*is the server up"):
        weights_at("http://127.0.0.1:1", "vllm")
