"""What `deploy/compose.yaml` describes, run on this machine without containers: PostgreSQL, a server with a password, a worker.

Programs, arguments and settings are read from that file; only addresses change. MinIO's place takes another S3 server. Oracle:
the tables of the database, statuses without the password, and the artifact in the bucket.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from infra.records.record import all_records
from infra.storage.store import Store
from tests.conftest import free_port, postgres_program
from tests.flows.dashboards import FINAL, REPOSITORY, until

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.s3]

COMPOSE = yaml.safe_load((REPOSITORY / "deploy/compose.yaml").read_text())
GIVEN = {"DASHBOARD_LOGIN": "ada:planted-login", "DATABASE_PASSWORD": "planted-database"}


class Postgres:
    """A database cluster in a folder of its own; PostgreSQL does not run as root, so another user owns it then."""

    def __init__(self, folder: Path, password: str):
        self.port, self._folder = free_port(), folder
        self._as: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        secret = folder / "password"
        secret.write_text(password)
        for path in (secret, folder) if self._as else ():
            shutil.chown(path, **self._as)
        self.run(
            "initdb", "--username=prefect", "--auth=scram-sha-256", f"--pwfile={secret}", f"--pgdata={folder}/data"
        )
        self.environment = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": "prefect",
            "PGPASSWORD": password,
        }

    def run(self, program: str, *words: str, **more: Any) -> str:
        """Output of one of PostgreSQL's programs. AssertionError when it fails."""
        environment = os.environ | getattr(self, "environment", {})
        command = [postgres_program(program), *words]
        done = subprocess.run(
            command,
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **self._as,
            **more,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        sockets = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={self._folder}"
        data = ["--pgdata", f"{self._folder}/data"]
        self.run("pg_ctl", *data, "--wait", "--log", f"{self._folder}/log", "--options", sockets, "start")
        try:
            self.run("createdb", "prefect")
            yield
        finally:
            self.run("pg_ctl", *data, "--wait", "--mode", "immediate", "stop")

    def query(self, question: str, database: str = "prefect") -> str:
        return self.run("psql", "--tuples-only", "--no-align", "--command", question, database).strip()


@contextlib.contextmanager
def service(name: str, folder: Path, places: dict[str, str], **changed: str) -> Iterator[subprocess.Popen]:
    """A service of the compose file as a process; what it says goes to a log of its own."""
    described = COMPOSE["services"][name]
    given = {key: filled(value, places) for key, value in described["environment"].items()} | changed
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "OLMO2_", "PREFECT_"))}
    paths = {"PYTHONPATH": str(REPOSITORY), "PREFECT_HOME": str(folder / name), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [filled(word, places) for word in described["entrypoint"]]
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *command[1:]],
            cwd=folder,
            env=kept | given | paths,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            process.terminate()
            for left in psutil.wait_procs(family, timeout=30)[1]:
                left.kill()
            process.wait()


def filled(text: str, places: dict[str, str]) -> str:
    """A value of the compose file with its variables given and the names of its machines in their places here."""
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: places[found.group(1)], str(text))
    for name, place in places.items():
        text = text.replace(name, place)
    return text


def done(name: str, folder: Path, places: dict[str, str]) -> None:
    """A service that ends by itself."""
    with service(name, folder, places) as process:
        assert process.wait(180) == 0, (folder / f"{name}.log").read_text()[-3000:]


def ask(address: str, body: Any = None, login: str = "") -> tuple[int, Any]:
    """Status and answer of the API."""
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=30) as answer:
            return answer.status, json.loads(answer.read() or "null")
    except urllib.error.HTTPError as error:
        return error.code, None
    except OSError:
        return 0, None


@pytest.fixture
def places(s3_endpoint: str) -> dict[str, str]:
    """Where the names of the compose file are here."""
    bare = s3_endpoint.removeprefix("http://")
    return GIVEN | {
        "STORE_KEY": "test", "STORE_SECRET": "testtest", "http://objects:9000": f"http://{bare}",
        "s3://olmo2/": f"s3://olmo2-{os.getpid()}-{time.time_ns()}/",
    }  # fmt: skip


