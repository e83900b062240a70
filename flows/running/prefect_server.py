"""How this process talks to Prefect: the dashboard that `olmo2 dashboard` has started, or a server of its own.

Called before Prefect is imported, since Prefect reads its settings at import.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from infra.compute.processes import end_with_this_process

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    # Failures are told by our own display; the dashboard keeps the logs.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    # A stage's process ends without ceremony, so that Python's tracker names semaphores that nobody needs any more.
    "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Prefect's own choice is pickle, which runs code when it is read.
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
}

_TEMPORARY = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""What Prefect itself says to a temporary server. The first says to the run that nobody looks at it."""
_ASK_SECONDS = 5.0
"""How long one answer of a server that starts is waited for."""
_POLL_SECONDS = 0.1
"""How often a server that starts is asked."""
_STOP_SECONDS = 5.0
"""How long a server that was asked to end may take."""


def dashboard_file() -> Path:
    """Where a running dashboard leaves its address."""
    return Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect")) / "olmo2-dashboard.json"


def running_dashboard() -> str | None:
    """API address of a dashboard that answers, or None."""
    # A file that a killed dashboard left names nobody; so the address is asked.
    try:
        address = json.loads(dashboard_file().read_text())["api"]
        with urlopen(f"{address}/health", timeout=2) as answer:
            return address if answer.status == 200 else None
    except (OSError, URLError, ValueError, KeyError):
        return None


def prepare_prefect() -> None:
    """Quiet settings, and the dashboard's API if one runs and the user has not named another."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # What the user named goes first.
    if "PREFECT_API_URL" not in os.environ and (address := running_dashboard()):
        os.environ["PREFECT_API_URL"] = address


def start_own_server() -> None:
    """Where no API is named, start a guarded server that ends with this process, and name it as the API from here on.

    Prefect would start one itself, with a class whose module imports the whole server: 75 MB in a process that only asks it. It
    would also stop it at a normal exit only, so that a killed run would leave it behind.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
        get_current_settings,
    )

    if PREFECT_API_URL.value() is not None:
        return
    deadline = time.monotonic() + PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    surroundings = os.environ | _TEMPORARY | get_current_settings().to_environment_variables(exclude_unset=True)
    for last in (False, False, True):
        port = _free_port()
        process = _started(port, surroundings)
        if _answers(process, f"http://127.0.0.1:{port}/api", deadline):
            break
        # Another program may have taken the port in between, which ends the server before it answers.
        if last or process.poll() is None:
            _stop(process)
            raise OSError(
                f"Prefect's temporary server did not answer at port {port} (exit code {process.returncode}); try again, give a "
                "slow machine more time with PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, or start `olmo2 dashboard`"
            )
    atexit.register(_stop, process)
    # Prefect's threads read the environment through its global settings, made when it was imported.
    os.environ |= {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_UI_ENABLED": _TEMPORARY["PREFECT_UI_ENABLED"],
    }
    refresh_global_settings_context()


def _free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _started(port: int, surroundings: dict[str, str]) -> "subprocess.Popen[bytes]":
    """The server's process, tied to the life of this one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.server.guarded_server", "--port", str(port)],
        env=surroundings,
        # In a session of its own: the terminal's Ctrl-C would end it before the run has told it how it ended.
        start_new_session=True,
    )
    # At once: a run that is ended while the server starts must not leave it behind.
    try:
        end_with_this_process(process.pid)
    except BaseException:  # a Ctrl-C at this very moment: nobody else knows of the server yet
        process.kill()
        raise
    return process


def _answers(process: "subprocess.Popen[bytes]", api: str, deadline: float) -> bool:
    """Wait until a server answers; False when it ends before, or the deadline passes."""
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(f"{api}/health", timeout=_ASK_SECONDS) as answer:
                return answer.status == 200
        except OSError:
            time.sleep(_POLL_SECONDS)
    return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the server: asked first, killed when it does not go."""
    process.terminate()
    try:
        process.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
