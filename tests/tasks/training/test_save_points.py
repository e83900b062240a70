"""Save points written alongside a training: cadence, resuming, errors. Oracle: RECIPE J, and the undisturbed run."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.settings import Execution
from infra.storage.store import Store, StoreError
from infra.workspace import WorkSettings, Workspace
from model.config import Compute
from model.network.transformer import Transformer
from model.training.configs import OptimConfig
from model.training.loop import TrainState, new_state
from tasks.training.fitting import save_points
from tasks.training.fitting.save_points import Journal, SavePoints, resume
from tests.tasks.training.conftest import TINY
from tests.tasks.training.group_stage import Lines, train_lines

PROGRESS = "_progress/s/i"


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace(
        Store(str(tmp_path)),
        stage="s",
        id="i",
        payload="s/i/g0001",
        progress_folder=PROGRESS,
        settings=WorkSettings(save_every=2, keep_every=4),
    )


def state_at(step: int) -> TrainState:
    state = new_state(Transformer(TINY, seed=step), OptimConfig(), Compute())
    state.step = step
    return state


def markers(ws: Workspace, area: str) -> list[int]:
    return [int(name[6:16]) for name in ws.store.names(f"{PROGRESS}/{area}") if name.startswith("point-")]


def test_one_ephemeral_save_point_and_every_permanent_one(ws: Workspace) -> None:
    """A step due for both is permanent; an older ephemeral one goes after a newer one is whole."""
    seen = {}
    with SavePoints(ws, Journal(), every=2) as points:
        for step in (2, 4, 6, 8, 10):
            points.save(state_at(step))
            points.check(wait=True)
            seen[step] = (markers(ws, "points"), markers(ws, "kept"))
    assert seen == {2: ([2], []), 4: ([], [4]), 6: ([6], [4]), 8: ([], [4, 8]), 10: ([10], [4, 8])}
    left = list(ws.store.walk(PROGRESS))
    assert not any(".tmp-" in path for path in left)
    assert sum(path.endswith("/state.json") for path in left) == 3


def test_a_run_resumes_from_the_newest_of_both(ws: Workspace) -> None:
    journal = Journal(tokens=7)
    with SavePoints(ws, journal, every=2) as points:
        for step in (2, 4, 6):
            journal.add({"step": step, "loss": 2.0})
            points.save(state_at(step))
    for newest in (6, 4):
        state = state_at(0)
        journal = resume(ws, state)
        assert journal is not None and journal.tokens == 7
        assert [json.loads(line)["step"] for line in journal.lines.splitlines()] == list(range(2, newest + 1, 2))
        assert (state.step, ws.resumed_from) == (newest, f"step {newest}")
        assert (state.model.norm.weight == state_at(newest).model.norm.weight).all()
        ws.store.remove(f"{PROGRESS}/points")
    ws.store.remove(f"{PROGRESS}/kept")
    assert resume(ws, state_at(0)) is None


def test_a_journal_that_goes_on_is_written_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a copy made at the mark. The writer is as slow as can be: the training writes a line after each piece."""
    monkeypatch.setattr(save_points, "COPIED_BYTES", 7)
    journal = Journal(tokens=3, flops=2.5)
    for step in range(9):
        journal.add({"step": step, "loss": step / 3})
    mark, expected = journal.mark(), bytes(journal.lines)
    journal.tokens += 1
    journal.flops += 1
    written = journal.write(tmp_path, mark)
    journal.add({"step": 9, "loss": 0.0})
    for _ in written:
        journal.add({"step": 10, "loss": 0.0})
    found = Journal.load(tmp_path)
    assert (found.tokens, found.flops, bytes(found.lines)) == (3, 2.5, expected)


def test_permanent_save_points_outlive_the_stage_and_change_nothing(make_bench: Any) -> None:
    plain = make_bench("plain").outcome(train_lines, config=Lines())
    bench = make_bench("kept", save_every=2, keep_every=4)
    kept = bench.outcome(train_lines, config=Lines(steps=8))
    assert kept.artifact.digest == plain.artifact.digest
    left = [path for path in bench.session.store.walk("_progress") if path.endswith("state.json")]
    assert [path.split("/")[-3:-1] for path in left] == [["kept", "0000000004"]]


def test_a_run_whose_newest_save_point_is_damaged_ends_with_the_same_bytes_and_says_so(
    make_bench: Any, killed: Any
) -> None:
    plain = make_bench("plain").outcome(train_lines, config=Lines(steps=9))
    bench = make_bench("damaged", save_every=2, keep_every=4)
    killed(6)
    with pytest.raises(KeyboardInterrupt):
        bench.run(train_lines, config=Lines(steps=9))
    store = bench.session.store
    newest = next(path for path in store.walk("_progress") if path.endswith("points/0000000006/weights.safetensors"))
    data = store.read(newest)
    store.write(newest, data[:-1] + bytes([data[-1] ^ 1]))
    outcome = bench.outcome(train_lines, config=Lines(steps=9))
    assert outcome.record.resumed_from == "step 4"
    assert outcome.artifact.digest == plain.artifact.digest
    warned = [event[1] for event in bench.events if event[0] == "warning"]
    assert len(warned) == 1
    assert "save point 6 of" in warned[0] and newest.rsplit("/", 1)[0] in warned[0]
    assert outcome.record.notes["damaged_save_points"] == warned


def test_a_save_that_fails_ends_the_stage(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.session.execution = Execution(ray="off", cores=1, save_every=2)

    def full(self: Workspace, *arguments: Any, **options: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(Workspace, "save_point", full)
    with pytest.raises(StoreError, match="the disk is full"):
        bench.run(train_lines, config=Lines())


def test_an_error_of_the_training_waits_for_the_save_point_that_is_being_written(bench: Any) -> None:
    bench.session.execution = Execution(ray="off", cores=1, save_every=2)
    with pytest.raises(ValueError, match="batch 6 is bad"):
        bench.run(train_lines, config=Lines(bad_step=6))
    names = [path.rsplit("/", 1)[-1] for path in bench.session.store.walk("_progress")]
    assert [name for name in names if name.startswith("point-")] == ["point-0000000006.json"]
