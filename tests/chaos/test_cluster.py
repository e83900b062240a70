"""Shards on a Ray cluster of several nodes that share a store: a straggler, a lost node, twenty kills at random moments.

Oracle: the digest of the same stage run in this process, and a log of every start of a shard. Nodes are real raylets,
each with one core; the head has none, as the machine that drives a cluster often has.
"""

import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.compute import shard_tasks as ray_shards
from infra.compute.shards import marker_path
from infra.execution.attempt import run_stage
from infra.records.record import all_records
from infra.session import Session
from infra.settings import Execution
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Workspace
from tests.infra.stages_for_tests import Number, NumberConfig

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

KILLS = 20
SHARDS = 24
SEED = 20_250_103
OBJECT_STORE_BYTES = 80 * 2**20
# One process imports Ray, every driver is forked from it: a kill then costs a connection and no more.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["ray", "infra.execution.attempt", "tests.chaos.test_cluster"])


def sum_slowly(ws: Workspace, config: NumberConfig) -> Number:
    items = [{"value": value, "log": config.kill_marker} for value in range(config.value)]
    total = sum(ws.map(square_slowly, items, description="square"))
    ws.write_json("number.json", total)
    return ws.artifact(Number, value=total)


def square_slowly(ws: Workspace, item: dict[str, Any]) -> int:
    """Logs the start and whether the shard was committed then. The shard named in `<log>.slow` hangs the first time."""
    value, log = item["value"], Path(item["log"])
    done = ws.store.exists(marker_path(ws, f"square-{value:06d}"))
    with log.open("a") as file:
        file.write(f"{value} {'again' if done else 'open'} {os.getpid()}\n")
    slow = log.with_suffix(".slow")
    if slow.exists() and slow.read_text() == str(value):
        slow.unlink()
        time.sleep(3600)
    ws.write(f"{value}/first.txt", str(value).encode())
    time.sleep(0.05)
    ws.write(f"{value}/second.txt", str(value**2).encode())
    return value**2


squares = stage(sum_slowly, name="squares", version=1)


class Cluster:
    """A head without cores and nodes with one each."""

    def __init__(self, nodes: int):
        from ray.cluster_utils import Cluster as RayCluster

        memory = {"object_store_memory": OBJECT_STORE_BYTES}
        self.ray = RayCluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory}
        )
        self.memory = memory
        self.nodes = [self.ray.add_node(num_cpus=1, **memory) for _ in range(nodes)]

    @property
    def address(self) -> str:
        return self.ray.address

    def lose_node(self, index: int) -> None:
        """Kill a node as a power cut would, and bring another one up."""
        self.ray.remove_node(self.nodes.pop(index), allow_graceful=False)
        self.nodes.append(self.ray.add_node(num_cpus=1, **self.memory))

    def workers(self) -> list[psutil.Process]:
        """Processes in which shards are running."""
        found = []
        for node in self.nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            found += [child for child in raylet.children(recursive=True) if child.name().startswith("ray::run_shard")]
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(nodes=2)
    yield cluster
    cluster.ray.shutdown()


def drive(folder: str, address: str, authentication: str = "disabled") -> None:
    """One attempt at the stage, in this process; starts of shards are logged next to the store.

    A Ray that an earlier test started in the tests' process has switched token authentication on there, and so for the
    cluster; the fork server may be older than that and does not know.
    """
    if address != "off":
        os.environ["RAY_AUTH_MODE"] = authentication
    ray_shards.STRAGGLER_SECONDS, ray_shards.LOOK_SECONDS = 2.0, 0.2
    session = Session(Store(folder), Execution(ray=address, on_cluster="shards", lease_stale_seconds=2.0))
    config = NumberConfig(value=SHARDS, kill_marker=f"{folder}.log")
    run_stage(squares, session, squares.bind(config), lambda event: None)


def driver(folder: Path, address: str) -> Any:
    authentication = os.environ.get("RAY_AUTH_MODE", "disabled")
    process = processes.Process(target=drive, args=(str(folder), address, authentication))
    process.start()
    return process


