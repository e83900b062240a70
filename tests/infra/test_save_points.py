"""Save points in the store. Oracle: RECIPE J, a run resumes from the newest one, whether it is ephemeral or permanent."""

from pathlib import Path

import pytest

from infra.plan import started_work
from infra.record import progress_folder
from infra.save_points import newest_save_point, read_save_point, write_save_point
from infra.store import Store

FOLDER = progress_folder("s", "i", 1)


def write(store: Store, step: int, keep: bool) -> None:
    with store.staging(FOLDER) as files:
        (files / "weights").write_text(str(step))
        write_save_point(store, FOLDER, step, files, keep=keep, gather=None)


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
        write_save_point(store, FOLDER, 5, files, keep=False, gather=lambda written: None)
    assert [path.rsplit("/", 1)[-1] for path in store.walk(FOLDER)] == ["weights"]
    assert newest_save_point(store, FOLDER) is None
