"""Names that records, markers and payloads give, planted to lead out of the store.

Oracle: the record of a real stage with one value changed; the files outside that must not be read or made.
"""

from pathlib import Path
from typing import Any

import orjson
import pytest

from infra.records.reader import Reader
from infra.records.record import FileEntry, Record, load_record, payload_address, record_path
from infra.records.save_points import DamagedSavePoint, SavePoint, read_marker
from infra.storage.store import CorruptObject, Store, StoreError, checked_name

OUTSIDE = (
    "/etc/passwd", "../secret", "a/../../secret", "..", ".", "", "a//b", "./a", "a/.", "a/..", "..\\secret",
    "C:\\secret", "a\0b", "a\nb", "\x1b[2J",
)  # fmt: skip


def a_record() -> dict[str, Any]:
    record = Record(
        kind="Checkpoint", stage="dpo", version=1, id="0123456789abcdef", label="dpo", generation=1,
        address=payload_address("dpo", "0123456789abcdef", 1), digest="d", facts={}, config={}, inputs=[],
        files={"a/b.json": FileEntry(size=1, sha256="0")}, created="2026-01-01", seconds=1, attempts=1, resumed_from="",
        peak_memory_bytes=1, host="h", device="cpu", threads=1, code={}, packages={}, python="3.11", notes={}, flow_run="",
    )  # fmt: skip
    return record.model_dump(mode="json")


def planted(folder: Path, **change: Any) -> Store:
    store = Store(str(folder / "store"))
    store.write(record_path("dpo", "0123456789abcdef", 1), orjson.dumps(a_record() | change))
    return store


def test_an_honest_record_is_read(tmp_path: Path):
    record = load_record(planted(tmp_path), "dpo", "0123456789abcdef")
    assert record is not None
    assert list(record.files) == ["a/b.json"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_record_that_lists_a_file_elsewhere_is_refused(tmp_path: Path, name: str):
    store = planted(tmp_path, files={name: {"size": 6, "sha256": "0"}})
    with pytest.raises(CorruptObject, match="is not a record that this version reads: files"):
        load_record(store, "dpo", "0123456789abcdef")


@pytest.mark.parametrize(
    "address", ["../../x/y/g0001", "/etc/y/g0001", "dpo/0123456789abcdef", "dpo/a/b/g0001", "dpo/../g0001"]
)
def test_addresses_that_are_none_are_refused(tmp_path: Path, address: str):
    given = {"name": "policy", "kind": "Checkpoint", "stage": "sft", "id": "00", "digest": "d", "address": address}
    for change in ({"address": address}, {"inputs": [given]}, {"stage": address}, {"id": address}):
        with pytest.raises(CorruptObject, match=record_path("dpo", "0123456789abcdef", 1)):
            load_record(planted(tmp_path, **change), "dpo", "0123456789abcdef")
    with pytest.raises(StoreError, match=r"is no address|is named by"):
        Reader(planted(tmp_path)).at(address)


@pytest.mark.parametrize("change", [{"id": "ffff"}, {"stage": "sft"}, {"generation": 2}, {"address": "dpo/ffff/g0001"}])
def test_a_record_that_lies_at_the_place_of_another_is_refused(tmp_path: Path, change: dict[str, Any]):
    with pytest.raises(CorruptObject, match=r"is the record of|is not below"):
        load_record(planted(tmp_path, **change), "dpo", "0123456789abcdef")


@pytest.mark.parametrize("name", [*OUTSIDE, "a/b"])
def test_a_save_point_that_lists_a_file_elsewhere_is_damaged(tmp_path: Path, name: str):
    store, point = Store(str(tmp_path)), SavePoint(1, "_progress/dpo/0/g0001/points")
    store.write(point.marker, orjson.dumps({name: {"size": 1, "xxh3_128": "00"}}))
    with pytest.raises(DamagedSavePoint, match="its marker names"):
        read_marker(store, point, "dpo/0")
    store.write(point.marker, orjson.dumps({"good": {"size": 1, "xxh3_128": f"../{name}"}}))
    with pytest.raises(DamagedSavePoint, match="its marker names"):
        read_marker(store, point, "dpo/0")


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_elsewhere_are_named_in_the_error(name: str):
    with pytest.raises(ValueError, match="no name of a file below a folder"):
        checked_name(name)


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret", "a/../../secret", ""])
def test_a_store_reads_and_writes_nothing_outside(tmp_path: Path, path: str):
    (tmp_path / "secret").write_text("secret")
    store = Store(str(tmp_path / "store"))
    for act in (
        store.read,
        store.size,
        store.remove,
        lambda name: store.write(name, b"x"),
        lambda name: store.create(name, b"x"),
    ):
        with pytest.raises(ValueError, match="leads out of store"):
            act(path)
    assert (tmp_path / "secret").read_text() == "secret"
