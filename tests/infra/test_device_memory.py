"""The allocator of GPU memory is told to use expandable segments. Oracles: PyTorch's own reading of its environment, and what
processes of stages see; no GPU is used, and what it saves is not measured.
"""

import os
import subprocess
import sys

import pytest

from infra.compute.device_memory import ALLOCATOR, EXPANDABLE, allocator_environment
from infra.compute.train_group import worker_environment

CODE = """
import sys
from infra.execution.attempt import run_stage
from infra.session import Session
from infra.settings import Execution
from infra.storage.store import Store
from tests.infra.stages_for_tests import NumberConfig, allocator

if __name__ == "__main__":
    session = Session(Store(sys.argv[1]), Execution(ray="off", device=sys.argv[2]))
    print(run_stage(allocator, session, {"config": NumberConfig()}, lambda event: None).record.notes["allocator"])
"""
"""A run of its own, since the environment of a fork server is that of its first stage."""


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_process_on_a_gpu_gets_expandable_segments(device: str):
    assert allocator_environment(device, {}) == {ALLOCATOR: EXPANDABLE}


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_process_without_a_gpu_gets_nothing(device: str):
    assert allocator_environment(device, {}) == {}


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"])
@pytest.mark.parametrize("value", ["expandable_segments:False", "max_split_size_mb:512", ""])
def test_what_the_user_has_set_stays(name: str, value: str):
    assert allocator_environment("cuda", {name: value}) == {}
    assert ALLOCATOR not in worker_environment({name: value})


def test_a_worker_of_a_group_gets_it_with_the_flight_recorder():
    assert worker_environment({"TORCH_FR_BUFFER_SIZE": "7"}) == {
        "TORCH_FR_BUFFER_SIZE": "7", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1", ALLOCATOR: EXPANDABLE,
    }  # fmt: skip


def test_this_pytorch_reads_the_variable():
    """A torch without CUDA reads the settings that all accelerators share, expandable segments among them."""
    code = "import torch; print(torch._C._accelerator_getAllocatorSettings())"
    surroundings = without_allocator() | allocator_environment("cuda", without_allocator())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=surroundings)
    assert done.stdout.strip() == EXPANDABLE


@pytest.mark.parametrize(
    ("device", "own", "seen"),
    [
        ("cuda:0", {}, EXPANDABLE),
        ("cuda:0", {ALLOCATOR: "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ("cpu", {}, ""),
    ],
)
def test_the_process_of_a_stage_sees_it(device: str, own: dict[str, str], seen: str, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(CODE)
    command = [sys.executable, str(script), str(tmp_path / "store"), device]
    surroundings = without_allocator() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | own
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1:] == [seen]


def test_an_actor_has_it_before_torch_is_imported():
    code = "import sys, infra.compute.placed; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "False"


def without_allocator() -> dict[str, str]:
    """This environment without any setting of the allocator."""
    return {name: value for name, value in os.environ.items() if not name.endswith("_ALLOC_CONF")}
