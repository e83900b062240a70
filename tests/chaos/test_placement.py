"""A recipe on a Ray cluster: every stage runs on a node of it, none on the driver's; nodes and the driver are lost.

Oracle: the digests of an undisturbed run on this machine. The head has no cores and is the driver's node; three nodes, each a
raylet of its own, have two cores each, and one of them has an accelerator by name.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.records.record import all_records
from infra.storage.store import Store
from tests.chaos.runs import Run, copy_before, progress, records, resumed_from, save_points, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1500)]

SECONDS = 500.0
"""A stage begins with a process of Ray that imports torch: on two busy cores a run takes minutes."""
OBJECT_STORE_BYTES = 80 * 2**20
ACCELERATOR = "toy_accelerator"
ON_ACCELERATOR = ("pretrain", "rlvr")


class Cluster:
    """A head without cores, and three nodes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self.ray = RayCluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES},
        )
        self.nodes = {name: self._add(name) for name in ("first", "second", "third")}

    def _add(self, name: str) -> Any:
        own = {"resources": {ACCELERATOR: 1}, "labels": {"kind": "accelerator"}} if name == "third" else {}
        return self.ray.add_node(num_cpus=2, object_store_memory=OBJECT_STORE_BYTES, **own)

    @property
    def head_id(self) -> str:
        return self.ray.head_node.node_id

    def working(self) -> list[tuple[str, psutil.Process]]:
        """Node and process of each stage that is placed now."""
        found = []
        for name, node in self.nodes.items():
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            children = raylet.children(recursive=True)
            found += [(name, child) for child in children if child.name().startswith("ray::PlacedStage")]
        return found

    def lose(self, name: str) -> None:
        """Kill a node as a power cut would, and bring another of its kind up."""
        self.ray.remove_node(self.nodes[name], allow_graceful=False)
        self.nodes[name] = self._add(name)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.ray.shutdown()


@pytest.fixture
def start(tmp_path: Path, api: str, cluster: Cluster) -> Callable[..., Run]:
    """Start a run whose stages are placed by the cluster."""
    count = iter(range(100))
    wishes = [f"execution.placement.{stage}.resources.{ACCELERATOR}=1" for stage in ON_ACCELERATOR]
    changes = [f"execution.ray={cluster.ray.address}", "execution.lease_stale_seconds=4", *wishes]

    def begin(store: Path, *arguments: str) -> Run:
        options = [part for change in changes for part in ("--set", change)]
        log = tmp_path / f"log-{next(count)}"
        mode = os.environ.get("RAY_AUTH_MODE", "disabled")
        return Run(store, *options, *arguments, api=api, log=log, RAY_AUTH_MODE=mode)

    return begin


def test_stages_run_on_the_nodes_and_go_on_without_their_driver(
    tmp_path: Path, undisturbed: Path, cluster: Cluster, start: Callable[..., Run]
):
    """The driver is killed in pre-training and comes back; the node that evaluates is lost."""
    accelerator = cluster.nodes["third"].node_id
    store = Store(str(tmp_path / "store"))
    driver = start(tmp_path / "store", "--until", "evaluate:base")
    driver.until(lambda: save_points(store, "pretrain"), "the middle of pretrain", SECONDS)
    assert not [region.path for region in psutil.Process(driver.process.pid).memory_maps() if "libtorch" in region.path]
    driver.kill_group()
    saved = save_points(store, "pretrain")
    wait_for(lambda: save_points(store, "pretrain") != saved, "further save points while nobody drives")
    driver = start(tmp_path / "store", "--until", "evaluate:base")
    driver.until(lambda: progress(store, "evaluate") and cluster.working(), "the middle of evaluate:base", SECONDS)
    cluster.lose(cluster.working()[0][0])
    driver.finish(seconds=SECONDS)
    made = {record.label: record for record in all_records(store)}
    assert (made["pretrain"].attempts, made["pretrain"].resumed_from) == (2, "")
    assert {label: digest for label, digest in records(Store(str(undisturbed))).items() if label in made} == records(
        store
    )
    assert made["pretrain"].notes["node"] == accelerator
    assert all(record.notes["node"] != cluster.head_id for record in made.values())
    assert len({record.notes["node"] for record in made.values()}) >= 3
    assert [path for path in store.walk("_progress") if path.endswith("finished.json")] == []


def test_a_node_that_is_lost_under_rollouts_costs_what_was_not_saved(
    tmp_path: Path, undisturbed: Path, cluster: Cluster, start: Callable[..., Run]
):
    store = Store(str(copy_before(undisturbed, "rlvr", tmp_path / "store")))
    driver = start(tmp_path / "store", "--until", "rlvr")
    driver.until(lambda: save_points(store, "rlvr"), "the middle of rlvr", SECONDS)
    assert [name for name, _ in cluster.working()] == ["third"]
    cluster.lose("third")
    driver.finish(seconds=SECONDS)
    assert resumed_from(store, "rlvr")
    assert records(store)["rlvr"] == records(Store(str(undisturbed)))["rlvr"]
    assert "lost the node or process of this stage" in driver.output


def test_an_interrupted_driver_ends_its_stage(
    tmp_path: Path, undisturbed: Path, cluster: Cluster, start: Callable[..., Run]
):
    store = Store(str(copy_before(undisturbed, "rlvr", tmp_path / "store")))
    driver = start(tmp_path / "store", "--until", "rlvr")
    driver.until(lambda: save_points(store, "rlvr"), "the middle of rlvr", SECONDS)
    os.killpg(driver.process.pid, signal.SIGINT)
    driver.process.wait(60)
    wait_for(lambda: not cluster.working(), "the end of the stage's actor")
    assert "rlvr" not in records(store)
