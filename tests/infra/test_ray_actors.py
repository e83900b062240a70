"""Shards with something loaded. Oracles: how often `load` is called and in which processes; the files of a run here."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.settings import ComputeSettings
from infra.store import Store
from infra.workspace import Workspace

SHARDS = 8


def workspace(store: Store, id: str, ray: str) -> Workspace:
    return Workspace(
        store, stage="s", id=id, payload=f"s/{id}/g0001", progress_folder=f"_progress/s/{id}", compute=ComputeSettings(),
        ray=ray,
    )  # fmt: skip


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
    results = ws.map(work, items, description="square", load=partial(load, log=str(log)))
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
        failed.map(work, [{"value": 1, "kill": ""}] * 2, description="square", load=refuse)


def refuse(ws: Workspace) -> None:
    raise ValueError("no such model")
