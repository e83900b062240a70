"""One finished run of the smoke recipe for all tests that only look at it or go on from it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock


def olmo2(*arguments: str, store: Path | str, code: int = 0, seconds: float = 500) -> str:
    """Run the command as a user would, in a process of its own; returns its output."""
    environment = os.environ | {"OLMO2_STORE": str(store), "COLUMNS": "200"}
    if not str(store).startswith("s3"):
        environment.pop("AWS_ENDPOINT_URL", None)
    command = [sys.executable, "-m", "flows.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def finished_smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one finished smoke run, made once for all processes of a test run. Read only: copy it to go on."""
    own = tmp_path_factory.getbasetemp()
    # Processes that test side by side have their folders side by side in the one of the whole test run.
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    store, finished = shared / "smoke" / "store", shared / "smoke" / "finished"
    with FileLock(shared / "smoke.lock"):
        if not finished.exists():
            output = olmo2("run", "smoke", store=store)
            assert "report.html" in output
            finished.touch()
    return store
