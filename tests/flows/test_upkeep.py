"""Damage is named, never used, and mended with its lineage; gc, cp and diff. Oracle: the bytes and records before."""

import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.running import repair as repairing
from flows.running.repair import repair
from infra.execution.attempt import Outcome, run_stage
from infra.execution.compare import record_differences
from infra.records.reader import Reader
from infra.records.record import load_record, record_path
from infra.records.upkeep import copy_lineage, garbage, remove, verify_artifacts
from infra.session import Session
from infra.settings import Execution
from infra.storage.store import CorruptObject, Store
from tests.infra.stages_for_tests import NumberConfig, number, squares, total


def run(store: Store, made, force: bool = False, **arguments) -> Outcome:
    session = Session(store, Execution(ray="off"), force=frozenset({made.name} if force else ()))
    return run_stage(made, session, arguments, lambda event: None)


@pytest.fixture
def chain(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """Three artifacts, each but the first two of others; `repair` knows their stages."""
    monkeypatch.setattr(repairing, "STAGES", (number, squares, total))
    first = run(store, number, config=NumberConfig(value=7))
    second = run(store, squares, config=NumberConfig(value=5))
    third = run(store, total, numbers=[first.artifact, second.artifact], config=NumberConfig(value=1))
    return [first, second, third]


def contents(store: Store) -> dict[str, bytes]:
    return {path: store.read(path) for path in store.walk("") if not path.startswith("_")}


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "a flipped bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "cut off": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "another file": lambda data: b"9\n",
    "gone": lambda data: None,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("way", ["anew", "from another store"])
def test_a_damaged_file_is_named_and_mended(
    store: Store, chain: list[Outcome], damage: str, which: int, way: str, tmp_path: Path
):
    before, record = contents(store), chain[which].record
    copy = Store(str(tmp_path / "copy"))
    copy_lineage(store, copy, chain[2].record)
    name = next(iter(record.files))
    path = f"{record.payload}/{name}"
    data = DAMAGES[damage](store.read(path))
    store.remove(path) if data is None else store.write(path, data)
    shutil.rmtree(store.cache, ignore_errors=True)
    with pytest.raises(CorruptObject, match=f"{name}.* is corrupt.*olmo2 repair {record.id}"):
        Reader(store).path(chain[which].artifact, name)
    count, found = verify_artifacts(store, [], lambda *heard: None)
    assert (count, [(item.id, item.file) for item in found]) == (3, [(record.id, name)])
    told: list[str] = []
    assert repair(store, record.id[:8], copy if way != "anew" else None, told.append) == [name]
    assert path in told[0]
    assert contents(store) == before
    assert verify_artifacts(store, [], lambda *heard: None) == (3, [])
    again = run(store, total, numbers=[chain[0].artifact, chain[1].artifact], config=NumberConfig(value=1))
    assert again.reused


EDITS: dict[str, Callable[[dict], dict]] = {
    "a fact": lambda body: body | {"facts": {"value": 8}},
    "the config": lambda body: body | {"config": body["config"] | {"value": 99}},
    "an input": lambda body: body | {"inputs": body["inputs"][:0]} if body["inputs"] else body | {"label": "x"},
    "a file's hash": lambda body: body | {"files": {n: e | {"sha256": "0" * 64} for n, e in body["files"].items()}},
    "a file left out": lambda body: body | {"files": {}},
    "the packages": lambda body: body | {"packages": {}},
    "the time": lambda body: body | {"seconds": body["seconds"] + 1},
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("way", ["anew", "from another store"])
def test_an_edited_record_is_named_and_mended(store: Store, chain: list[Outcome], edit: str, way: str, tmp_path: Path):
    before, record = contents(store), chain[1 if edit != "an input" else 2].record
    copy = Store(str(tmp_path / "copy"))
    copy_lineage(store, copy, chain[2].record)
    path = record_path(record.stage, record.id, 1)
    store.write(path, orjson.dumps(EDITS[edit](orjson.loads(store.read(path)))))
    with pytest.raises(CorruptObject, match=f"{path} .* is not what was committed.*olmo2 repair {record.id}"):
        load_record(store, record.stage, record.id)
    _, found = verify_artifacts(store, [], lambda *heard: None)
    assert [(item.id, item.file) for item in found] == [(record.id, "record-0001.json")]
    repair(store, record.id, copy if way != "anew" else None, lambda _: None)
    now = load_record(store, record.stage, record.id)
    assert now is not None
    assert (now.digest, now.config, now.facts, now.inputs) == (
        record.digest,
        record.config,
        record.facts,
        record.inputs,
    )
    assert verify_artifacts(store, [], lambda *heard: None) == (3, [])
    assert way == "anew" or contents(store) == before


def test_a_record_of_another_artifact_is_not_taken_for_ones_own(store: Store, chain: list[Outcome]):
    one, other = chain[0].record, run(store, number, config=NumberConfig(value=8)).record
    path = record_path(one.stage, one.id, 1)
    store.write(path, store.read(record_path(other.stage, other.id, 1)))
    with pytest.raises(CorruptObject, match=f"it is the record of number/{other.id}"):
        load_record(store, one.stage, one.id)


def test_an_interrupted_verification_goes_on_where_it_was(store: Store, chain: list[Outcome]):
    seen: list[str] = []

    def interrupt(name: str, number_: int, count: int) -> None:
        seen.append(name)
        if number_ == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_artifacts(store, [], interrupt)
    # What was found whole is not read again: damage there is for the next whole pass.
    first = next(item for item in chain if f"{item.record.stage}/{item.record.id}" == seen[0]).record
    path = f"{first.payload}/{next(iter(first.files))}"
    data = store.read(path)
    store.write(path, b"x" + data)
    assert verify_artifacts(store, [], lambda *heard: None) == (3, [])
    assert len(verify_artifacts(store, [], lambda *heard: None)[1]) == 1


def test_a_copy_has_the_whole_lineage_and_can_be_interrupted(store: Store, chain: list[Outcome], tmp_path: Path):
    copy = Store(str(tmp_path / "copy"))
    assert [copied for _, copied in copy_lineage(store, copy, chain[2].record)] == [True] * 3
    assert contents(copy) == contents(store)
    record = chain[1].record
    copy.remove(f"{record.payload}/squares/3.txt")
    copy.remove(record_path(record.stage, record.id, 1))
    assert [copied for _, copied in copy_lineage(store, copy, chain[2].record)] == [False, True, False]
    assert contents(copy) == contents(store)


def test_gc_removes_what_nobody_reaches_and_nothing_else(store: Store, chain: list[Outcome]):
    before = contents(store)
    assert garbage(store, [], everything_else=False).folders == []
    # A second generation with the same bytes; the third artifact was made from the first one.
    run(store, number, force=True, config=NumberConfig(value=7))
    lonely = run(store, number, config=NumberConfig(value=9))
    run(store, number, force=True, config=NumberConfig(value=9))
    orphan = f"{chain[0].artifact.address}-a000009/number.json"
    store.write(orphan, b"late")
    found = garbage(store, [], everything_else=False)
    old = [record_path("number", lonely.artifact.id, 1), lonely.artifact.address]
    assert sorted(found.folders) == sorted([*old, orphan.rpartition("/")[0]])
    assert contents(store).keys() > before.keys()
    remove(store, found)
    assert before.items() <= contents(store).items()
    remove(store, garbage(store, [chain[2].record], everything_else=True))
    assert contents(store) == before
    assert verify_artifacts(store, [], lambda *heard: None) == (3, [])


def test_diff_says_in_what_two_artifacts_differ(store: Store, chain: list[Outcome]):
    other = run(store, number, config=NumberConfig(value=8)).record
    found = record_differences(chain[0].record, other)
    assert found["config"] == ["value: 7 → 8"]
    assert found["facts"] == ["value: 7 → 8"]
    assert found["code"] == found["packages"] == found["inputs"] == []
    assert len(found["files"]) == 1
    assert not any(record_differences(other, other).values())


def test_what_keeps_no_save_point_is_said_by_leaving_it_out():
    with pytest.raises(ValueError, match="keep_every"):
        Execution(keep_every=0)
    assert Execution().keep_every is None


def test_gc_keeps_the_newest_of_each_label_and_the_marked(store: Store, chain: list[Outcome]):
    """By the command itself, dry and real. Oracle: which artifacts are left."""

    def gc(*words: str) -> dict:
        done = CliRunner().invoke(app, ["gc", *words, "--store", store.url, "--json"])
        assert done.exit_code == 0, done.output
        return orjson.loads(done.stdout)

    older, newer = [run(store, number, config=NumberConfig(value=value)) for value in (21, 22)]
    for place, outcome in enumerate((chain[0], older, newer)):
        # Equal seconds have no order.
        record = outcome.record.model_copy(update={"created": f"2026-01-0{place + 1}T00:00:00+00:00"}).sealed()
        store.write(record_path("number", record.id, 1), orjson.dumps(record.model_dump(mode="json")))
    dry = gc("--newest", "1")
    assert (dry["removed"], {path.split("/")[1] for path in dry["objects"]}) == (False, {older.record.id})
    assert contents(store)
    CliRunner().invoke(app, ["tag", older.record.id, "kept", "--store", store.url])
    assert gc("--newest", "1", "--yes")["objects"] == []
    CliRunner().invoke(app, ["tag", "kept", "--remove", "--store", store.url])
    assert gc("--newest", "1", "--yes")["removed"]
    left = {path.split("/")[1] for path in contents(store)}
    assert left == {outcome.record.id for outcome in (*chain, newer)}, "what the newest were made from stays"


def test_schedules_are_asked_of_a_dashboard(
    store: Store, chain: list[Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "nobody"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    done = CliRunner().invoke(app, ["gc", "--schedules", "--store", store.url], catch_exceptions=True)
    assert "none is running" in str(done.exception)
