"""A result that a stage left in the store while no driver watched: taken by the same code, and only while its files are there."""

from pathlib import Path

from infra.compute.stage_call import Finished
from infra.execution.runners import load_finished, save_finished
from infra.records.record import FileEntry
from infra.storage.store import Store
from tests.infra.stages_for_tests import Number

FOLDER = "_progress/number/abc/g0001"


def finished(store: Store) -> Finished:
    store.write("number/abc/g0001-a000002/number.json", b"12")
    artifact = Number(stage="number", id="abc", address="number/abc/g0001", digest="", value=12)
    files = {"number.json": FileEntry(size=2, sha256="0" * 64)}
    return Finished(artifact, files, {"node": "n"}, "step 3", 4096, host="h", folder="number/abc/g0001-a000002")


def test_it_comes_back_as_it_was(tmp_path: Path):
    store = Store(str(tmp_path))
    assert load_finished(store, FOLDER, "code") is None
    save_finished(store, FOLDER, "code", made := finished(store))
    assert load_finished(store, FOLDER, "code") == made


def test_other_code_and_lost_files_make_it_nothing(tmp_path: Path):
    store = Store(str(tmp_path))
    save_finished(store, FOLDER, "code", finished(store))
    assert load_finished(store, FOLDER, "other code") is None
    store.write("number/abc/g0001-a000002/number.json", b"1")
    assert load_finished(store, FOLDER, "code") is None
