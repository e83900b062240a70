"""The smoke recipe on a real S3 server. Oracle: the same recipe on a local folder; ids and digests are equal."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3fs

from tests.ceph import S3, gateway

pytestmark = [pytest.mark.slow, pytest.mark.s3, pytest.mark.ceph]

BUCKET = "olmo2-recipe"
STORE = f"s3://{BUCKET}/smoke"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """A server with one empty bucket."""
    with gateway() as server:
        filesystem = s3fs.S3FileSystem(
            key=server.key, secret=server.secret, client_kwargs={"endpoint_url": server.endpoint}
        )
        filesystem.mkdir(BUCKET)
        yield server


def call(s3: S3, folder: Path, *command: str) -> str:
    """Run Python with the server's address in its environment; returns its output."""
    environment = os.environ | s3.environment() | {"COLUMNS": "200", "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout + done.stderr


def olmo2(s3: S3, folder: Path, *arguments: str) -> str:
    return call(s3, folder, "-m", "flows.cli", *arguments)


def made(s3: S3, folder: Path, store: str) -> dict[str, tuple[str, str]]:
    """Label -> (id, digest) of everything but the report, which tells times."""
    rows = json.loads(olmo2(s3, folder, "ls", "--json", "--store", store))
    return {row["label"]: (row["id"], row["digest"]) for row in rows if row["stage"] != "report"}


def test_smoke_makes_the_same_artifacts_as_on_a_local_folder_and_then_reuses_them(
    s3: S3, finished_smoke: Path, tmp_path: Path
):
    output = olmo2(s3, tmp_path, "run", "smoke", "--store", STORE)
    assert f"report: {STORE}/report/" in output
    here, there = made(s3, tmp_path, str(finished_smoke)), made(s3, tmp_path, STORE)
    assert "rlvr" in here
    assert there == here
    assert "0 stages run" in olmo2(s3, tmp_path, "run", "smoke", "--store", STORE)
    assert {row["action"] for row in json.loads(olmo2(s3, tmp_path, "plan", "smoke", "--store", STORE, "--json"))} == {
        "reused"
    }


CREATE = """
import sys
from infra.storage.store import Store
store = Store(sys.argv[1])
for number in range(20):
    print(int(store.create(f"race/{number}", sys.argv[2].encode())), end=" ")
"""


def test_a_creation_has_exactly_one_winner_among_processes(s3: S3, tmp_path: Path):
    """Leases and records stand on this."""
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda name: call(s3, tmp_path, "-c", CREATE, STORE, name), "abcd"))
    wins = [[int(word) for word in text.split()] for text in told]
    assert [sum(column) for column in zip(*wins, strict=True)] == [1] * 20


STORE_WALK = """
import hashlib, pathlib, sys
from infra.storage.store import Store
store = Store(sys.argv[1])
big = pathlib.Path(sys.argv[2]) / "big"
big.write_bytes(b"x" * 70_000_000)
store.put(big, "walk/deep/big")
store.write("walk/small", b"1")
store.write("walk/small", b"22")
assert list(store.walk("walk")) == ["walk/deep/big", "walk/small"]
assert store.names("walk") == ["deep", "small"], store.names("walk")
assert (store.size("walk/deep/big"), store.size("walk/small"), store.size("walk/none")) == (70_000_000, 2, None)
copy = store.local("walk/deep/big", hashlib.sha256(big.read_bytes()).hexdigest())
assert (copy.name, copy.stat().st_size) == ("big", 70_000_000)
store.remove("walk")
assert list(store.walk("walk")) == [] == store.names("walk")
"""


def test_objects_of_several_parts_and_removal(s3: S3, tmp_path: Path):
    call(s3, tmp_path, "-c", STORE_WALK, STORE, str(tmp_path))


@pytest.mark.parametrize("gone", ["bucket", "server"])
def test_a_store_that_is_not_there_is_told_before_anything_starts(gone: str, s3: S3):
    # Nobody listens on the discard port.
    there = s3.environment() if gone == "bucket" else s3.environment() | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    environment = os.environ | there
    command = [sys.executable, "-m", "flows.cli", "run", "smoke", "--store", "s3://no-such-bucket/x"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "cannot write" in done.stderr
    assert "s3://no-such-bucket/x" in done.stderr
    assert "Traceback" not in done.stderr


READS = """
import sys
from pathlib import Path
from infra.storage.store import Store, StoreError
store = Store(sys.argv[1], cache=Path(sys.argv[2]))
walk = lambda: list(store.walk("a"))
for read in (lambda: store.read("a/b"), lambda: store.size("a/b"), lambda: store.names("a"), walk,
             lambda: store.local("a/b", "0" * 64), lambda: store.remove("a"), lambda: store.open("a/b").read()):
    try:
        read()
    except StoreError as error:
        assert sys.argv[1] in str(error), error
    else:
        raise AssertionError("no error")
"""


def test_a_server_that_goes_away_is_told_by_every_read(s3: S3, tmp_path: Path):
    """Nobody listens on the discard port."""
    gone = os.environ | s3.environment() | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", READS, STORE, str(tmp_path)]
    done = subprocess.run(command, env=gone, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
