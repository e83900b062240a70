"""Shards with something loaded. Oracles: how often `load` is called and in which processes; the files of a run here; which
of two GPUs, that this machine need not have, Ray gives to whom.
"""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from infra.compute.shards import run_shards, runs_here, tell_of_no_gpu
from infra.events import Event, Events, Warned
from infra.execution.attempt import run_stage
from infra.session import Session
from infra.settings import ComputeSettings, Execution
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Loading, WorkSettings, Workspace
from tests.infra.stages_for_tests import Number, NumberConfig

SHARDS = 8
GPUS = 2
FOUND, TWO_GPUS = "RAY_OVERRIDE_RESOURCES", f'{{"GPU": {GPUS}}}'


@pytest.fixture(scope="module", autouse=True)
def two_gpus() -> Iterator[None]:
    """What `ray.init` finds on this machine, here and in processes that are started from now on."""
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOUND, TWO_GPUS)
        yield
        ray.shutdown()


def workspace(store: Store, id: str, ray: str, device: str = "cpu") -> Workspace:
    return Workspace(
        store,
        stage="s",
        id=id,
        payload=f"s/{id}/g0001",
        progress_folder=f"_progress/s/{id}",
        settings=WorkSettings(compute=ComputeSettings(device=device), ray=ray),
        run_shards=run_shards,
    )


def load(ws: Workspace, log: str) -> dict[str, int]:
    """Notes who loads. Uses scratch space, which is gone once it is loaded."""
    (ws.scratch / "model").write_text("")
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {ws.scratch}\n")
    return {"calls": 0}


def work(ws: Workspace, item: dict[str, Any], loaded: dict[str, int]) -> int:
    """Squares; the first to come to item 5 is killed before it has written anything."""
    loaded["calls"] += 1
    if item["value"] == 5 and item["kill"]:
        try:
            Path(item["kill"]).touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    ws.write(f"{item['value']}.txt", str(item["value"] ** 2).encode())
    return item["value"] ** 2


def run(tmp_path: Path, id: str, ray: str, kill: str = "") -> tuple[list[int], Workspace, list[str]]:
    store, log = Store(str(tmp_path / "store")), tmp_path / f"log-{id}"
    ws = workspace(store, id, ray)
    items = [{"value": value, "kill": kill} for value in range(SHARDS)]
    results = ws.map(work, items, description="square", loading=Loading(partial(load, log=str(log))))
    return results, ws, log.read_text().splitlines()


def test_in_this_process_it_is_loaded_once(tmp_path: Path):
    results, ws, loads = run(tmp_path, "here", "off")
    assert results == [value**2 for value in range(SHARDS)]
    assert len(ws.written) == SHARDS
    (line,) = loads
    process, scratch = line.split()
    assert int(process) == os.getpid()
    assert not Path(scratch).exists()
    # All is committed, so a second attempt loads nothing.
    assert run(tmp_path, "here", "off")[2] == [line]


@pytest.mark.slow
@pytest.mark.chaos
def test_actors_keep_what_they_loaded_and_a_killed_one_comes_back(tmp_path: Path):
    expected, here, _ = run(tmp_path, "here", "off")
    results, ws, loads = run(tmp_path, "ray", "local", kill=str(tmp_path / "killed"))
    assert (tmp_path / "killed").exists()
    assert results == expected
    assert ws.written == here.written
    processes = {line.split()[0] for line in loads}
    assert str(os.getpid()) not in processes
    # One load per process: the actors' and that of the one that took the killed one's place.
    assert len(processes) == len(loads) <= (os.cpu_count() or 1) + 1 < SHARDS
    failed = workspace(ws.store, "fails", "local")
    with pytest.raises(ValueError, match="no such model"):
        failed.map(work, [{"value": 1, "kill": ""}] * 2, description="square", loading=Loading(refuse))


def refuse(ws: Workspace) -> None:
    raise ValueError("no such model")


def load_onto(ws: Workspace, log: str) -> dict[str, Any]:
    """Notes who loads onto what, and waits until every GPU has somebody."""
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {ws.compute.device} {visible}\n")
    deadline = time.monotonic() + 60
    while len(Path(log).read_text().splitlines()) < GPUS and time.monotonic() < deadline:
        time.sleep(0.02)
    return {"calls": 0}


def square_on_gpus(ws: Workspace, config: NumberConfig) -> Number:
    # Processes of stages have the environment of their fork server, which other tests may have started.
    os.environ[FOUND] = TWO_GPUS
    items = [{"value": value, "kill": ""} for value in range(config.value)]
    loading = Loading(partial(load_onto, log=config.kill_marker), ws.compute.device)
    total = sum(ws.map(work, items, description="square", loading=loading))
    ws.note(pid=os.getpid(), ray=[child.pid for child in psutil.Process().children() if child.name() == "raylet"])
    return ws.artifact(Number, value=total)


on_gpus = stage(square_on_gpus, name="squares", version=1)
on_gpus_in_process = stage(square_on_gpus, name="squares", version=1, process=True)


@pytest.mark.slow
@pytest.mark.parametrize("made", [on_gpus, on_gpus_in_process])
def test_each_gpu_gets_one_worker_that_sees_no_other(made: Any, tmp_path: Path):
    """Also where the stage has a process of its own, whose Ray ends with it."""
    log = tmp_path / "log"
    # The last of them: a named GPU that most workers could not see under this name.
    session = Session(Store(str(tmp_path / "store")), Execution(device="cuda:1", cores=4))
    config = NumberConfig(value=SHARDS, kill_marker=str(log))
    outcome = run_stage(made, session, {"config": config}, lambda event: None)
    assert outcome.artifact.facts()["value"] == sum(value**2 for value in range(SHARDS))
    processes, devices, visible = zip(*(line.split() for line in log.read_text().splitlines()), strict=True)
    assert len(set(processes)) == GPUS
    assert set(devices) == {"cuda"}
    assert sorted(visible) == ["0", "1"]
    notes = outcome.record.notes
    assert (notes["pid"] == os.getpid()) == (not made.process)
    assert len(notes["ray"]) == 1
    if made.process:
        servers = [psutil.Process(pid) for pid in notes["ray"] if psutil.pid_exists(pid)]
        assert psutil.wait_procs(servers, timeout=30)[1] == []


@pytest.mark.parametrize(
    ("shards", "device", "here"),
    [(1, "cpu", True), (2, "cpu", False), (0, "cuda", True), (1, "cuda:1", False), (9, "mps", True)],
)
def test_what_needs_a_gpu_goes_where_the_gpus_are(shards: int, device: str, here: bool):
    assert runs_here(shards, device) == here


def test_a_ray_without_a_gpu_is_an_error_here_and_a_warning_on_a_cluster(tmp_path: Path):
    store = Store(str(tmp_path))
    with pytest.raises(ValueError, match=r"execution\.device=cuda, but Ray has found no GPU on this machine"):
        tell_of_no_gpu(workspace(store, "here", "local", "cuda"), "local")
    events: list[Event] = []
    away = workspace(store, "away", "head:6379", "cuda")
    away.report_to(Events(events.append))
    tell_of_no_gpu(away, "head:6379")
    assert events == [
        Warned(
            "execution.device=cuda, but Ray has found no GPU in the cluster head:6379; s waits for a node that has one"
        )
    ]
