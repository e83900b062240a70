"""Stages on the real Prefect engine: reuse, early cut-off, reruns, failures, processes, corruption. Oracle: DESIGN section 3."""

import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from multiprocessing import forkserver
from typing import Any

import psutil
import pytest
from prefect.exceptions import CancelledRun

from infra.compute.processes import ENDER, StageProcessDied
from infra.events import Ended, Event, Failed
from infra.execution.attempt import Outcome
from infra.execution.plan import Plan, above, below
from infra.execution.prefect_engine import PrefectEngine
from infra.records.record import all_records, generations, lineage, load_record
from infra.session import Session, open_session
from infra.settings import Execution, StatedSite
from infra.stopping import request_stop
from infra.storage.store import Store, StoreError
from tests.infra.stages_for_tests import (
    NumberConfig,
    diamond,
    dying,
    one_process,
    shards,
    stalling,
    waiting_first,
    with_failure,
    with_threads,
)

pytestmark = pytest.mark.usefixtures("prefect_server")


class Log:
    """Remembers what became of each stage."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.failed: dict[str, BaseException] = {}

    def __call__(self, label: str, event: Event) -> None:
        if isinstance(event, Ended):
            self.outcomes[label] = event.outcome
        elif isinstance(event, Failed):
            self.failed[label] = event.error

    @property
    def ran(self) -> set[str]:
        return {label for label, outcome in self.outcomes.items() if not outcome.reused}


def run(store: Store, phase, *configs: NumberConfig, ray: str = "off", **choices) -> tuple[Any, Log]:
    log = Log()
    with open_session(Session(store, Execution(ray=ray), listener=log, engine=PrefectEngine(), **choices)):
        return phase(*configs), log


def plan(store: Store, phase, *configs: NumberConfig, **choices):
    plan = Plan()
    with open_session(Session(store, Execution(ray="off"), engine=plan, **choices)):
        phase(*configs)
    return plan.rows


ONE, TWO = NumberConfig(value=1), NumberConfig(value=2)


def test_runs_then_reuses_everything(store: Store):
    (added, again), log = run(store, diamond, ONE, TWO)
    assert (added.value, again.value) == (3, 103)
    assert log.ran == {"number:left", "number:right", "total", "total:again"}
    (repeated, _), log = run(store, diamond, ONE, TWO)
    assert repeated == added
    assert log.ran == set()


def test_energy_is_the_stated_power_over_the_time(store: Store):
    execution = Execution(ray="off", watts={"number": 10.0, "default": 2.0})
    with open_session(Session(store, execution, engine=PrefectEngine())):
        diamond(ONE, TWO)
    for record in all_records(store):
        assert record.energy_joules == pytest.approx(record.seconds * (10.0 if record.stage == "number" else 2.0))


def test_a_record_keeps_what_was_stated_of_the_site(store: Store):
    execution = Execution(ray="off", site=StatedSite(carbon=0.4))
    # Settings go through plain values on their way to a form or a rehearsal, and must state no more afterwards.
    execution = Execution.model_validate(execution.model_dump(mode="json"))
    with open_session(Session(store, execution, engine=PrefectEngine())):
        diamond(ONE, TWO)
    assert {(record.site.pue, record.site.carbon, record.site.water) for record in all_records(store)} == {
        (None, 0.4, None)
    }


def test_a_change_reruns_only_what_depends_on_it(tmp_path):
    store = Store(str(tmp_path))
    run(store, diamond, ONE, TWO)
    _, log = run(store, diamond, ONE, NumberConfig(value=5))
    assert log.ran == {"number:right", "total", "total:again"}


def test_same_bytes_upstream_rerun_nothing_below(tmp_path):
    store = Store(str(tmp_path))
    run(store, diamond, ONE, TWO)
    # Another config, the same number written: early cut-off.
    _, log = run(store, diamond, NumberConfig(value=1, parity_only=True), TWO)
    assert log.ran == {"number:left"}


def test_forced_rerun_makes_a_generation_and_cuts_off_below(tmp_path):
    store = Store(str(tmp_path))
    (added, _), _ = run(store, diamond, ONE, TWO)
    _, log = run(store, diamond, ONE, TWO, force=frozenset({"total"}))
    assert log.ran == {"total", "total:again"} - ({"total:again"} - log.ran)
    assert generations(store, "total", added.id) == [1, 2]


def test_plan_says_what_and_why(tmp_path):
    store = Store(str(tmp_path))
    rows = plan(store, diamond, ONE, TWO)
    assert [row.action for row in rows] == ["run"] * 4
    assert rows[0].reason == "first run of this stage"
    run(store, diamond, ONE, TWO)
    assert {row.action for row in plan(store, diamond, ONE, TWO)} == {"reused"}
    rows = {row.label: row for row in plan(store, diamond, ONE, NumberConfig(value=7))}
    assert rows["number:left"].action == "reused"
    assert rows["number:right"].reason == "value: 2 → 7"
    assert rows["total"].reason == "after number:right"
    graph = list(rows.values())
    assert below(graph, {"number:right"}) == {"number:right", "total", "total:again"}
    assert above(graph, {"total"}) == {"total", "number:left", "number:right"}


def test_only_leaves_out_the_rest(tmp_path):
    (added, rest), log = run(
        Store(str(tmp_path)), diamond, ONE, TWO, only=frozenset({"number:left", "number:right", "total"})
    )
    assert log.ran == {"number:left", "number:right", "total"}
    assert added.value == 3
    assert rest.label == "total:again"


def test_one_failure_stops_what_needs_it_and_nothing_else(tmp_path):
    store = Store(str(tmp_path))
    log = Log()
    session = Session(store, Execution(ray="off"), listener=log, engine=PrefectEngine())
    with open_session(session), pytest.raises(ValueError, match="no such number"):
        with_failure(ONE, NumberConfig(fail="no such number"))
    assert log.ran == {"number:good"}
    assert set(log.failed) == {"number:bad"}
    logs = [name for name in store.walk("_progress") if "/error-" in name]
    assert "no such number" in store.read(logs[0]).decode()


def test_a_stage_in_its_own_process_gives_the_same_and_reports(tmp_path):
    result, log = run(Store(str(tmp_path)), one_process, TWO)
    assert result.value == 4
    assert log.outcomes["total"].record.notes["pid"] != os.getpid()


class LeavesAll(Store):
    """A store that cannot remove anything, as when a straggler still writes into what is being removed."""

    def remove(self, folder: str) -> None:
        raise StoreError(f"cannot remove {folder}")


def test_what_cannot_be_cleared_away_does_not_deny_an_artifact_that_is_there(tmp_path):
    _, log = run(LeavesAll(str(tmp_path)), diamond, ONE, TWO)
    assert log.failed == {}
    assert log.ran
    assert run(Store(str(tmp_path)), diamond, ONE, TWO)[1].ran == set()


WAITING = """
import sys
from infra.execution.attempt import run_stage
from infra.session import Session
from infra.settings import Execution
from infra.storage.store import Store
from tests.infra.stages_for_tests import NumberConfig, waiting_threads

