"""A local Ray asks for a token, and leaves nothing. Oracles: a program that reaches its ports without one, and the processes that
are there afterwards. Ray is not imported here, as in ours.
"""

import multiprocessing
import os
import signal
import subprocess
import sys

import psutil
import pytest

from infra.compute.ray_connection import connected


def double(value: int) -> int:
    return 2 * value


STRANGER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(lambda: "let in").remote(), timeout=30))
"""


def strangers_are_refused() -> None:
    """Whoever reaches the ports of a local Ray and has no token, or a wrong one, runs nothing."""
    with connected("local") as cluster:
        assert cluster.get(cluster.remote(double).remote(2)) == 4
        address = cluster.get_runtime_context().gcs_address
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
        for told in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 43}):
            asked = subprocess.run(
                [sys.executable, "-c", STRANGER, address], env=own | told, capture_output=True, text=True, timeout=200
            )
            assert asked.returncode != 0
            assert "let in" not in asked.stdout
        known = subprocess.run(
            [sys.executable, "-c", STRANGER, address], env=os.environ, capture_output=True, text=True, timeout=200
        )
        assert "let in" in known.stdout, known.stderr[-2000:]


@pytest.mark.slow
def test_a_local_ray_takes_work_only_from_who_knows_its_token():
    process = multiprocessing.get_context("spawn").Process(target=strangers_are_refused)
    process.start()
    process.join()
    assert process.exitcode == 0


NO_TIME_TO_END = """
import os, psutil, signal
from infra.compute.ray_connection import connected
with connected("local"):
    raylet = next(child for child in psutil.Process().children() if child.name() == "raylet")
    print(*(child.pid for child in (raylet, *raylet.children(recursive=True))))
    os.kill(raylet.pid, signal.SIGSTOP)
"""


@pytest.mark.slow
def test_a_raylet_that_cannot_end_in_its_second_leaves_no_agents():
    """A stopped one does nothing when it is told to end, as one on a machine without a free core; Ray kills it then."""
    done = subprocess.run(
        [sys.executable, "-c", NO_TIME_TO_END], capture_output=True, text=True, timeout=200, check=True
    )
    started = [int(word) for word in done.stdout.split()]
    assert len(started) > 1, "a raylet and its agents"
    left = [pid for pid in started if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


A_CLUSTER_OF_ITS_OWN = """
import psutil
from ray.cluster_utils import Cluster
from infra.compute import ray_connection
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
theirs = [pid for raylet in ray_connection._raylets() for pid in (raylet, *raylet.children(recursive=True))]
ray_connection.LINGER_SECONDS = 0.0
with ray_connection.connected("local") as ray:
    pass
ray_connection._timer.join()
print(ray.is_initialized(), len(theirs) > 1, all(process.is_running() for process in theirs))
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_ray_that_somebody_else_started_in_this_process_goes_on():
    done = subprocess.run(
        [sys.executable, "-c", A_CLUSTER_OF_ITS_OWN], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-3:] == ["False", "True", "True"]
