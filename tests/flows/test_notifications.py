"""Notifications of a real dashboard: runs that end and stages that wait, told to sinks on this machine.

Oracle: what the sinks received, a web hook and a mail server.
"""

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest

from flows.running.dashboard import prefect_file
from flows.server.notifications import FLOWS, check_addresses
from tests.conftest import free_port
from tests.flows.dashboards import running_dashboard, until


@contextmanager
def web_sink() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web hook that keeps what it is sent."""
    got: list[dict[str, Any]] = []

    class Sink(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook?key=planted-secret", got
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def mail_sink() -> Iterator[tuple[int, list[str]]]:
    """A mail server that keeps the messages; it speaks as much SMTP as a client without a login needs."""
    got: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 sink\r\n")
        while line := (await reader.readline()).decode().strip():
            word = line.upper()
            if word == "DATA":
                writer.write(b"354 go on\r\n")
                lines = []
                while (text := (await reader.readline()).decode()) != ".\r\n":
                    lines.append(text)
                got.append("".join(lines))
            if word == "QUIT":
                writer.write(b"221 bye\r\n")
                break
            writer.write(b"250 sink\r\n")
        writer.close()

    loop, ready, ports = asyncio.new_event_loop(), threading.Event(), []

    async def serve() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        async with server:
            await server.serve_forever()

    def run() -> None:
        with pytest.raises(RuntimeError, match="stopped before"):
            loop.run_until_complete(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield ports[0], got
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def test_what_is_told_is_what_prefect_yaml_can_start():
    named = prefect_file().read_text()
    for flow in FLOWS:
        assert f"name: {flow.removeprefix('microanneal-')}\n" in named


@pytest.mark.parametrize(
    "address", ["", "hooks.slack.com/x", "ftp://planted-secret@host", "https://", "javascript:alert(1)"]
)
def test_what_is_no_address_is_refused_without_repeating_it(address: str):
    with pytest.raises(ValueError, match="address 1 of --notify") as refused:
        check_addresses([address])
    assert "planted-secret" not in str(refused.value)


@pytest.mark.slow
def test_ends_of_runs_and_waiting_stages_are_told_to_a_web_hook_and_by_mail(tmp_path: Path):
    with web_sink() as (hook, told), mail_sink() as (mail_port, mails):
        mail = f"mailto://127.0.0.1:{mail_port}?from=olmo2@example.org&to=ada@example.org&mode=insecure"
        with running_dashboard(tmp_path, free_port(), "--notify", hook, "--notify", mail) as dashboard:
            start = f"/deployments/{dashboard.deployment('recipe')}/create_flow_run"
            bad = dashboard.api(start, {"parameters": {"recipe": "no-such-recipe"}})["id"]
            dashboard.ended(bad, 200)
            until(lambda: told, 90, "message to the web hook")
            assert told[0]["subject"].startswith("olmo2: recipe no-such-recipe failed"), told
            assert "no recipe" in told[0]["text"] and f"{dashboard.origin}/runs/flow-run/{bad}" in told[0]["text"]
            until(lambda: mails, 90, "mail")
            message = message_from_string(mails[0])
            assert "ada@example.org" in str(message["To"])
            asked = {
                "recipe": "smoke",
                "until": "synthesize:maths",
                "overrides": ["execution.approve_above=0", "execution.pricing={price: 1}", "execution.ray=off"],
            }
            good = dashboard.api(start, {"parameters": asked})["id"]
            assert dashboard.ended(good, 300)["state_type"] == "COMPLETED"
            until(lambda: len(told) >= 2, 90, "second message")
            assert "recipe smoke completed" in told[1]["subject"]
            # Phases are told by their run.
            assert len(told) == 2 and len(mails) <= 2
        # The address is the server's secret: no log and no flow run has it.
        for log in (tmp_path / "prefect" / "olmo2-logs").iterdir():
            assert "planted-secret" not in log.read_text()
