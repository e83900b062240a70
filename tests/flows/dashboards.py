"""A real `olmo2 dashboard` for tests, and requests to it with any headers."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class Reply:
    """An answer to a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class RunningDashboard:
    """A dashboard and the folder that it was started in."""

    port: int
    folder: Path
    process: subprocess.Popen

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """One request with exactly these headers (and a Host of its own where none is given)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        sent = {"Host": f"127.0.0.1:{self.port}"} | ({"Content-Type": "application/json"} if data else {})
        for name, value in (sent | (headers or {})).items():
            connection.putheader(name, value)
        if data is not None:
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        answer = connection.getresponse()
        reply = Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        connection.close()
        return reply

    def api(self, path: str, body: Any = None, method: str = "") -> Any:
        """What the API answers to a program. AssertionError for a refusal."""
        reply = self.request(method or ("GET" if body is None else "POST"), f"/api{path}", body)
        assert reply.status < 300, (path, reply)
        return reply.json() if reply.body else None

    def deployment(self, name: str) -> str:
        return next(item["id"] for item in self.api("/deployments/filter", {}) if item["name"] == name)

    def ended(self, run: str, seconds: float = 120) -> dict[str, Any]:
        """A flow run once it has ended."""

        def end() -> dict[str, Any] | None:
            found = self.api(f"/flow_runs/{run}")
            return found if found["state_type"] in FINAL else None

        return until(end, seconds, f"end of run {run}")


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of a condition that is asked twice a second."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"no {what} within {seconds} s")


@contextlib.contextmanager
def running_dashboard(folder: Path, port: int, *options: str, **environment: str) -> Iterator[RunningDashboard]:
    """`olmo2 dashboard` in a folder, with a Prefect home of its own there; stopped by Ctrl-C at the end."""
    surroundings = {
        name: value for name, value in os.environ.items() if name not in ("AWS_ENDPOINT_URL", "PREFECT_API_URL")
    }
    surroundings |= {
        "PREFECT_HOME": str(folder / "prefect"),
        "OLMO2_STORE": "store",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "flows.cli", "dashboard", "--port", str(port), *options]
    process = subprocess.Popen(
        command, cwd=folder, env=surroundings | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in line, line + process.stdout.read()
        yield RunningDashboard(port, folder, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)
