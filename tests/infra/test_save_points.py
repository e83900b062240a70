"""Save points in the store. Oracle: RECIPE J, a run resumes from the newest whole one, of either kind; the bytes saved."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import orjson
import pytest

from infra.execution.plan import started_work
from infra.records.record import progress_folder
from infra.records.save_points import newest_save_point, read_newest, read_save_point, save_points, write_save_point
from infra.storage.store import Store, StoreError

FOLDER = progress_folder("s", "i", 1)


def write(store: Store, step: int, keep: bool) -> None:
    with store.staging(FOLDER) as files:
        (files / "weights").write_text(str(step))
        write_save_point(store, FOLDER, step, files.iterdir(), keep=keep, gather=None)


@pytest.mark.parametrize("keep", [False, True], ids=["ephemeral", "permanent"])
def test_the_newest_of_both_kinds_counts_in_the_run_and_in_the_plan(keep: bool, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert newest_save_point(store, FOLDER) is None
    assert started_work(store, "s", "i") == ""
    write(store, 5, keep=not keep)
    write(store, 10, keep=keep)
    point = newest_save_point(store, FOLDER)
    assert point is not None and point.step == 10
    assert started_work(store, "s", "i") == "from step 10"
    paths = read_save_point(store, point, lambda name: True, "s/i")
    assert {name: path.read_text() for name, path in paths.items()} == {"weights": "10"}


def test_only_wanted_files_are_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, 5, keep=False)
    point = newest_save_point(store, FOLDER)
    assert point is not None
    store.remove(f"{point.folder}/weights")
    assert read_save_point(store, point, lambda name: name != "weights", "s/i") == {}


def test_a_worker_that_is_not_the_first_writes_no_marker(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.staging(FOLDER) as files:
        (files / "weights").write_text("part")
        write_save_point(store, FOLDER, 5, files.iterdir(), keep=False, gather=lambda written: None)
    assert [path.rsplit("/", 1)[-1] for path in store.walk(FOLDER)] == ["weights"]
    assert newest_save_point(store, FOLDER) is None


def test_a_marker_holds_the_published_hash_of_each_file(tmp_path: Path) -> None:
    """Oracle: the value that xxHash's own documentation and tests give for no bytes (XXH3, 128 bits, seed 0)."""
    store = Store(str(tmp_path))
    with store.staging(FOLDER) as files:
        (files / "nothing").touch()
        write_save_point(store, FOLDER, 5, files.iterdir(), keep=False, gather=None)
    point = newest_save_point(store, FOLDER)
    assert point is not None
    assert store.read_json(point.marker) == {"nothing": {"size": 0, "xxh3_128": "99aa06d3014798d86001c324468d497f"}}


def test_one_of_an_older_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, 5, keep=False)
    point = newest_save_point(store, FOLDER)
    assert point is not None
    store.write(point.marker, orjson.dumps({"weights": {"size": 1, "sha256": "0" * 64}}))
    with pytest.raises(StoreError, match=r"save point 5 of s/i is damaged .* or is of an older version"):
        read_save_point(store, point, lambda name: True, "s/i")


def test_nothing_stays_of_files_that_could_not_all_be_made(tmp_path: Path) -> None:
    """A disk that is full is not filled with what nobody can use, and the older save point is still there."""
    store = Store(str(tmp_path))
    write(store, 5, keep=False)
    before = list(store.walk(FOLDER))

    def half(folder: Path) -> Iterator[Path]:
        (folder / "weights").write_text("10")
        yield folder / "weights"
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left"), store.staging(FOLDER) as folder:
        write_save_point(store, FOLDER, 10, half(folder), keep=False, gather=None)
    assert list(store.walk(FOLDER)) == before


def newest(store: Store, warnings: list[str]) -> tuple[int, str] | None:
    """Step and content of what a run would resume from."""
    found = read_newest(store, FOLDER, lambda name: True, "s/i", exchange=lambda value: [value], warn=warnings.append)
    return (found[0].step, found[1]["weights"].read_text()) if found else None


