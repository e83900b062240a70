"""Store: atomic writes, one winner of a creation, and clear errors. Oracle: the behaviour DESIGN section 3 promises."""

import hashlib
import multiprocessing
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from infra.storage.store import Store, StoreError

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["s3fs", "infra.storage.store"])


def test_write_read_and_replace(store: Store):
    store.write("a/b.bin", b"one")
    store.write("a/b.bin", b"three")
    assert store.read("a/b.bin") == b"three"
    assert store.size("a/b.bin") == 5
    assert store.size("a/none") is None
    assert store.names("a") == ["b.bin"]
    assert store.names("nothing") == []


def test_the_time_of_an_object_is_that_of_its_last_write(store: Store):
    before = time.time()
    store.write("a/b.json", b"one")
    # S3 tells whole seconds.
    written = store.modified("a/b.json")
    assert written is not None
    assert int(before) <= written <= time.time() + 1
    with pytest.raises(FileNotFoundError):
        store.modified("a/none.json")


def test_create_has_exactly_one_winner(store: Store):
    bodies = [f"writer {number}".encode() for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda body: store.create("marker.json", body), bodies))
    assert sum(won) == 1
    assert store.read("marker.json") == bodies[won.index(True)]
    assert not store.create("marker.json", b"late")


def test_put_local_and_walk(store: Store, tmp_path):
    source = tmp_path / "file.bin"
    source.write_bytes(b"x" * 100_000)
    store.put(source, "deep/er/file.bin")
    digest = hashlib.sha256(b"x" * 100_000).hexdigest()
    assert store.local("deep/er/file.bin", digest).read_bytes() == source.read_bytes()
    assert list(store.walk("deep")) == ["deep/er/file.bin"]
    store.remove("deep")
    assert list(store.walk("deep")) == []
    store.remove("deep")


def test_travels_by_pickle(store: Store):
    store.write("a", b"1")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"


def test_no_temporary_file_is_left_or_listed(tmp_path):
    store = Store(str(tmp_path))
    store.write("a/x", b"1")
    store.create("a/y", b"1")
    store.create("a/y", b"2")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["x", "y"]


def test_unwritable_root_is_told(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"cannot write .*Check that the store exists"):
        Store(str(tmp_path / "file")).check_writable()


def test_a_probe_leaves_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "new", "new/below"):
        Store(str(tmp_path / name)).check_writable()
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


@pytest.mark.parametrize("name", ["file/store", "n" * 300, "dangling"])
def test_a_root_that_cannot_be_made_is_told(name, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="cannot write "):
        Store(str(tmp_path / name)).check_writable()


def test_a_root_without_an_object_is_no_store():
    """Object stores have no folders: a mistyped prefix of a bucket that exists is not there either."""
    store = Store("memory://bucket-of-is-there/prefix")
    assert not store.is_there()
    store.write("a/b", b"1")
    assert store.is_there()
    assert not Store("memory://bucket-of-is-there/prefiks").is_there()


def test_unknown_protocol_is_told():
    with pytest.raises(ValueError, match="not a folder or a known fsspec URL"):
        Store("nosuch://bucket/x")


def test_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write("a", b"old")

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", no_room)
    with pytest.raises(StoreError, match="No space left"):
        store.write("a", b"new")
    monkeypatch.undo()
    assert store.read("a") == b"old"


def fetch(url: str, cache: Path, name: str, digest: str, hang: bool, told: Connection) -> None:
    """One process that wants a local copy. It says that it is ready, goes on when told to, and says what it got; or it hangs
    with half of the object.
    """
    store = Store(url, cache)

    def half(source: str, target: str) -> None:
        Path(target).write_bytes(b"half")
        told.send("half")
        told.recv()

    if hang:
        store.fs.get_file = half
    told.send("ready")
    told.recv()
    told.send(hashlib.sha256(store.local(name, digest).read_bytes()).hexdigest())


@pytest.mark.s3
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_of_the_processes_of_a_machine_one_fetches_for_all(store: Store, killed: bool, s3_requests: Path):
    """Also where the one that was fetching is killed. Oracle: what the server was asked for."""
    data = bytes(range(256)) * 2**14
    digest = hashlib.sha256(data).hexdigest()
    name = f"big-{digest[:8]}.bin"
    store.write(name, data)
    running = []

    def start(hang: bool = False) -> Connection:
        ours, theirs = processes.Pipe()
        process = processes.Process(target=fetch, args=(store.url, store.cache, name, digest, hang, theirs))
        process.start()
        running.append(process)
        assert ours.recv() == "ready"
        return ours

    first = start(hang=True) if killed else None
    if first is not None:
        first.send("go")
        assert first.recv() == "half"
    others = [start() for _ in range(3)]
    for other in others:
        other.send("go")
    if first is not None:
        assert not others[0].poll(0.5), "it waits for the one that holds the lock"
        running[0].kill()
    assert [other.recv() for other in others] == [digest] * 3
    for process in running:
        process.join()
    asked = [line for line in s3_requests.read_text().splitlines() if f"GET /{store.root}/{name} " in line]
    assert len(asked) == 1
