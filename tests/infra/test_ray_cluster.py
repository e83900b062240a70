"""The shared Ray connection. Oracle: a cluster outlives the thread that first asked for it."""

import multiprocessing
import threading
from typing import Any

import psutil
import pytest
import ray

from infra.compute.ray_connection import connected


def double(value: int) -> int:
    return 2 * value


def use_ray_from_threads() -> None:
    """Two threads use Ray one after the other; its first start fails."""
    answers, failures = [], []
    start = ray.init

    def fail_once(**settings: Any) -> None:
        if not failures:
            failures.append(settings)
            raise RuntimeError("the server crashed before it began")
        start(**settings)

    ray.init = fail_once

    def use() -> None:
        with connected("local") as cluster:
            answers.append(cluster.get(cluster.remote(double).remote(2)))

    for _ in range(2):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join(120)
        servers = [
            process
            for process in psutil.Process().children(recursive=True)
            if process.name() in ("raylet", "gcs_server")
        ]
        _, alive = psutil.wait_procs(servers, timeout=3)
        assert sorted(process.name() for process in alive) == ["gcs_server", "raylet"]
    assert answers == [4, 4]
    assert len(failures) == 1


@pytest.mark.slow
def test_ray_outlives_the_thread_that_asked_for_it():
    """The kernel kills what a thread has started with a parent-death signal when the thread ends; so must it not be ours. And
    a start that fails is tried again.

    In a process of its own: Ray forks its servers, and what other tests have loaded may leave handlers that crash in a fork.
    """
    process = multiprocessing.get_context("spawn").Process(target=use_ray_from_threads)
    process.start()
    process.join()
    assert process.exitcode == 0
