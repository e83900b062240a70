"""Commits of shards. Oracle: how often a shard's function is called, and what is in the store."""

from pathlib import Path
from typing import Any

import pytest

from infra.compute.shards import committed_shards, marker_path, run_shard, run_shards
from infra.events import Events
from infra.storage.store import Store, StoreError
from infra.workspace import Workspace


def workspace(store: Store) -> Workspace:
    return Workspace(store, stage="s", id="i", payload="s/i/g0001", progress_folder="_progress/s/i")


def count_call(ws: Workspace, item: dict[str, Any]) -> int:
    log = Path(item["log"])
    with log.open("a") as calls:
        calls.write("x")
    value = len(log.read_text()) if item["unsteady"] else item["value"]
    ws.write(f"{item['value']}.txt", str(value).encode())
    return item["value"]


def item(tmp_path: Path, value: int = 7, unsteady: bool = False) -> dict[str, Any]:
    return {"log": str(tmp_path / f"calls-{value}"), "value": value, "unsteady": unsteady}


def test_a_committed_shard_is_not_run_again(store: Store, tmp_path: Path):
    """As when a worker dies between its commit and its answer: Ray runs the task again."""
    first = run_shard(workspace(store), count_call, "k-000000", item(tmp_path))
    again = run_shard(workspace(store), count_call, "k-000000", item(tmp_path))
    assert again == first
    assert (tmp_path / "calls-7").read_text() == "x"


def forget_then_call(ws: Workspace, item: dict[str, Any]) -> int:
    """A run that began before its twin committed: the twin is played by a run inside this one."""
    if not Path(item["log"]).exists():
        run_shard(workspace(ws.store), count_call, "k-000000", item)
    return count_call(ws, item)


def test_of_two_runs_of_a_shard_the_first_commit_stays(store: Store, tmp_path: Path):
    marker = run_shard(workspace(store), forget_then_call, "k-000000", item(tmp_path))
    assert (tmp_path / "calls-7").read_text() == "xx"
    assert committed_shards(workspace(store), ["k-000000", "k-000001"]) == {"k-000000": marker}


def test_two_runs_that_disagree_are_an_error(store: Store, tmp_path: Path):
    with pytest.raises(
        StoreError, match=r"two runs of shard k-000000 of s wrote different bytes: 7\.txt\. A shard must"
    ):
        run_shard(workspace(store), forget_then_call, "k-000000", item(tmp_path, unsteady=True))


def test_only_missing_shards_are_run_and_results_keep_their_order(store: Store, tmp_path: Path):
    items = [item(tmp_path, value) for value in range(40)]
    ws = workspace(store)
    for index in (3, 17, 30):
        run_shard(ws, count_call, f"some-work-{index:06d}", items[index])
    assert run_shards(ws, count_call, items, "some work", ray="off") == list(range(40))
    assert ws.resumed_from == "shard 3 of 40 (some work)"
    assert {path.read_text() for path in tmp_path.glob("calls-*")} == {"x"}
    assert len(ws.written) == 40
    assert store.exists(marker_path(ws, "some-work-000039"))


def test_progress_is_told_in_bytes_where_the_items_have_sizes(store: Store, tmp_path: Path):
    items, told = [item(tmp_path, value) for value in range(4)], []
    ws = workspace(store)
    ws.report_to(Events(told.append))
    run_shard(ws, count_call, "some-work-000002", items[2])
    run_shards(ws, count_call, items, "some work", ray="off", sizes=[20_000_000, 5_000_000, 60_000_000, 15_000_000])
    assert {event.unit for event in told} == {"MB"}
    assert [round(event.done) for event in told if event.total == 100] == [0, 60, 80, 85, 100, 100]