def digest(folder: Path) -> str | None:
    records = all_records(Store(str(folder))) if folder.exists() else []
    return records[0].digest if records else None


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest without a cluster and without accidents."""
    folder = tmp_path_factory.mktemp("calm") / "store"
    drive(str(folder), "off")
    found = digest(folder)
    assert found is not None
    return found


def starts(folder: Path) -> Counter[str]:
    """How often each shard was begun. None may have been begun after its commit."""
    lines = [line.split() for line in Path(f"{folder}.log").read_text().splitlines()]
    assert [line for line in lines if line[1] == "again"] == []
    return Counter(line[0] for line in lines)


def wait_for_starts(folder: Path, count: int, process: Any) -> None:
    """Until so many shards were begun, or the driver ended."""
    log = Path(f"{folder}.log")
    deadline = time.monotonic() + 300
    while not log.exists() or len(log.read_text().splitlines()) < count:
        if process.exitcode is not None:
            return
        assert time.monotonic() < deadline, f"no {count} shards were begun"
        time.sleep(0.02)


def test_a_hanging_shard_is_run_a_second_time_and_the_work_is_spread(cluster: Cluster, expected: str, tmp_path: Path):
    """The first run of one shard sleeps for an hour; only a second run can end the stage within the test's time."""
    folder = tmp_path / "store"
    (tmp_path / "store.slow").write_text("5")
    process = driver(folder, cluster.address)
    process.join(300)
    assert process.exitcode == 0
    assert digest(folder) == expected
    begun = starts(folder)
    assert begun["5"] == 2
    assert len(begun) == SHARDS
    lines = [line.split() for line in Path(f"{folder}.log").read_text().splitlines()]
    assert len({line[2] for line in lines}) >= 2, "one worker did everything"


def test_a_lost_node_costs_its_running_shards_only(cluster: Cluster, expected: str, tmp_path: Path):
    folder = tmp_path / "store"
    process = driver(folder, cluster.address)
    wait_for_starts(folder, SHARDS // 2, process)
    cluster.lose_node(0)
    process.join(300)
    assert process.exitcode == 0
    assert digest(folder) == expected
    # The node had one core. A straggler's second run may come on top, since starting a new node slows the machine.
    assert sum(starts(folder).values()) <= SHARDS + 2


@pytest.mark.timeout(1800)
def test_twenty_kills_of_drivers_workers_and_nodes_change_no_byte(cluster: Cluster, expected: str, tmp_path: Path):
    chance = random.Random(SEED)
    kills: Counter[str] = Counter()
    rounds = 0
    while kills.total() < KILLS:
        rounds += 1
        folder = tmp_path / f"store-{rounds}"
        while digest(folder) is None:
            process = driver(folder, cluster.address)
            begun = sum(starts(folder).values()) if Path(f"{folder}.log").exists() else 0
            while kills.total() < KILLS and process.is_alive():
                wait_for_starts(folder, begun + 1, process)
                begun += 1
                process.join(chance.uniform(0, 0.3))
                victim = chance.choice(["driver", "worker", "node"])
                if kill(victim, process, cluster, chance):
                    kills[victim] += 1
            process.join(300)
            assert process.exitcode in (0, -9)
        assert digest(folder) == expected, f"round {rounds} after {kills}"
        starts(folder)
    assert min(kills[victim] for victim in ("driver", "worker", "node")) >= 3


def kill(victim: str, process: Any, cluster: Cluster, chance: random.Random) -> bool:
    """Kill a driver, a worker or a node; False where there is nothing to kill any more."""
    if not process.is_alive():
        return False
    if victim == "driver":
        process.kill()
    elif victim == "node":
        cluster.lose_node(chance.randrange(len(cluster.nodes)))
    else:
        workers = cluster.workers()
        if not workers:
            return False
        chance.choice(workers).kill()
    return True
