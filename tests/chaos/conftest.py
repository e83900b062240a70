"""One Prefect server and one undisturbed run for all accidents."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.chaos.runs import Run, environment, wait_for
from tests.conftest import free_port


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Prefect server in a process of its own, which outlives the runs that are killed."""
    folder = tmp_path_factory.mktemp("prefect")
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--no-ui",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=environment(None, PREFECT_HOME=str(folder)), stdout=log, stderr=log, start_new_session=True
        )

    def answers() -> bool:
        assert server.poll() is None, (folder / "server.log").read_text()[-3000:]
        try:
            with urlopen(f"{address}/health", timeout=2) as answer:
                return answer.status == 200
        except (URLError, OSError):
            return False

    try:
        wait_for(answers, "an answer of the Prefect server")
        yield address
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, api: str) -> Path:
    """A store with one finished run that nothing happened to. Read only."""
    folder = tmp_path_factory.mktemp("undisturbed")
    Run(folder / "store", api=api, log=folder / "log").finish()
    return folder / "store"
