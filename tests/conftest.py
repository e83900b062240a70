"""Shared fixtures: a real Prefect server, a real S3 protocol, stores on both kinds of file system."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import hypothesis
import pytest

# How long an example takes is the machine's matter; a test that finds no error must not fail for it.
hypothesis.settings.register_profile("olmo2", deadline=None)
hypothesis.settings.load_profile("olmo2")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Before Ray starts, so that its workers reach the S3 server of these tests too. It is bound only when a test asks for it, so
# it lies below what the system gives away, and differs between processes of the suite.
S3_PORT = 20_000 + os.getpid() % 10_000
os.environ.update(
    AWS_ACCESS_KEY_ID="test",
    AWS_SECRET_ACCESS_KEY="testtest",
    AWS_DEFAULT_REGION="us-east-1",
    AWS_ENDPOINT_URL=f"http://127.0.0.1:{S3_PORT}",
)
from infra.storage.store import Store  # noqa: E402 - the environment above comes first


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One temporary Prefect server for all tests that run flows."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def s3_requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the S3 server was asked: a line per request."""
    return tmp_path_factory.mktemp("s3") / "requests.log"


@pytest.fixture(scope="session")
def s3_endpoint(s3_requests: Path) -> Iterator[str]:
    """A server that speaks S3 (moto's, in a process of its own)."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(S3_PORT)]
    with s3_requests.open("wb") as log:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    try:
        for _ in range(600):
            assert server.poll() is None, f"the S3 server ended with code {server.returncode}; is port {S3_PORT} taken?"
            try:
                urlopen(endpoint, timeout=1).close()
                break
            except HTTPError:
                break
            except (URLError, OSError):
                time.sleep(0.1)
        else:
            raise AssertionError(f"no S3 server at {endpoint} within a minute")
        yield endpoint
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path) -> Store:
    """An empty store: a folder, and a bucket."""
    if request.param == "local":
        return Store(str(tmp_path / "store"))
    request.getfixturevalue("s3_endpoint")
    import s3fs

    bucket = f"bucket-{os.getpid()}-{time.time_ns()}"
    s3fs.S3FileSystem().mkdir(bucket)
    return Store(f"s3://{bucket}/root", cache=tmp_path / "cache")


NEEDS = {
    "browser": ("chromium", "chromedriver"),
    "compiler": ("g++",),
    "ceph": ("radosgw", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool"),
    "postgres": ("initdb", "pg_ctl", "pg_dump", "psql"),
}
"""Programs that tests with these markers start; `.ci/packages` installs them where it can."""
_left_out = pytest.StashKey[dict[str, list[str]]]()


def postgres_program(name: str) -> str:
    """Path of one of PostgreSQL's programs, which Debian keeps out of the way; its bare name where it has none."""
    kept = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(kept[-1]) if kept else name


def _is_here(name: str) -> bool:
    return shutil.which(name) is not None or shutil.which(postgres_program(name)) is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs programs that are not here, except in CI, where their absence is a failure."""
    missing = {mark: [name for name in names if not _is_here(name)] for mark, names in NEEDS.items()}
    missing = {mark: names for mark, names in missing.items() if names}
    if not missing or os.environ.get("CI"):
        return
    config.stash[_left_out] = missing
    dropped = [item for item in items if any(item.get_closest_marker(mark) for mark in missing)]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


def pytest_terminal_summary(terminalreporter) -> None:
    """Say last which tests were left out, and for want of what."""
    for mark, names in terminalreporter.config.stash.get(_left_out, {}).items():
        terminalreporter.write_line(
            f"LEFT OUT: all tests marked {mark}, since {', '.join(names)} is not installed", red=True
        )
