"""Stores that are full, read-only or damaged. Oracle: the error names object, cause and way out; then the run resumes."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.execution.attempt import run_stage
from infra.records.record import load_record, record_path
from infra.session import Session
from infra.settings import Execution
from infra.storage.store import Store, StoreError
from infra.workspace import WorkSettings, Workspace
from tests.chaos.runs import Run, copy_before, records
from tests.infra.stages_for_tests import Number, NumberConfig, number, squares

pytestmark = pytest.mark.chaos


def as_root(*command: str) -> None:
    subprocess.run([*([] if os.geteuid() == 0 else ["sudo", "-n"]), *command], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    as_root("mount", "-t", "tmpfs", "-o", f"size=32m,uid={os.geteuid()}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        as_root("umount", str(folder))


def fill(folder: Path, leave: int) -> Path:
    """Take the room of a file system but `leave` bytes."""
    ballast = folder / "ballast"
    state = os.statvfs(folder)
    ballast.write_bytes(bytes(state.f_bavail * state.f_frsize - leave))
    return ballast


def attempt(store: Store, stage: Any, config: NumberConfig) -> Any:
    return run_stage(stage, Session(store, Execution(ray="off")), {"config": config}, lambda event: None)


@pytest.mark.slow
def test_a_disk_that_fills_up_in_training_is_told_and_the_run_resumes_when_there_is_room(
    small_disk: Path, tmp_path: Path, undisturbed: Path, api: str
):
    folder = copy_before(undisturbed, "pretrain", small_disk / "store")
    store = Store(str(folder))
    ballast = fill(small_disk, 128 * 1024)
    output = Run(folder, "--until", "pretrain", api=api, log=tmp_path / "full").finish(1)
    assert "stage pretrain failed: StoreError: cannot write _progress/pretrain/" in output
    assert "No space left on device" in output
    assert "resume with: olmo2 run smoke" in output
    assert "Traceback" not in output
    assert "pretrain" not in records(store)
    assert [path for path in store.walk("") if "/.tmp-" in path] == []
    ballast.unlink()
    Run(folder, "--until", "pretrain", api=api, log=tmp_path / "room").finish()
    assert records(store)["pretrain"] == records(Store(str(undisturbed)))["pretrain"]


def test_a_stage_on_a_full_disk_commits_nothing_and_runs_when_there_is_room(small_disk: Path):
    store = Store(str(small_disk / "store"))
    store.check_writable()
    ballast = fill(small_disk, 0)
    with pytest.raises(StoreError, match=r"cannot \w+ .* in store .*No space left on device.*has room"):
        attempt(store, squares, NumberConfig(value=4))
    ballast.unlink()
    assert [path for path in store.walk("") if not path.startswith("_progress/")] == []
    outcome = attempt(store, squares, NumberConfig(value=4))
    assert not outcome.reused
    assert outcome.artifact.value == 14


def test_a_read_only_store_is_told_before_anything_starts(small_disk: Path):
    as_root("mount", "-o", "remount,ro", str(small_disk))
    with pytest.raises(StoreError, match=r"cannot write .*Read-only file system.*you may write to it"):
        Store(str(small_disk / "store")).check_writable()


def test_a_store_below_a_file_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot write .*Not a directory"):
        Store(str(tmp_path / "file" / "store")).check_writable()


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (lambda data: b"not JSON", "is corrupt: it is not JSON"),
        (lambda data: data[: len(data) // 2], "is corrupt: it is not JSON"),
        (lambda data: data.replace(b'"digest"', b'"digits"'), "is not a record that this version reads: digest"),
    ],
    ids=["garbage", "cut off", "another field"],
)
def test_a_damaged_record_is_named(damage: Callable[[bytes], bytes], finding: str, tmp_path: Path):
    store = Store(str(tmp_path))
    made = attempt(store, number, NumberConfig(value=3)).record
    path = record_path(made.stage, made.id, made.generation)
    store.write(path, damage(store.read(path)))
    with pytest.raises(StoreError, match=finding) as raised:
        load_record(store, made.stage, made.id)
    assert path in str(raised.value)
    with pytest.raises(StoreError, match="remove it to make"):
        attempt(store, number, NumberConfig(value=3))
    store.remove(path)
    assert attempt(store, number, NumberConfig(value=3)).record.digest == made.digest


def test_a_damaged_shard_marker_is_named(tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    config = NumberConfig(value=6, kill_marker=str(tmp_path / "calls"))
    with pytest.raises(KeyboardInterrupt):
        attempt(store, squares, config)
    marker = next(path for path in store.walk("_progress") if "/shards/" in path)
    store.write(marker, b"\x00" * 10)
    with pytest.raises(StoreError, match=f"{marker} .* is corrupt: it is not JSON"):
        attempt(store, squares, config)
    store.remove(marker)
    assert attempt(store, squares, config).artifact.value == 55


def saver(store: Store) -> Workspace:
    execution = Execution(ray="off")
    return Workspace(
        store,
        stage="s",
        id="i",
        payload="s/i/g0001",
        progress_folder="_progress/s/i",
        settings=WorkSettings(compute=execution.compute("s")),
    )


@pytest.mark.parametrize("damage", ["changed", "cut off", "gone"])
def test_a_damaged_save_point_is_told(damage: str, store: Store, tmp_path: Path):
    """Without an older one to go back to, nothing starts over by itself."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "weights").write_bytes(b"weights")
    saver(store).save_point(10, state.iterdir())
    victim = next(path for path in store.walk("_progress") if path.endswith("/weights"))
    if damage == "gone":
        store.remove(victim)
    else:
        store.write(victim, b"weighty" if damage == "changed" else b"wei")
    with pytest.raises(StoreError, match=r"save point 10 of s/i is damaged .*: weights is missing.*anew by removing"):
        saver(store).resume_point()
    store.remove("_progress/s/i/points")
    assert saver(store).resume_point() is None


def test_an_unfinished_save_point_does_not_count(store: Store, tmp_path: Path):
    """Files without their marker are a save point that was being written when the process died."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "weights").write_bytes(b"old")
    saver(store).save_point(10, (tmp_path / "state").iterdir())
    store.write("_progress/s/i/points/0000000020/weights", b"half")
    found = saver(store).resume_point()
    assert found is not None
    assert found[0] == 10
    assert (found[1] / "weights").read_bytes() == b"old"


def test_a_missing_kind_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A record that newer code wrote."""
    store = Store(str(tmp_path))
    attempt(store, number, NumberConfig(value=3))
    monkeypatch.delitem(Number.kinds, "Number")
    with pytest.raises(StoreError, match="is of kind 'Number', which this version does not know"):
        attempt(store, number, NumberConfig(value=3))
