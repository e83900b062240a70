"""Stale artifacts: refused, accepted, rerun. Oracle: issue 9, item 4; the code of a stage is really edited here."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from infra.execution import fingerprint
from infra.execution.attempt import Outcome, run_stage
from infra.execution.plan import Plan, PlanRow
from infra.execution.stale import StaleError, acceptances
from infra.records.record import load_record, record_path
from infra.session import Session
from infra.settings import Execution
from infra.stage import Stage
from infra.storage.store import Store
from tests.infra.stages_for_tests import NumberConfig

SOURCE = '''
from infra.stage import stage
from infra.workspace import Workspace
from tests.infra.stages_for_tests import Number, NumberConfig

FACTOR = 2

def multiply(ws: Workspace, config: NumberConfig) -> Number:
    """Times the factor."""
    value = config.value * FACTOR
    ws.write_json("number.json", value)
    return ws.artifact(Number, value=value)

multiplied = stage(multiply, name="multiplied", version=VERSION)
'''


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a stage of its own."""
    file = tmp_path / "staleness_stage.py"
    file.write_text(SOURCE.replace("VERSION", "1"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield file
    sys.modules.pop("staleness_stage", None)
    fingerprint._find.cache_clear()


def made() -> Stage:
    """The stage as its file says now, as in a new process."""
    sys.modules.pop("staleness_stage", None)
    importlib.invalidate_caches()
    return importlib.import_module("staleness_stage").multiplied


def run(store: Store, **execution: str) -> Outcome:
    session = Session(store, Execution(ray="off", **execution))
    return run_stage(made(), session, {"config": NumberConfig(value=3)}, lambda event: None)


def plan(store: Store, **execution: str) -> PlanRow:
    session = Session(store, Execution(ray="off", **execution))
    stage = made()
    plan = Plan()
    plan.stage(stage, session, {"config": NumberConfig(value=3)})
    return plan.rows[0]


def edit(code: Path, old: str, new: str) -> None:
    assert old in code.read_text()
    code.write_text(code.read_text().replace(old, new))


def test_changed_code_is_stale_and_refused_with_three_ways_out(code: Path, tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    assert run(store).artifact.value == 6
    edit(code, "FACTOR = 2", "FACTOR = 5")
    row = plan(store)
    assert row.action == "stale"
    assert "staleness_stage.py: FACTOR changed" in row.reason
    with pytest.raises(
        StaleError, match=r"(?s)FACTOR changed.*--rerun multiplied.*--accept.*raise version= in"
    ) as raised:
        run(store)
    assert "staleness_stage.py" in str(raised.value)


def test_what_changes_nothing_is_reused(code: Path, tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    run(store)
    edit(code, "FACTOR = 2", "FACTOR = 2  # twice")
    edit(code, "Times the factor.", "By the factor.")
    edit(code, "    value = config", "    product = config")
    edit(code, '"number.json", value)', '"number.json", product)')
    edit(code, "value=value", "value=product")
    assert plan(store).action == "reused"
    assert run(store).reused


def test_an_acceptance_is_kept_and_asked_once_for_the_same_code(code: Path, tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    first = run(store)
    edit(code, "FACTOR = 2", "FACTOR = 5")
    assert run(store, accept="the factor was never used").artifact == first.artifact
    (said,) = acceptances(store)
    assert said["why"] == "the factor was never used"
    assert "@" in said["who"]
    assert said["when"].startswith("20")
    assert said["changed"] == ["staleness_stage.py: FACTOR changed"]
    assert plan(store).action == "reused"
    assert run(store).reused
    edit(code, "FACTOR = 5", "FACTOR = 7")
    assert plan(store).action == "stale", "an acceptance is of one state of the code"


def test_a_stale_artifact_is_made_anew_when_the_settings_say_so(code: Path, tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    run(store)
    edit(code, "FACTOR = 2", "FACTOR = 5")
    assert plan(store, stale="rerun").action == "run"
    again = run(store, stale="rerun")
    assert (again.reused, again.artifact.value, again.record.generation) == (False, 15, 2)
    assert run(store).reused


def test_a_raised_version_is_another_artifact(code: Path, tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    run(store)
    edit(code, "FACTOR = 2", "FACTOR = 5")
    edit(code, "version=1", "version=2")
    assert plan(store).reason == "version 1 → 2"
    assert run(store).artifact.value == 15


def test_a_record_without_a_fingerprint_stays_in_use(code: Path, tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    record = run(store).record
    old = record.model_dump(mode="json", exclude={"fingerprint", "seal", "token", "folder"}) | {"schema_version": 1}
    store.write(record_path(record.stage, record.id, 1), orjson.dumps(old))
    assert load_record(store, record.stage, record.id) is not None
    edit(code, "FACTOR = 2", "FACTOR = 5")
    assert run(store).reused


def test_other_versions_of_packages_are_told_and_refuse_nothing(code: Path, tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    record = run(store).record
    other = record.model_copy(update={"packages": record.packages | {"torch": "0.0.1", "ray": "0.0.2"}})
    store.write(record_path(record.stage, record.id, 1), orjson.dumps(other.sealed().model_dump(mode="json")))
    row = plan(store)
    assert row.action == "reused"
    assert "torch 0.0.1 → " in row.reason
    assert "ray" not in row.reason
