"""Rates of a training. Oracle: arithmetic by hand; the plan's table of devices."""

import pytest
import torch

from flows.inspection.costs.cost import DEVICES
from model.training.measuring.gpus import PEAK_FLOPS
from model.training.measuring.throughput import Meter, peak_flops, speed


def test_rates_by_hand() -> None:
    """Two devices of 100 FLOP/s do 300 FLOPs on 60 tokens in 3 s: half of what they could."""
    assert speed(3.0, 60.0, 300.0, "cpu", 2, peak=100.0) == {
        "tokens_per_second": 20.0, "tokens_per_second_per_device": 10.0, "mfu": 0.5,
    }  # fmt: skip
    assert "mfu" not in speed(3.0, 60.0, 300.0, "cpu", 2, peak=None)


def test_a_line_tells_of_the_time_since_the_one_before() -> None:
    meter = Meter(100, "cpu", 1)
    meter.peak = 10.0
    start = meter._at
    first = meter.since_last(start + 2.0, 120.0, 1000.0, 0.5)
    assert first == pytest.approx(
        {"tokens_per_second": 10.0, "tokens_per_second_per_device": 10.0, "data_wait_share": 0.25}
    )
    second = meter.since_last(start + 6.0, 140.0, 1020.0, 3.5)
    assert second == pytest.approx(
        {"tokens_per_second": 5.0, "tokens_per_second_per_device": 5.0, "data_wait_share": 0.75, "mfu": 0.5}
    )


@pytest.mark.parametrize(("name", "peak"), [
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
    ("NVIDIA GeForce RTX 4090", None),
])  # fmt: skip
def test_devices_are_known_by_their_names(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops("cuda:1") == peak
    assert peak_flops("cpu") is None


def test_the_plan_reckons_with_the_same_devices() -> None:
    assert {name.upper(): device.peak_flops for name, device in DEVICES.items()}.items() <= PEAK_FLOPS.items()
