"""How this process talks to Prefect: the dashboard that `olmo2 dashboard` has started, or a server of its own.

Called before Prefect is imported, since Prefect reads its settings at import.
"""

import json
import os
import subprocess
import sys
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
    """Where no API is named, start the server that Prefect would start later, guarded, and tie its life to ours.

    Prefect stops its temporary server at a normal exit only: a killed run would leave one behind.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, get_current_settings

    if PREFECT_API_URL.value() is not None:
        return

    class GuardedServer(SubprocessASGIServer):
        """Prefect finds this instance, kept under the key of its own, when it asks for a temporary server."""

        def _run_uvicorn_command(self) -> "subprocess.Popen[bytes]":
            temporary = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.server.guarded_server", "--port", str(self.port)],
                env=os.environ | temporary | get_current_settings().to_environment_variables(exclude_unset=True),
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

    GuardedServer().start()