DAMAGE: dict[str, Callable[[Store, str, str], None]] = {
    "changed": lambda store, folder, marker: store.write(f"{folder}/weights", b"20"),
    "cut off": lambda store, folder, marker: store.write(f"{folder}/weights", b""),
    "gone": lambda store, folder, marker: store.remove(folder),
    "marker cut off": lambda store, folder, marker: store.write(marker, store.read(marker)[:-5]),
    "marker of another kind": lambda store, folder, marker: store.write(marker, b"[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_passed_over_for_the_next_older_and_told_by_its_own_name(damage: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for step, keep in ((5, True), (10, True), (15, False)):
        write(store, step, keep=keep)
    for folder, marker, step, text in (
        (f"{FOLDER}/points/0000000015", f"{FOLDER}/points/point-0000000015.json", 10, "10"),
        (f"{FOLDER}/kept/0000000010", f"{FOLDER}/kept/point-0000000010.json", 5, "5"),
    ):
        DAMAGE[damage](store, folder, marker)
        warnings: list[str] = []
        assert newest(store, warnings) == (step, text)
        # Nobody who removes what the last warning names loses anything else.
        assert f"({folder} and {marker} in store {tmp_path})" in warnings[-1]
    assert len(warnings) == 2
    for path in (f"{FOLDER}/kept/0000000010", f"{FOLDER}/kept/point-0000000010.json"):
        store.remove(path)
    assert newest(store, []) == (5, "5")


def test_where_all_are_damaged_nothing_begins_anew_by_itself(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert newest(store, []) is None
    for step, keep in ((5, True), (10, False)):
        write(store, step, keep=keep)
        store.write(f"{FOLDER}/{'kept' if keep else 'points'}/{step:010d}/weights", b"x")
    with pytest.raises(StoreError, match=r"save point 5 .* No other save point of s/i is whole") as raised:
        newest(store, [])
    for path in str(raised.value).split(": ")[-1].split():
        store.remove(path)
    assert list(store.walk(FOLDER)) == []
    assert newest(store, []) is None


def test_a_store_that_does_not_answer_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    for step in (5, 10):
        write(store, step, keep=True)

    def refuse(path: str) -> bytes:
        raise StoreError("no answer")

    monkeypatch.setattr(store, "read", refuse)
    with pytest.raises(StoreError, match="no answer"):
        newest(store, [])


def test_all_workers_pass_over_what_one_of_them_cannot_read(tmp_path: Path) -> None:
    """Each wants a file of its own; the damaged one is another's, in each of two save points."""
    store = Store(str(tmp_path))
    for step in (5, 10, 15):
        with store.staging(FOLDER) as files:
            for rank in range(3):
                (files / f"part-{rank}").write_text(f"{step} {rank}")
            write_save_point(store, FOLDER, step, files.iterdir(), keep=True, gather=None)
    store.write(f"{FOLDER}/kept/0000000015/part-2", b"15 3")
    store.write(f"{FOLDER}/kept/0000000010/part-0", b"10 3")
    board: list[Any] = [None] * 3
    barrier = Barrier(3)

    def work(rank: int) -> tuple[int, list[str], int]:
        def exchange(value: Any) -> list[Any]:
            board[rank] = value
            barrier.wait(20)
            values = list(board)
            barrier.wait(20)
            return values

        warnings: list[str] = []
        found = read_newest(store, FOLDER, f"part-{rank}".__eq__, "s/i", exchange=exchange, warn=warnings.append)
        assert found is not None
        return found[0].step, [path.read_text() for path in found[1].values()], len(warnings)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, range(3))) == [(5, [f"5 {rank}"], 2) for rank in range(3)]


@pytest.mark.parametrize("keep", [False, True], ids=["ephemeral", "permanent"])
def test_a_folder_that_was_left_without_its_marker_goes_with_the_next_save(keep: bool, tmp_path: Path) -> None:
    """A kill between the move of the files and the marker, then a run that goes on."""
    store = Store(str(tmp_path))
    write(store, 5, keep=True)
    write(store, 10, keep=keep)
    store.remove(f"{FOLDER}/{'kept' if keep else 'points'}/point-0000000010.json")
    assert newest(store, []) == (5, "5")
    write(store, 15, keep=False)
    assert [point.step for point in save_points(store, FOLDER)] == [5, 15]
    assert sorted(store.walk(FOLDER)) == [
        f"{FOLDER}/kept/0000000005/weights",
        f"{FOLDER}/kept/point-0000000005.json",
        f"{FOLDER}/points/0000000015/weights",
        f"{FOLDER}/points/point-0000000015.json",
    ]