@pytest.fixture
def database_folder() -> Iterator[Path]:
    """Not below pytest's own folders, which only their owner may enter."""
    with tempfile.TemporaryDirectory(prefix="olmo2-postgres-") as folder:
        yield Path(folder)


@pytest.mark.timeout(600)
def test_a_team_works_on_postgresql_behind_a_password(
    tmp_path: Path, database_folder: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    database, port = Postgres(database_folder, GIVEN["DATABASE_PASSWORD"]), free_port()
    bucket = places["s3://olmo2/"].removeprefix("s3://").rstrip("/")
    places |= {
        "@database:5432": f"@127.0.0.1:{database.port}", "http://server:4200": f"http://127.0.0.1:{port}", "4200": str(port),
        "'olmo2'": f"'{bucket}'",
    }  # fmt: skip
    api, login = f"http://127.0.0.1:{port}/api", GIVEN["DASHBOARD_LOGIN"]
    with database.serving():
        with service("server", tmp_path, places) as server:
            answers(server, api, tmp_path)
            assert ask(f"{api}/deployments/filter", {})[0] == 401
            assert ask(f"{api}/deployments/filter", {}, "ada:guessed")[0] == 401
            done("bucket", tmp_path, places)
            done("deployments", tmp_path, places)
            with service("worker", tmp_path, places):
                run = started(api, login)
                ended = until(lambda: final(api, run, login), 300, "end of the run")
            assert ended["state_type"] == "COMPLETED", (ended["state"], (tmp_path / "worker.log").read_text()[-3000:])
        assert database.query(f"select state_type from flow_run where id = '{run}'") == "COMPLETED"
        monkeypatch.setenv("AWS_ENDPOINT_URL", places["http://objects:9000"])
        made = all_records(Store(f"s3://{bucket}/runs", tmp_path / "looking"))
        assert {record.stage for record in made} == {"synthesize"}
        restored_from_a_backup(database, run, tmp_path, places, api, login)
    secrets = [value.partition(":")[2] or value for value in GIVEN.values()]
    logs = [path for path in tmp_path.glob("*.log") if any(secret in path.read_text() for secret in secrets)]
    assert logs == []


def answers(server: subprocess.Popen, api: str, folder: Path) -> None:
    def healthy() -> bool:
        assert server.poll() is None, (folder / "server.log").read_text()[-3000:]
        return ask(f"{api}/health")[0] == 200

    until(healthy, 180, "answer of the server")


def started(api: str, login: str) -> str:
    """A run of the recipe up to its first made-up texts, which need neither Ray nor packages."""
    _, deployments = ask(f"{api}/deployments/filter", {}, login)
    recipe = next(item["id"] for item in deployments if item["name"] == "recipe")
    parameters = {"recipe": "smoke", "until": "synthesize:maths", "overrides": ["execution.ray=off"]}
    status, made = ask(f"{api}/deployments/{recipe}/create_flow_run", {"parameters": parameters}, login)
    assert status == 201
    return made["id"]


def final(api: str, run: str, login: str) -> dict[str, Any] | None:
    found = ask(f"{api}/flow_runs/{run}", None, login)[1]
    return found if found and found["state_type"] in FINAL else None


def restored_from_a_backup(
    database: Postgres, run: str, folder: Path, places: dict[str, str], api: str, login: str
) -> None:
    """As docs/deploy.md says: the dump of a database, read into another, has runs and deployments."""
    dump = database.run("pg_dump", "prefect")
    database.run("createdb", "restored")
    database.run("psql", "--quiet", "--set=ON_ERROR_STOP=1", "restored", input=dump)
    other = {f":{database.port}/prefect": f":{database.port}/restored"}
    with service("server", folder, places | other) as server:
        answers(server, api, folder)
        assert ask(f"{api}/flow_runs/{run}", None, login)[1]["state_type"] == "COMPLETED"
        assert len(ask(f"{api}/deployments/filter", {}, login)[1]) == 8
