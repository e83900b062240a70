"""Computes how fast a training goes: rates for the live log and for a record's notes, never part of a result.

Source: RECIPE D (tokens per second and device, MFU, share of the time that data took, memory of the device). MFU counts
the FLOPs of RECIPE A.7 and is left out where a device's peak is not known.
"""

import time

import torch

from model.training.measuring.gpus import PEAK_FLOPS


def peak_flops(device: str) -> float | None:
    """Dense bf16 FLOP/s of a torch device; None for a CPU and for GPUs that are not in `PEAK_FLOPS`."""
    if torch.device(device).type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def speed(
    seconds: float, tokens: float, flops: float | None, device: str, devices: int, peak: float | None
) -> dict[str, float]:
    """Rates of `devices` equal devices that together trained so many tokens in so many seconds.

    `mfu` is a share of `peak` (FLOP/s of one device), given where both FLOPs are known; `device_memory_bytes`, on CUDA,
    is the most that this process has held so far.
    """
    per_second = tokens / max(seconds, 1e-9)
    rates = {"tokens_per_second": per_second, "tokens_per_second_per_device": per_second / devices}
    # Without a published peak a share of it would be a guess, so it is left out.
    if flops is not None and peak is not None:
        rates["mfu"] = flops / (max(seconds, 1e-9) * devices * peak)
    if torch.device(device).type == "cuda":
        rates["device_memory_bytes"] = float(torch.cuda.max_memory_allocated(device))
    return rates


class Meter:
    """Rates between two lines of a log."""

    def __init__(self, tokens: int, device: str, devices: int) -> None:
        self.device, self.devices = device, devices
        self.peak = peak_flops(device)
        self._at, self._tokens, self._waited = time.perf_counter(), float(tokens), 0.0
        # FLOPs so far are told with the first line, so a share of the peak begins with the second.
        self._flops: float | None = None

    def since_last(self, at: float, tokens: float, flops: float | None, waited: float) -> dict[str, float]:
        """Rates since the last call. `at` is a time of `time.perf_counter`; the others are totals, `waited` in seconds."""
        seconds = at - self._at
        done = None if flops is None or self._flops is None else flops - self._flops
        rates = speed(seconds, tokens - self._tokens, done, self.device, self.devices, self.peak)
        rates["data_wait_share"] = min(1.0, (waited - self._waited) / max(seconds, 1e-9))
        self._at, self._tokens, self._waited, self._flops = at, tokens, waited, flops
        return rates