if __name__ == "__main__":
    session = Session(Store(sys.argv[1]), Execution(ray="off"))
    outcome = run_stage(waiting_threads, session, {"config": NumberConfig()}, lambda event: None)
    print(outcome.record.notes["wait_policy"])
"""
"""A run of its own: a fork server that another test has started keeps the environment that it had then."""


def test_threads_of_a_stage_sleep_while_they_wait(tmp_path):
    surroundings = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", WAITING, str(tmp_path)], capture_output=True, text=True, check=True, env=surroundings
    )
    assert done.stdout.strip() == "passive"


def test_a_killed_stage_process_is_told(tmp_path):
    with pytest.raises(StageProcessDied, match=r"ended with code -9.*resumes from its last save point"):
        run(Store(str(tmp_path)), dying, ONE)


def test_a_signal_that_ends_the_fork_server_first_is_no_failure(tmp_path, monkeypatch):
    """As when a cancelled flow's whole group is told: the server is gone at once, the request is known a moment later."""
    monkeypatch.setattr("infra.stopping._stopping", threading.Event())
    forkserver.ensure_running()
    (server,) = [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]
    # It takes the request for a process, and answers nothing.
    server.suspend()

    def end() -> None:
        while "read_signed" not in {
            part.f_code.co_name for frame in sys._current_frames().values() for part, _ in traceback.walk_stack(frame)
        }:
            time.sleep(0.01)
        server.kill()
        time.sleep(0.5)
        request_stop()

    ending = threading.Thread(target=end)
    ending.start()
    try:
        with pytest.raises(CancelledRun, match="stopped on request"):
            run(Store(str(tmp_path)), with_threads, TWO)
    finally:
        ending.join()


