"""Cordons on a Ray cluster: a stage and a group start on other nodes when one fails its health check.

Nodes are raylets of their own with one core each; the head has none. Oracle: the nodes that the test has made faulty, kept busy
or cordoned, so that only one choice is left at each start.
"""

import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from flows.inspection.nodes import fleet
from infra.compute.nodes import ID_LABEL, NoNodeLeft
from infra.compute.placed import Claim, run_placed
from infra.compute.ray_connection import connected
from infra.compute.stage_call import Finished, StageCall
from infra.events import Event, Warned
from infra.execution.attempt import Outcome, run_stage
from infra.records.nodes import cordons, lift_cordon, set_cordon
from infra.session import Session
from infra.settings import Execution, Placement
from infra.storage.store import Store
from infra.workspace import Workspace
from tests.infra.faulty_devices import FAULTY, on_device
from tests.infra.stages_for_tests import Number, NumberConfig

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

OBJECT_STORE_BYTES = 80 * 2**20


class Cluster:
    """A head without cores, and four nodes with one each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        memory: dict[str, Any] = {"object_store_memory": OBJECT_STORE_BYTES}
        self.ray = RayCluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory}
        )
        self.address: str = str(self.ray.address)
        self.head_id: str = self.ray.list_all_nodes()[0].node_id
        self.ids = [self.ray.add_node(num_cpus=1, **memory).node_id for _ in range(4)]


def end_when_told(call: StageCall) -> Finished:
    """Begins, and ends once a file is there."""
    told = Path(call.reference)
    call.workspace.warn("begun")
    while not told.exists():
        time.sleep(0.1)
    return call.finished(Number(stage="s", id="i", address="s/i/g0001", digest="", value=1))


class Busy:
    """Holds a node's core until it is told."""

    def ready(self) -> bool:
        return True


def keep_busy(ray: Any, node: str) -> Callable[[], None]:
    """Take a node's core; returns what gives it back."""
    where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    actor = ray.remote(num_cpus=1, scheduling_strategy=where)(Busy).remote()
    ray.get(actor.ready.remote())
    return lambda: ray.kill(actor)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    # This process is still connected, and Ray ends no node that it is connected to.
    import_module("ray").shutdown()
    cluster.ray.shutdown()


def test_stages_and_groups_start_where_no_node_is_cordoned(tmp_path: Path, cluster: Cluster):
    store, (first, second, third, fourth) = Store(str(tmp_path / "store")), cluster.ids
    told: list[Event] = []

    def run(config: NumberConfig, warned: Callable[[], None], **settings: Any) -> Outcome:
        """The stage on the cluster; `warned` is called once a node is cordoned."""

        def listen(event: Event) -> None:
            told.append(event)
            if isinstance(event, Warned) and "is cordoned" in event.text:
                warned()

        execution = Execution(ray=cluster.address, **settings)
        return run_stage(on_device, Session(store, execution), on_device.bind(config), listen)

    def free() -> None:
        raise AssertionError("no node fails here")

    with connected(cluster.address) as ray:
        # One process: only the third node is left, which fails, and then the first is given back.
        set_cordon(store, second, "by hand")
        set_cordon(store, fourth, "by hand")
        store.write(FAULTY, third.encode())
        outcome = run(NumberConfig(value=1), keep_busy(ray, first), health=True)
        assert outcome.record.notes["node"] == first
        assert [row["node"] for row in outcome.record.notes["unfit_devices"]] == [third]
        assert [row["node"] for row in outcome.record.notes["health"]] == [first]
        assert set(cordons(store)) == {second, third, fourth}
        assert "fp32 matmul" in cordons(store)[third].text

        # A group of two, whose numbers leave the finite: on the first and the second node, which fails; then on the first and
        # the fourth, where they leave it too. The error stands, since these are sound.
        lift_cordon(store, second)
        lift_cordon(store, fourth)
        store.write(FAULTY, f"{second} {third}".encode())
        group = {"parallel": {"on_device": {"workers": 2}}}
        with pytest.raises(FloatingPointError, match=r"loss nan.*all devices passed"):
            run(NumberConfig(value=2, fail="everywhere"), keep_busy(ray, fourth), **group)
        assert set(cordons(store)) == {second, third}
        outcome = run(NumberConfig(value=3), free, health=True, **group)
        assert {row["node"] for row in outcome.record.notes["health"]} == {first, fourth}

        set_cordon(store, fourth, "fan is loud")
        with pytest.raises(NoNodeLeft, match=r"2 worker\(s\) of 1 CPU.*fan is loud.*olmo2 nodes --uncordon"):
            run(NumberConfig(value=4), free, **group)
        with pytest.raises(NoNodeLeft, match="fan is loud"):
            run(NumberConfig(value=4), free, placement={"on_device": {"labels": {ID_LABEL: fourth}}})

    # `olmo2 nodes` and `olmo2 nodes --check` on the same cluster; the fault is the stage's, so all pass.
    with fleet(store, cluster.address) as nodes:
        assert nodes.check()
        nodes.uncordon(second[:12])
        rows = {row["node"]: row for row in nodes.rows()}
    assert rows.keys() == {*cluster.ids, cluster.head_id}
    assert all(row["problem"] == "" and row["health"][0]["passed"] for row in rows.values())
    assert {node for node, row in rows.items() if row["cordon"]} == {third, fourth}
    assert rows[first]["resources"]["CPU"] == 1

    # A stage that runs goes on: a driver that comes back joins it, although every node has been cordoned since.
    store.remove(FAULTY)
    told_to_end = tmp_path / "end"

    def drive(listener: Callable[[Event], None]) -> Finished:
        ws = Workspace(store, stage="s", id="i", payload="s/i/g0001", progress_folder="_progress/s/i")
        placed = {"address": cluster.address, "name": "s", "code": "c", "settled": lambda: None}
        call, claim = StageCall(str(told_to_end), ws, {}), Claim(cpus=1, gpus=0, placement=Placement())
        return run_placed(end_when_told, call, listener, claim=claim, **placed)

    def leave(event: Event) -> None:
        raise ConnectionAbortedError("this driver is gone")

    with pytest.raises(ConnectionAbortedError):
        drive(leave)
    for node in (first, second):
        set_cordon(store, node, "by hand")
    told_to_end.touch()
    assert drive(told.append).notes["node"] in (first, second)
    with pytest.raises(NoNodeLeft, match="by hand"):
        run(NumberConfig(value=6), free)
