"""A local Ray asks for a token. Oracle: a program that reaches its ports without it. Ray is not imported here, as in ours."""

import multiprocessing
import os
import subprocess
import sys

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
