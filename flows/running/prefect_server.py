"""How this process talks to Prefect: the dashboard that `olmo2 dashboard` has started, or a server of its own.

Called before Prefect is imported, since Prefect reads its settings at import.
"""

import json
import os
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
}


def dashboard_file() -> Path:
    """Where a running dashboard leaves its address."""
    return Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect")) / "olmo2-dashboard.json"


def running_dashboard() -> str | None:
    """API address of a dashboard that answers, or None."""
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
    if "PREFECT_API_URL" not in os.environ and (address := running_dashboard()):
        os.environ["PREFECT_API_URL"] = address


def start_own_server() -> None:
    """Where no API is named, start the server that Prefect would start later, and tie its life to ours.

    Prefect stops its temporary server at a normal exit only: a killed run would leave one behind.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value() is not None:
        return
    server = SubprocessASGIServer()
    server.start()
    assert server.server_process is not None
    end_with_this_process(server.server_process.pid)
