"""The index tells what the records tell. Oracle: every record read by itself."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.config.stage_names import stage_names
from flows.config.stages import STAGE_NAMES
from flows.inspection.artifacts import find_record
from flows.inspection.search import parse_condition, search
from infra.execution.attempt import Outcome, run_stage
from infra.records import index as indexing
from infra.records.index import Index, summary_of
from infra.records.marks import (
    add_note,
    marked_records,
    notes,
    pins,
    remove_tag,
    set_pin,
    set_tag,
    tagged_record,
    tags,
)
from infra.records.record import all_records, record_path
from infra.records.upkeep import garbage
from infra.session import Session
from infra.settings import Execution
from infra.storage.store import CorruptObject, Store
from tests.infra.stages_for_tests import NumberConfig, number, total


def run(store: Store, made, force: bool = False, **arguments) -> Outcome:
    session = Session(store, Execution(ray="off"), force=frozenset({made.name} if force else ()))
    return run_stage(made, session, arguments, lambda event: None)


def agrees(store: Store) -> bool:
    """Whether the index has exactly what the records have."""
    rows = {(row["id"], row["generation"]): row for row in Index(store).rows()}
    return rows == {(record.id, record.generation): summary_of(record) for record in all_records(store)}


def test_the_index_follows_every_change_of_the_records(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Also changes within one tick of the clock: folders count as settled at once here only where the test waits."""
    assert Index(store).rows() == []
    first = run(store, number, config=NumberConfig(value=7)).record
    assert agrees(store)
    run(store, number, config=NumberConfig(value=8))
    run(store, number, force=True, config=NumberConfig(value=7))
    assert agrees(store)
    run(store, total, numbers=[first.artifact()], config=NumberConfig(value=1))
    assert agrees(store)
    store.remove(record_path("number", first.id, 2))
    assert agrees(store)
    store.remove("total")
    assert agrees(store)
    assert len(Index(store).newest("number", 10)) == 2
    assert len(Index(store).newest("number", 1)) == 1


def test_what_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = Store(str(tmp_path / "store"), tmp_path / "cache")
    monkeypatch.setattr(indexing, "SETTLED_SECONDS", 0.05)
    record = run(store, number, config=NumberConfig(value=7)).record
    time.sleep(0.2)
    read: list[int] = []
    for _ in range(2):
        Index(store, lambda done, total: read.append(total)).rows()
    assert read == [1]
    store.write(record_path("number", record.id, 1), store.read(record_path("number", record.id, 1)))
    Index(store, lambda done, total: read.append(total)).rows()
    assert read == [1, 1], "a record that was replaced is read again"


@pytest.mark.parametrize("damage", [b"", b"not a database", b"SQLite format 3\0" + bytes(1000)])
def test_a_damaged_or_older_index_is_made_anew(tmp_path: Path, damage: bytes):
    store = Store(str(tmp_path / "store"), tmp_path / "cache")
    run(store, number, config=NumberConfig(value=7))
    Index(store).rows()
    Index(store).path.write_bytes(damage)
    assert agrees(store)
    assert Index(store).rebuild() == 1


def test_an_index_that_claims_what_no_record_says_is_corrected(tmp_path: Path):
    import sqlite3

    store = Store(str(tmp_path / "store"), tmp_path / "cache")
    run(store, number, config=NumberConfig(value=7))
    Index(store).rows()
    with sqlite3.connect(Index(store).path) as database:
        database.execute("INSERT INTO ids VALUES ('number', 'ffff', 'x')")
        database.execute("INSERT INTO records VALUES ('number', 'ffff', 1, '', '{}', '{}')")
    assert agrees(store)


def test_a_damaged_record_is_named_by_a_list(store: Store):
    record = run(store, number, config=NumberConfig(value=7)).record
    path = record_path("number", record.id, 1)
    store.write(path, store.read(path).replace(b'"value":', b'"valve":'))
    with pytest.raises(CorruptObject, match="olmo2 repair"):
        Index(store).rows()


