"""Killed and interrupted runs. Oracle: one undisturbed run; every artifact of a resumed run has its digest."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.storage.store import Store
from tests.chaos.runs import Run, copy_before, records, resumed_from, save_points, shards_done

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


@pytest.fixture
def start(tmp_path: Path, api: str) -> Iterator[Callable[..., Run]]:
    """Start a run; the same store may be run several times. A run that a failed test leaves is killed."""
    runs: list[Run] = []

    def begin(store: Path, *arguments: str) -> Run:
        runs.append(Run(store, *arguments, api=api, log=tmp_path / f"log-{len(runs)}"))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            run.kill_group()


def assert_not_made(store: Store, label: str) -> None:
    assert label not in records(store), f"{label} was finished before the accident; give it more work"


def test_killed_in_encode_pretrain_sft_and_rlvr_it_ends_with_the_same_bytes(
    tmp_path: Path, undisturbed: Path, start: Callable[..., Run]
):
    """One store, four kills of the whole process group, each in the middle of a stage, then the end."""
    store = Store(str(tmp_path / "store"))
    moments: dict[str, Callable[[], object]] = {
        "encode:code": lambda: shards_done(store, "encode", "encode-code"),
        "pretrain": lambda: save_points(store, "pretrain"),
        "sft": lambda: save_points(store, "sft"),
        "rlvr": lambda: save_points(store, "rlvr"),
    }
    for label, moment in moments.items():
        run = start(tmp_path / "store")
        run.until(moment, f"the middle of {label}")
        run.kill_group()
        assert_not_made(store, label)
        run.all_gone()
    start(tmp_path / "store").finish()
    for label in moments:
        assert resumed_from(store, label), f"{label} began anew"
    assert records(store) == records(Store(str(undisturbed)))
    assert [path for path in store.walk("_progress") if "/points/" in path or "/shards/" in path] == []


def press_ctrl_c(run: Run) -> None:
    """A terminal sends it to the whole group."""
    os.killpg(run.process.pid, signal.SIGINT)


def interrupt_command(run: Run) -> None:
    run.process.send_signal(signal.SIGINT)


def kill_command(run: Run) -> None:
    run.process.kill()


def kill_stage(run: Run) -> None:
    run.stage_process().kill()


INTERRUPTED = "interrupted; the same command resumes where each stage was"


@pytest.mark.parametrize(
    ("stage", "accident", "code", "says"),
    [
        ("pretrain", press_ctrl_c, 130, INTERRUPTED),
        ("rlvr", interrupt_command, 130, INTERRUPTED),
        ("pretrain", kill_command, -signal.SIGKILL, ""),
        ("sft", kill_stage, 1, "stage sft failed: StageProcessDied: the process of stage sft ended with code -9"),
    ],
)
def test_an_accident_while_a_stage_trains(
    stage: str,
    accident: Callable[[Run], None],
    code: int,
    says: str,
    tmp_path: Path,
    undisturbed: Path,
    start: Callable[..., Run],
):
    """The command ends as it should, nothing of it lives on, and the next run resumes to the same bytes."""
    folder = copy_before(undisturbed, stage, tmp_path / "store")
    store = Store(str(folder))
    run = start(folder, "--until", stage)
    run.until(lambda: save_points(store, stage), f"the middle of {stage}")
    accident(run)
    output = run.finish(code)
    assert says in output
    assert "Traceback" not in output
    run.all_gone(10)
    assert_not_made(store, stage)
    resume_and_compare(start, store, undisturbed, stage)


def test_a_killed_command_takes_the_prefect_server_that_it_started_with_it(tmp_path: Path, undisturbed: Path):
    """Without a dashboard, a run starts a server of its own; a year of accidents must not leave a hundred of them."""
    store = Store(str(copy_before(undisturbed, "sft", tmp_path / "store")))
    run = Run(tmp_path / "store", "--until", "sft", api=None, log=tmp_path / "log", PREFECT_HOME=str(tmp_path / "home"))
    run.until(lambda: save_points(store, "sft"), "the middle of sft")
    assert any("flows.server.guarded_server" in process.cmdline() for process in run.living())
    kill_command(run)
    run.finish(-signal.SIGKILL)
    run.all_gone(20)


def test_ctrl_c_between_shards_on_ray(tmp_path: Path, undisturbed: Path, start: Callable[..., Run]):
    """Ray's processes end too, and finished shards are not run again. The resumed run works without Ray."""
    store = Store(str(copy_before(undisturbed, "encode:code", tmp_path / "store")))
    run = start(tmp_path / "store", "--until", "encode:code", "--set", "execution.ray=local")
    run.until(lambda: shards_done(store, "encode", "encode-code"), "the first shard of encode:code")
    press_ctrl_c(run)
    assert INTERRUPTED in run.finish(130)
    run.all_gone()
    assert_not_made(store, "encode:code")
    resume_and_compare(start, store, undisturbed, "encode:code")


def resume_and_compare(start: Callable[..., Run], store: Store, undisturbed: Path, label: str) -> None:
    """The next run says where it resumes, and makes what an undisturbed run makes."""
    output = start(Path(store.root), "--until", label).finish()
    from_where = resumed_from(store, label)
    assert from_where
    assert f"resumed at {from_where}" in output
    assert records(store)[label] == records(Store(str(undisturbed)))[label]
