"""`olmo2 dashboard`: the Prefect server, a worker, and the deployments of prefect.yaml, on the loopback interface.

Server and worker are Prefect's behind our own entry points: the server answers its own page only, and the worker takes no
command from the server (docs/threat-model.md).

It stops what it started, by process id, and nothing else.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
from rich.console import Console

from flows.running.prefect_server import QUIET, dashboard_file, running_dashboard
from flows.running.work_pool import JOB_TEMPLATE, POOL
from flows.server.guarded_server import CLIENT_PASSWORD, PASSWORD, check_host, own_settings, server_origin
from infra.secrets import without_secrets

_NOTIFY = "OLMO2_NOTIFY"
"""Environment variable: addresses of `--notify`."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a polite kill, and a terminal that was closed."""

_START_SECONDS = 120.0
_STOP_SECONDS = 15.0


class DashboardError(ValueError):
    """The dashboard could not start; the text says why and where its log is."""


@dataclass(frozen=True)
class DashboardAddress:
    """A dashboard that answers."""

    url: str
    logs: Path
    folder: Path
    """Where a store that is a relative path lies."""
    store: str
    """That of OLMO2_STORE, without secrets; empty where it is not set."""

    @property
    def facts(self) -> dict[str, str]:
        """The same for programs."""
        return {
            "url": self.url,
            "api": f"{self.url}/api",
            "logs": str(self.logs),
            "folder": str(self.folder),
            "store": self.store,
        }


def serve(
    console: Console, port: int, host: str, notify: Sequence[str], tell: Callable[[DashboardAddress], None]
) -> None:
    """Start everything, tell the address, wait for Ctrl-C, SIGTERM or the terminal's end, stop everything.

    `notify` are addresses that are told of runs (flows/server/notifications.py). Raises DashboardError when a dashboard is
    running already or a part does not start, ValueError for a host that other machines reach without a password.
    """
    check_host(host)
    # A second dashboard would answer for the first one's runs, and both would start workers.
    if running := running_dashboard():
        raise DashboardError(f"a dashboard is running at {running.removesuffix('/api')}; stop it or use that one")
    check_free(host, port)
    origin = server_origin(host, port)
    api, environment = f"{origin}/api", server_environment(host, port)
    for number in _ENDING:
        signal.signal(number, _interrupt_once)
    logs = dashboard_file().parent / "olmo2-logs"
    logs.mkdir(parents=True, exist_ok=True)
    # The stack stops the worker first and the server last, so that runs can still tell how they ended.
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        command = ["flows.server.dashboard_server", "--host", host, "--port", str(port)]
        server = stack.enter_context(started(command, environment, logs / "server.log"))
        with console.status("starting the server"):
            wait_for_server(api, server, logs / "server.log")
        with console.status("registering deployments"):
            register(environment)
            if notify:
                set_up_notifications(origin, notify, environment)
        worker_command = ["flows.running.worker", f"olmo2-{os.getpid()}"]
        worker = stack.enter_context(started(worker_command, environment, logs / "worker.log"))
        # Written last: whoever finds the file can talk to a whole dashboard.
        dashboard_file().write_text(json.dumps({"api": api, "pid": os.getpid()}))
        stack.callback(dashboard_file().unlink, missing_ok=True)
        tell(DashboardAddress(origin, logs, Path.cwd(), without_secrets(os.environ.get("OLMO2_STORE", ""))))
        # Neither ends by itself; if one does, the other is of no use.
        while worker.poll() is None and server.poll() is None:
            time.sleep(1)
        raise DashboardError(f"a part of the dashboard ended by itself; see the logs in {logs}")


def server_environment(host: str, port: int) -> dict[str, str]:
    """What server, worker and flow runs share."""
    password = os.environ.get(PASSWORD)
    # The addresses of notifications may hold passwords, which no run needs.
    surroundings = {name: value for name, value in os.environ.items() if name != _NOTIFY}
    return (
        surroundings
        | QUIET
        | own_settings(host, port)
        | {
            "PREFECT_API_URL": f"{server_origin(host, port)}/api",
            "PREFECT_LOGGING_LEVEL": "INFO",
            # In memory, the default, a killed server would forget who holds the only slot for sweeps: none ran any more.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }
        | ({CLIENT_PASSWORD: password} if password else {})
    )


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """A module with its arguments as a child process that is stopped when the context ends."""
    # Appended, so that the log of a start that failed is still there after the next one.
    with log.open("ab") as output:
        # A session of its own: the terminal's Ctrl-C reaches this process alone, which stops the others in order.
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """Ask the flow runs of a process to end, so that they tell the server, then itself; end what is left of them.

    Flow runs are in sessions of their own, so no signal to a group reaches them; and a worker waits for its runs.
    """
    if process.poll() is not None:
        return
    itself = psutil.Process(process.pid)
    # Listed before anything is asked to end: children of a process that is gone are found no more.
    runs, family = itself.children(), itself.children(recursive=True)
    # Runs first: their worker waits for them, and they need it to tell the server.
    for asked in (runs, [itself]):
        for member in asked:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        psutil.wait_procs(asked, timeout=_STOP_SECONDS)
    for member in (itself, *family):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def check_free(host: str, port: int) -> None:
    """Raise DashboardError when something listens on the port: we would talk to that instead of to our server."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the server does: a port that was only just given back counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DashboardError(
                f"port {port} of {host} cannot be used ({error.strerror}); choose another with --port"
            ) from error


def wait_for_server(api: str, server: subprocess.Popen, log: Path) -> None:
    """Return when the server answers. Raises DashboardError with the log's end when it ends or takes too long."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urlopen(f"{api}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (OSError, URLError):
            time.sleep(0.3)
    # The end of the log says why a server did not start.
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
    raise DashboardError(f"the server at {api} did not start; end of {log}:\n{tail}")


def register(environment: dict[str, str]) -> None:
    """Create the work pool and the deployments that prefect.yaml names.

    Their runs have the folder that this process has, as those of `olmo2 run` do: a relative store is the same one.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as template:
        template.write(json.dumps(JOB_TEMPLATE))
        template.flush()
        pool = ["work-pool", "create", POOL, "--type", "process", "--base-job-template", template.name, "--overwrite"]
        deploy = ["--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_file())]
        for command in (pool, deploy):
            # In a process of its own, since Prefect's command reads its settings at import.
            done = subprocess.run(
                [sys.executable, "-m", "prefect", *command],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise DashboardError(f"prefect {' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def set_up_notifications(origin: str, notify: Sequence[str], environment: dict[str, str]) -> None:
    """Make the automations that tell these addresses. In a process of its own: this one has no use for Prefect.

    Raises DashboardError for an address that is none, or that the server does not take.
    """
    done = subprocess.run(
        [sys.executable, "-m", "flows.server.notifications", origin],
        # Not as arguments, which other users of the machine could read.
        env=environment | {_NOTIFY: "\n".join(notify)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DashboardError(f"the notifications cannot be set up: {done.stderr.strip().splitlines()[-1]}")


def prefect_file() -> Path:
    """prefect.yaml of the checkout, or the copy inside an installed package."""
    checkout = Path(__file__).resolve().parents[2] / "prefect.yaml"
    return checkout if checkout.is_file() else Path(str(resources.files("flows"))) / "prefect.yaml"


def _interrupt_once(number: int, frame: object) -> None:
    # Stopping takes some seconds, in which a second signal would leave a part behind that nothing stops any more.
    for further in _ENDING:
        signal.signal(further, signal.SIG_IGN)
    raise KeyboardInterrupt