def test_who_ends_a_process_says_nothing_where_it_is_gone_already():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    done = subprocess.run(
        [sys.executable, ENDER, str(ended.pid)], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_step_that_takes_longer_than_the_settings_say_is_told(tmp_path):
    session = Session(Store(str(tmp_path)), Execution(ray="off", stall_seconds=0.2), engine=PrefectEngine())
    with (
        open_session(session),
        pytest.raises(StageProcessDied, match=r"ended with code 75 .*75: .*execution\.stall_seconds"),
    ):
        stalling(ONE)


@pytest.mark.parametrize("ray", ["off", pytest.param("local", marks=pytest.mark.slow)])
def test_shards_run_and_are_listed(store: Store, ray: str):
    result, _ = run(store, shards, NumberConfig(value=5), ray=ray)
    record = load_record(store, "squares", result.id)
    assert record is not None
    assert result.value == 30
    assert [name for name in record.files if name.startswith("squares/")] == [f"squares/{n}.txt" for n in range(5)]


def test_an_interrupted_map_resumes_after_its_last_shard(tmp_path):
    store = Store(str(tmp_path / "store"))
    config = NumberConfig(value=6, kill_marker=str(tmp_path / "calls"))
    with pytest.raises(BaseException):  # noqa: B017 - how an interrupt surfaces is Prefect's affair
        run(store, shards, config)
    result, log = run(store, shards, config)
    assert result.value == 55
    assert (tmp_path / "calls").read_text().split() == ["0", "1", "2", "3", "3", "4", "5"]
    assert log.outcomes["squares"].record.resumed_from == "shard 3 of 6 (square)"


def test_a_stage_that_waits_for_a_server_holds_no_core(tmp_path):
    store = Store(str(tmp_path / "store"))
    with open_session(Session(store, Execution(ray="off", cores=1), engine=PrefectEngine())):
        waited, made = waiting_first(NumberConfig(value=2, kill_marker=str(tmp_path / "begun")))
    assert (waited.value, made.value) == (2, 2)


def test_a_missing_file_is_found_before_use(tmp_path):
    store = Store(str(tmp_path))
    run(store, diamond, ONE, TWO)
    victim = next(name for name in store.walk("number") if name.endswith("number.json"))
    store.remove(victim)
    with pytest.raises(StoreError, match=r"number.json .* is corrupt: the file is missing.*olmo2 rerun"):
        run(store, diamond, ONE, TWO)


def test_changed_bytes_of_the_same_size_are_found_before_use(store: Store):
    run(store, diamond, ONE, TWO)
    victim = next(name for name in store.walk("number") if name.endswith("number.json"))
    store.write(victim, b"9\n")
    # A remote store's verified local copies would still be right; take them away.
    shutil.rmtree(store.cache, ignore_errors=True)
    with pytest.raises(StoreError, match=r"its sha256 is .*its record says"):
        run(store, diamond, ONE, TWO, force=frozenset({"total"}))


def test_the_record_explains_the_artifact(tmp_path):
    store = Store(str(tmp_path))
    (_, again), _ = run(store, diamond, ONE, TWO)
    record = load_record(store, "total", again.id)
    assert record is not None
    assert [item.label for item in lineage(store, record)] == ["number:left", "number:right", "total", "total:again"]
    assert record.config["value"] == 100
    assert record.attempts == 1
    assert record.packages["torch"] != "absent"
    assert record.seconds >= 0
    assert len(all_records(store)) == 4
