"""The ten minutes of a GPU go through all their rows on the CPU at toy size: the first day with a GPU is for figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.sh"


@pytest.mark.slow
def test_every_row_has_its_figures():
    command = ["bash", str(SCRIPT), "--device", "cpu", "--toy"]
    done = subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert rows["correctness"]["passed"]
    assert rows["correctness"]["logits, transformers"] < 1e-4
    assert len(rows) == 13
    assert not [name for name, values in rows.items() if "left out" in values]
    assert all(values["tokens/s"] > 0 for name, values in rows.items() if name.startswith(("train", "SFT", "generate")))


def test_without_a_gpu_it_says_so():
    command = [sys.executable, str(SCRIPT.with_suffix(".py"))]
    done = subprocess.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "torch finds no CUDA device here" in done.stderr
