"""What killed processes leave and who may remove it. Oracle: what is there before and after, with a real process killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from infra.records.cleaning import Cleaned, clean
from infra.records.lease import process_identity
from infra.storage import scratch
from infra.storage.store import Store, StoreError

HOUR = 3600.0
ID = "0123456789abcdef"
FOLDER = f"_progress/s/{ID}/g0001"

WRITER = """
import sys
import time
from pathlib import Path
from infra.records.lease import acquire
from infra.storage.store import Store
from infra.workspace import Workspace

store = Store(sys.argv[1])
with acquire(store, sys.argv[2], 60.0):
    ws = Workspace(store, stage="s", id="i", payload="", progress_folder=sys.argv[2])
    (ws.scratch / "half").write_bytes(b"x" * 300)
    with ws.staging() as folder, store._temporary(store.full(sys.argv[3])) as half:
        (folder / "weights").write_bytes(b"x" * 20)
        half.write_bytes(b"x")
        print(ws.scratch, folder, half, flush=True)
        time.sleep(600)
"""


def age(path: Path, seconds: float) -> None:
    """Let a file or everything in a folder be so much older."""
    for file in (*path.rglob("*"), path):
        os.utime(file, (time.time() - seconds,) * 2)


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch folders of these tests alone, which count as soon as they are there."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(scratch, "UNLOCKED_SECONDS", 0.0)


def test_what_a_writer_has_is_kept_while_it_lives_and_goes_once_it_is_killed(tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    payload = f"s/{ID}/g0001/model.safetensors"
    command = [sys.executable, "-c", WRITER, store.url, FOLDER, payload]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        left = [Path(word) for word in writer.stdout.readline().split()]
        for path in left:
            age(path, 100 * HOUR)
        in_store, *_, in_scratch = clean(store, HOUR)
        assert (in_store.removed, in_store.kept, in_store.kept_bytes) == (0, 2, 21)
        assert (in_scratch.removed, in_scratch.kept, in_scratch.kept_bytes) == (0, 1, 300)
        assert len(left) == 3 and all(path.exists() for path in left)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    # However young: the process is proven dead.
    for path in left:
        age(path, 0)
    in_store, *_, in_scratch = clean(store, HOUR)
    assert (in_store.removed, in_store.freed_bytes, in_scratch.removed, in_scratch.freed_bytes) == (2, 21, 1, 300)
    assert not any(path.exists() for path in left)
    assert [path.rsplit("/", 1)[-1] for path in store.walk("")] == ["lease-000001.json"]


@pytest.mark.parametrize(("beat_hours", "file_hours", "removed"), [(0, 100, 0), (100, 0, 0), (100, 100, 1)])
def test_a_writer_on_another_machine_is_judged_by_its_heartbeat(
    beat_hours: float, file_hours: float, removed: int, tmp_path: Path
):
    store = Store(str(tmp_path / "store"))
    store.write(f"{FOLDER}/lease-000001.json", orjson.dumps(process_identity() | {"host": "elsewhere"}))
    store.write(f"{FOLDER}/lease-000001.beat", b"1")
    age(Path(store.full(f"{FOLDER}/lease-000001.beat")), beat_hours * HOUR)
    left = Path(store.full(f"{FOLDER}/points/.tmp-{'0' * 32}"))
    left.parent.mkdir()
    left.write_bytes(b"half")
    age(left, file_hours * HOUR)
    assert clean(store, HOUR)[0] == Cleaned(
        "temporary files of the store", removed, 4 * removed, 1 - removed, 4 * (1 - removed)
    )
    assert left.exists() == (not removed)


def test_only_old_names_that_the_store_gave_are_taken(tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    kept = [
        f"s/{ID}/record-0001.json", f"s/{ID}/g0001/weights", f"{FOLDER}/points/0000000010/weights", "_answers/00/1.json",
        "notes/.tmp-0123abcd", f"s/{ID}/.tmp-mine", "_answers/.tmp-ffffffff",
    ]  # fmt: skip
    taken = [f"s/{ID}/.tmp-{'a' * 32}", f"_answers/00/.tmp-{'b' * 32}", f"_progress/.tmp-{'c' * 32}"]
    for path in (*kept, *taken):
        store.write(path, b"12345")
        age(Path(store.full(path)), (0.5 if path.endswith("ffffffff") else 2) * HOUR)
    found, *_ = clean(store, HOUR)
    assert (found.removed, found.freed_bytes) == (3, 15)
    assert sorted(kept) == list(store.walk(""))


def test_half_copies_of_remote_objects_go_and_a_failed_copy_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = Store(f"memory://{tmp_path}/store", cache=tmp_path / "cache")
    store.write("_progress/x", b"object")
    whole = store.local("_progress/x", "0" * 64)
    half = whole.with_name(f".tmp-{'0' * 32}")
    half.write_bytes(b"half")
    age(half, 2 * HOUR)
    assert clean(store, HOUR)[2].freed_bytes == 4

    def cut_off(_: str, local: str) -> None:
        Path(local).write_bytes(b"ha")
        raise OSError("connection lost")

    monkeypatch.setattr(store.fs, "get_file", cut_off)
    with pytest.raises(StoreError, match=r"cannot copy _progress/x .*connection lost"):
        store.local("_progress/x", "1" * 64)
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()) == ["in-use", "x"]


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path):
    (tmp_path / f".tmp-{'0' * 32}").write_text("not ours")
    with pytest.raises(ValueError, match="nothing was ever made in store"):
        clean(Store(str(tmp_path)), HOUR)
