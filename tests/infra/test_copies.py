"""The cache of a remote store's objects, with real files from an HTTP server. Oracles: the hashes of what was served, what the
disk holds, and processes that are killed."""

import hashlib
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from infra.storage.copies import Holds
from infra.storage.store import Store

SIZE = 100_000
FILES = 24
LIMIT = 10 * SIZE
processes = multiprocessing.get_context("spawn")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def content(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


def digest_of(number: int) -> str:
    return hashlib.sha256(content(number)).hexdigest()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of FILES files."""
    folder = tmp_path_factory.mktemp("served")
    for number in range(FILES):
        (folder / f"{number}.bin").write_bytes(content(number))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, where the caches of all stores lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "olmo2"


def fetch(store: Store, number: int, holds: Holds) -> Path:
    return store.local(f"{number}.bin", digest_of(number), holds)


def files_below(base: Path) -> list[Path]:
    """Files on the disk; folders may vanish while they are listed, which `os.walk` passes over."""
    return [Path(folder, name) for folder, _, names in os.walk(base) for name in names]


def cached(base: Path) -> list[int]:
    return sorted(int(path.stem) for path in files_below(base) if path.suffix == ".bin")


def size_of(base: Path) -> int:
    """Bytes of copies, whole and half, on the disk."""
    total = 0
    for path in files_below(base):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        # What is reserved takes no room: it has no blocks.
        total += min(found.st_size, 512 * found.st_blocks) if path.is_file() else 0
    return total


def test_the_least_recently_used_go_and_the_cache_stays_below_its_limit(url: str, base: Path):
    store, holds = Store(url, cache_bytes=LIMIT), Holds()
    for number in range(FILES):
        assert fetch(store, number, holds).read_bytes() == content(number)
        holds.close()
        time.sleep(0.01)
        assert size_of(base) <= LIMIT
        if number:
            # File 0 is used again and again, so it is never the oldest.
            fetch(store, 0, holds).read_bytes()
            holds.close()
            time.sleep(0.01)
    left = cached(base)
    assert left[0] == 0 and left[1:] == list(range(FILES - len(left) + 1, FILES))
    assert len(left) >= 7


def test_the_limit_is_that_of_all_stores_together(url: str, base: Path):
    one, other, holds = Store(url, cache_bytes=LIMIT), Store(url + "/", cache_bytes=LIMIT), Holds()
    second = Store(url.replace("127.0.0.1", "localhost"), cache_bytes=LIMIT)
    assert one.cache == other.cache != second.cache
    for number in range(FILES):
        fetch(one if number % 2 else second, number, holds)
        holds.close()
        assert size_of(base) <= LIMIT
    assert {path.parents[2] for path in base.rglob("*.bin")} == {one.cache, second.cache}


def test_what_is_in_use_stays_even_above_the_limit(url: str, base: Path):
    store, using, holds = Store(url, cache_bytes=LIMIT), Holds(), Holds()
    first = [fetch(store, number, using) for number in range(12)]
    for number in range(12, FILES):
        fetch(store, number, holds)
        holds.close()
    assert [path.read_bytes() for path in first] == [content(number) for number in range(12)]
    assert size_of(base) <= 12 * SIZE + SIZE, "of what nobody uses nothing stays, but the newest"
    using.close()
    fetch(store, 23, holds)
    fetch(store, 12, holds)
    assert size_of(base) <= LIMIT


def use(url: str, told: Connection) -> None:
    """A process that uses file 0 until it is told to end, or killed."""
    holds = Holds()
    path = fetch(Store(url, cache_bytes=LIMIT), 0, holds)
    told.send("using")
    told.recv()
    told.send(path.read_bytes() == content(0))


@pytest.mark.parametrize("killed", [False, True])
def test_another_process_keeps_its_copy_until_its_end(url: str, base: Path, killed: bool):
    ours, theirs = processes.Pipe()
    process = processes.Process(target=use, args=(url, theirs))
    process.start()
    assert ours.recv() == "using"
    store, holds = Store(url, cache_bytes=LIMIT), Holds()

    def churn() -> None:
        for number in range(1, FILES):
            fetch(store, number, holds)
            holds.close()

    churn()
    assert 0 in cached(base)
    if killed:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    else:
        ours.send("end")
        assert ours.recv()
    process.join()
    churn()
    assert 0 not in cached(base)


def read_often(url: str, seed: int, told: Connection) -> None:
    """A process that takes files at random and reads each a moment after it has its path."""
    store, rng = Store(url, cache_bytes=LIMIT), random.Random(seed)
    right = 0
    for _ in range(60):
        number, holds = rng.randrange(FILES), Holds()
        path = fetch(store, number, holds)
        time.sleep(rng.random() / 200)
        right += path.read_bytes() == content(number)
        holds.close()
    told.send(right)


def test_processes_at_once_read_whole_files_within_the_limit(url: str, base: Path):
    running, most = [], 0
    for seed in range(4):
        ours, theirs = processes.Pipe()
        process = processes.Process(target=read_often, args=(url, seed, theirs))
        process.start()
        running.append((process, ours))
    while any(process.is_alive() for process, _ in running):
        most = max(most, size_of(base))
        time.sleep(0.005)
    assert [ours.recv() for _, ours in running] == [60] * 4
    assert 5 * SIZE < most <= LIMIT


def closed_in_a_fork(holds: Holds) -> int:
    """The exit code of a fork of this process that lets all go.

    By `os.fork`: a process of `multiprocessing` runs at its end what other libraries registered for the end of theirs, and
    their threads are not in the fork.
    """
    fork = os.fork()
    if not fork:
        code = 1
        try:
            holds.close()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])


def test_a_fork_and_a_pickle_hold_for_themselves(url: str, base: Path):
    store = pickle.loads(pickle.dumps(Store(url, cache_bytes=LIMIT)))
    assert store.cache_bytes == LIMIT
    holds = Holds()
    assert Store(url)._copies.limit_bytes > 10**8, "half of the disk"
    path = fetch(store, 0, holds)
    assert closed_in_a_fork(holds) == 0
    other = Holds()
    for number in range(1, FILES):
        fetch(store, number, other)
        other.close()
    assert path.read_bytes() == content(0)
