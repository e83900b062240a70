"""Killed and interrupted runs. Oracle: one undisturbed run; every artifact of a resumed run has its digest."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.record import all_records
from infra.store import Store
from tests.chaos.runs import Run, copy_before, records, resumed_from, save_points, shards_done

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

SAVE_OFTEN = ("--set", "execution.save_every=2")


@pytest.fixture
def start(tmp_path: Path, api: str) -> Callable[..., Run]:
    """Start a run; the same store may be run several times."""
    count = iter(range(100))

    def begin(store: Path, *arguments: str) -> Run:
        return Run(store, *SAVE_OFTEN, *arguments, api=api, log=tmp_path / f"log-{next(count)}")

    return begin


def assert_not_made(store: Path, label: str) -> None:
    assert label not in records(Store(str(store))), f"{label} was finished before the accident; give it more work"


def test_killed_in_encode_pretrain_sft_and_rlvr_the_run_ends_with_the_same_bytes(
    tmp_path: Path, undisturbed: Path, start: Callable[..., Run]
):
    """One store, four kills of the whole process group, each in the middle of a stage, then the end."""
    folder = tmp_path / "store"
    store = Store(str(folder))
    moments: dict[str, Callable[[], object]] = {
        "encode:code": lambda: 0 < shards_done(store, "encode", "encode-code") < 10,
        "pretrain": lambda: save_points(store, "pretrain"),
        "sft": lambda: save_points(store, "sft"),
        "rlvr": lambda: save_points(store, "rlvr"),
    }
    for label, moment in moments.items():
        run = start(folder)
        run.until(moment, f"the middle of {label}")
        run.kill_group()
        assert_not_made(folder, label)
        run.all_gone()
    output = start(folder).finish()
    assert "resumed at step" in output
    for label in moments:
        assert resumed_from(store, label), f"{label} began anew"
    assert records(store) == records(Store(str(undisturbed)))
    left = [path for path in store.walk("_progress") if "/points/" in path or "/shards/" in path]
    assert left == []


@pytest.mark.parametrize("to", ["the whole group, as a terminal does", "the command alone"])
def test_interrupted_it_exits_130_says_how_to_go_on_and_leaves_no_process(
    to: str, tmp_path: Path, undisturbed: Path, start: Callable[..., Run]
):
    folder = copy_before(undisturbed, "pretrain", tmp_path / "store")
    store = Store(str(folder))
    run = start(folder, "--until", "pretrain")
    run.until(lambda: save_points(store, "pretrain"), "the middle of pretrain")
    if to == "the command alone":
        run.process.send_signal(signal.SIGINT)
    else:
        run.interrupt_group()
    output = run.finish(130)
    assert "interrupted; the same command resumes where each stage was" in output
    assert "Traceback" not in output
    assert_not_made(folder, "pretrain")
    run.all_gone(10)
    resume_and_compare(start, folder, undisturbed, "pretrain")


def test_interrupted_between_shards_on_ray_it_exits_130_and_keeps_the_shards(
    tmp_path: Path, undisturbed: Path, start: Callable[..., Run]
):
    folder = copy_before(undisturbed, "encode:code", tmp_path / "store")
    store = Store(str(folder))
    run = start(folder, "--until", "encode:code")
    run.until(lambda: shards_done(store, "encode", "encode-code"), "the first shard of encode:code")
    run.interrupt_group()
    output = run.finish(130)
    assert "interrupted; the same command resumes where each stage was" in output
    run.all_gone()
    if "encode:code" not in records(store):
        resume_and_compare(start, folder, undisturbed, "encode:code")


def test_a_stage_ends_when_the_command_alone_is_killed(tmp_path: Path, undisturbed: Path, start: Callable[..., Run]):
    folder = copy_before(undisturbed, "pretrain", tmp_path / "store")
    store = Store(str(folder))
    run = start(folder, "--until", "pretrain")
    run.until(lambda: save_points(store, "pretrain"), "the middle of pretrain")
    run.kill_main()
    run.all_gone(10)
    assert_not_made(folder, "pretrain")
    resume_and_compare(start, folder, undisturbed, "pretrain")


def test_a_killed_stage_process_fails_the_run_and_names_the_stage(
    tmp_path: Path, undisturbed: Path, start: Callable[..., Run]
):
    folder = copy_before(undisturbed, "sft", tmp_path / "store")
    store = Store(str(folder))
    run = start(folder, "--until", "sft")
    run.until(lambda: save_points(store, "sft"), "the middle of sft")
    run.stage_process().kill()
    output = run.finish(1)
    assert "stage sft failed: StageProcessDied: the process of stage sft ended with code -9" in output
    assert "resume with: olmo2 run smoke" in output
    run.all_gone(10)
    resume_and_compare(start, folder, undisturbed, "sft")


def resume_and_compare(start: Callable[..., Run], folder: Path, undisturbed: Path, label: str) -> None:
    """The next run says where it resumes, and makes what an undisturbed run makes."""
    output = start(folder, "--until", label).finish()
    store = Store(str(folder))
    from_where = resumed_from(store, label)
    assert from_where
    assert f"resumed at {from_where}" in output
    assert records(store)[label] == records(Store(str(undisturbed)))[label]