def test_tags_pins_and_notes_keep_their_history(store: Store):
    first = run(store, number, config=NumberConfig(value=7)).record
    second = run(store, number, config=NumberConfig(value=8)).record
    set_tag(store, "best", first)
    set_tag(store, "best", second)
    set_tag(store, "paper-v1", first)
    assert {name: mark.address for name, mark in tags(store).items()} == {
        "best": second.address,
        "paper-v1": first.address,
    }
    assert find_record(store, "best") == tagged_record(store, "best") == second
    assert len(store.names("_marks/tag/best")) == 2, "what it marked before is kept"
    remove_tag(store, "best")
    assert tags(store).keys() == {"paper-v1"}
    with pytest.raises(ValueError, match=r"no tag 'best'; it has paper-v1"):
        remove_tag(store, "best")
    set_pin(store, second, why="the talk")
    assert [(mark.address, mark.text) for mark in pins(store)] == [(second.address, "the talk")]
    assert marked_records(store) == [first, second]
    set_pin(store, second, pinned=False)
    assert pins(store) == []
    add_note(store, first, " too hot ")
    add_note(store, first, "again")
    assert [note.text for note in notes(store, first)] == ["too hot", "again"]
    assert notes(store, second) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", "1abc", "x" * 65, ".hidden", "<b>"])
def test_names_that_are_no_tags_are_refused(store: Store, name: str):
    record = run(store, number, config=NumberConfig(value=7)).record
    with pytest.raises(ValueError, match="is no tag"):
        set_tag(store, name, record)


def test_gc_keeps_what_tags_and_pins_reach(store: Store):
    inputs = [run(store, number, config=NumberConfig(value=value)).record for value in (1, 2)]
    kept = run(store, total, numbers=[inputs[0].artifact()], config=NumberConfig(value=3)).record
    lonely = run(store, number, config=NumberConfig(value=9)).record
    set_tag(store, "best", kept)
    found = garbage(store, marked_records(store), everything_else=True).folders
    assert {path.split("/")[1] for path in found} == {inputs[1].id, lonely.id}


def test_search_finds_by_metric_and_config(store: Store):
    for value in (3, 7, 9):
        run(store, number, config=NumberConfig(value=value))
    assert [row["facts"]["value"] for row in search(store, ["facts.value>3", "value<9"])] == [7]
    assert len(search(store, ["config.value!=7"])) == 2
    assert len(search(store, ["stage=number"])) == 3
    assert search(store, ["stage=number", "no.such=1"]) == []
    assert len(search(store, ["label~NUMB"])) == 3
    assert search(store, ["parity_only=true"]) == []
    assert search(store, ["value>'x'"]) == [], "a text and a number have no order"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=3", 3), ("a>-2.5e-3", -0.0025), ("a=true", True), ("a=null", None), ("a=x y", "x y"), ("a='3'", "3"),
        ("a=" + "[" * 10_000, "[" * 10_000), ("a=" + "9" * 5_000, "9" * 5_000), ("a=2026-01-01", "2026-01-01"),
    ],
)  # fmt: skip
def test_values_of_conditions_are_numbers_words_or_texts(text: str, value: object):
    assert parse_condition(text).value == value
    assert type(parse_condition(text).value) is type(value)


@pytest.mark.parametrize("text", ["", "loss", "=3", "loss >", "a b=3"])
def test_what_is_no_condition_is_refused(text: str):
    with pytest.raises(ValueError, match="FIELD OP VALUE"):
        parse_condition(text)


def test_names_of_stages_are_those_of_their_files():
    assert stage_names() == {*STAGE_NAMES, "adopt", "adopt_step", "adopt_reward"}, (
        "all but those three may stand in a recipe"
    )


def test_looking_at_a_store_loads_no_training_library():
    """Oracle: the modules of a fresh process."""
    heavy = "('torch', 'prefect', 'ray', 'datasets')"
    code = (
        f"import sys, flows.cli.main, flows.inspection.search; print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
