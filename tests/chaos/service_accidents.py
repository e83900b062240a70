"""Accidents to what drivers rely on: object storage that answers badly, and killed processes of Ray, Prefect and stages.

Each is a function of the harness and a new store; what the driver then says of it is its own affair, and what it leaves is
looked at by the harness.
"""

import os
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

import psutil

from infra.storage.store import Store
from tests.chaos.drivers import drive_apart, drive_on_ray, drive_on_s3, drive_with_prefect
from tests.chaos.fault_proxy import FaultProxy

if TYPE_CHECKING:
    from tests.chaos.harness import Chaos

RATES = (0.01, 0.05, 0.15, 0.3)
"""Shares of requests that go wrong."""
MEETING_SECONDS = 40.0
"""How long a process is looked for: a Ray worker takes seconds to start on a busy machine."""


def faulty_storage(chaos: "Chaos", store: Store) -> None:
    """Requests go wrong in seven ways, and in every second accident the driver is killed in the middle."""
    rate, killed = chaos.chance.choice(RATES), chaos.chance.random() < 0.5
    with FaultProxy(chaos.services.s3.url, rate, chaos.chance.getrandbits(32)) as proxy:
        driver = chaos.start(store, drive_on_s3, proxy.url)
        if killed:
            chaos.moment(4.0)
            driver.kill()
        chaos.settle(driver)
        if not killed and driver.exitcode:
            chaos.problem(f"a driver ended with {driver.exitcode} at {rate:.0%} faults")
        chaos.faults.update({kind: count for kind, count in proxy.counts.items() if kind != "none"})


def killed_stage(chaos: "Chaos", store: Store) -> None:
    """The process that trains is killed, and its driver is not."""
    driver = chaos.start(store, drive_apart)

    def met() -> bool:
        for server in _children(driver):
            for stage in server.children():
                time.sleep(chaos.chance.uniform(0, 0.1))
                stage.kill()
                return True
        return False

    _meet(chaos, driver, met, "stage's process")


def killed_ray_worker(chaos: "Chaos", store: Store) -> None:
    """A worker of Ray is killed at its shard."""
    cluster = chaos.services.ray
    driver = _on_ray(chaos, store)

    def met() -> bool:
        for worker in cluster.workers():
            worker.kill()
            return True
        return False

    _meet(chaos, driver, met, "Ray worker")


def lost_ray_node(chaos: "Chaos", store: Store) -> None:
    """A node goes away with its raylet and its workers while one of them works, and another comes up."""
    cluster = chaos.services.ray
    driver = _on_ray(chaos, store)

    def met() -> bool:
        if cluster.workers():
            cluster.lose_node(chaos.chance.randrange(len(cluster.nodes)))
            return True
        return False

    _meet(chaos, driver, met, "Ray node at work")


def killed_prefect(chaos: "Chaos", store: Store) -> None:
    """The Prefect server is killed at a random moment of a run, and started again a little later."""
    server = chaos.services.prefect
    driver = chaos.start(store, drive_with_prefect, f"{server.url}/api", str(chaos.services.prefect_home))
    # While the driver runs: Prefect's client waits more than a minute for a server that it has once spoken to.
    comes_back = threading.Timer(chaos.chance.uniform(0.2, 3.0), server.start)

    def met() -> bool:
        if not any(store.names("_progress")) and not store.names("text"):
            return False
        chaos.moment(3.0)
        server.kill()
        comes_back.start()
        return True

    try:
        _meet(chaos, driver, met, "run with Prefect")
    finally:
        if comes_back.ident is not None:
            comes_back.join()
        if server.process.poll() is not None:
            chaos.problem("the Prefect server did not come back")
            server.start()


def _on_ray(chaos: "Chaos", store: Store) -> BaseProcess:
    authentication = os.environ.get("RAY_AUTH_MODE", "disabled")
    return chaos.start(store, drive_on_ray, chaos.services.ray.address, authentication)


def _children(process: BaseProcess) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return []


def _meet(chaos: "Chaos", driver: BaseProcess, met: Callable[[], bool], what: str) -> None:
    """Try until the accident has happened or the driver has ended; then wait for the driver."""
    deadline, happened = time.monotonic() + MEETING_SECONDS, False
    while not happened and driver.is_alive() and time.monotonic() < deadline:
        try:
            happened = met()
        except psutil.NoSuchProcess:
            continue  # it ended between the look and the kill
        time.sleep(0.01)
    (chaos.reached if happened else chaos.missed)[what] += 1
    chaos.settle(driver)
