"""Energy counters. Oracles: the kernel's powercap layout, written by hand; NVML's answers as its documentation gives them,
since no GPU is here.
"""

from pathlib import Path
from typing import Any

import pynvml
import pytest

from infra.execution.energy import joules_between, read_joules


def package(root: Path, name: str, counter: int, limit: int = 1_000_000_000) -> None:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(str(counter))
    (folder / "max_energy_range_uj").write_text(str(limit))


def test_packages_are_summed_and_parts_of_them_left_out(tmp_path: Path):
    package(tmp_path, "intel-rapl:0", 5_000_000)
    package(tmp_path, "intel-rapl:1", 1_000_000)
    package(tmp_path, "intel-rapl:0:0", 900_000)
    before = read_joules(tmp_path)
    package(tmp_path, "intel-rapl:0", 8_000_000)
    package(tmp_path, "intel-rapl:1", 1_500_000)
    assert joules_between(before, read_joules(tmp_path)) == 3.5


def test_a_counter_that_wrapped_is_counted_on(tmp_path: Path):
    package(tmp_path, "intel-rapl:0", 9_000_000, limit=10_000_000)
    before = read_joules(tmp_path)
    package(tmp_path, "intel-rapl:0", 1_000_000, limit=10_000_000)
    assert joules_between(before, read_joules(tmp_path)) == 2.0


def test_no_counter_is_no_figure(tmp_path: Path):
    assert joules_between(read_joules(tmp_path), read_joules(tmp_path)) is None


def test_gpus_count_millijoules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counters, calls = [5_000, 250], []
    answers: dict[str, Any] = {
        "nvmlInit": lambda: calls.append("init"),
        "nvmlShutdown": lambda: calls.append("shutdown"),
        "nvmlDeviceGetCount": lambda: len(counters),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: counters[handle],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    package(tmp_path, "intel-rapl:0", 5_000_000)
    before = read_joules(tmp_path)
    counters[:] = [7_000, 1_250]
    assert joules_between(before, read_joules(tmp_path)) == 3.0
    assert calls == ["init", "shutdown"] * 2
    counters[:] = [100, 2_250]
    after = read_joules(tmp_path)
    assert joules_between(before, after) == 2.0, "the first GPU's driver was loaded again meanwhile"


def test_a_gpu_that_counts_nothing_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(handle: int) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    for name in ("nvmlInit", "nvmlShutdown"):
        monkeypatch.setattr(pynvml, name, lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", refuse)
    assert read_joules(tmp_path) == {}
