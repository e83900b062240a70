"""Energy of a stage: what the machine's counters say, or a stated power over its time.

Counters are those of processor packages (Linux powercap, RAPL) and of NVIDIA GPUs (NVML, since Volta). They are the whole
machine's: two stages side by side both see the sum, and of a group over several nodes only this one is seen. There a power may
be stated (`execution.watts`). Where nothing counts and nothing is stated, there is no figure. Paper section 6.5 measures node
power every 25 ms.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import pynvml

POWERCAP = Path("/sys/class/powercap")
Counters = dict[str, tuple[float, float]]
"""Joules on a counter, and the joules at which it begins again at zero (infinity: never), by the counter's name."""


def read_joules(root: Path = POWERCAP) -> Counters:
    """Every energy counter of this machine; empty where nothing is counted."""
    return dict(_packages(root)) | dict(_gpus())


def _packages(root: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    for package in sorted(root.glob("intel-rapl:*")):
        # Sub-zones (intel-rapl:0:0) are parts of their package. Not everybody may read a counter.
        if package.name.count(":") == 1:
            with contextlib.suppress(OSError):
                counter = int((package / "energy_uj").read_text())
                yield package.name, (counter / 1e6, int((package / "max_energy_range_uj").read_text()) / 1e6)


def _gpus() -> Iterator[tuple[str, tuple[float, float]]]:
    # Without a driver there is nothing to ask, and a GPU older than Volta counts nothing.
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                counter = pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(index))
                # Millijoules since the driver was loaded, in 64 bits.
                yield f"gpu:{index}", (counter / 1e3, math.inf)
        finally:
            pynvml.nvmlShutdown()


def joules_between(before: Counters, after: Counters) -> float | None:
    """Joules used between two readings, or None without counters. A counter that fell has begun again once."""
    used = None
    for name, (start, limit) in before.items():
        end = after[name][0] if name in after else None
        # A GPU's counter falls when its driver is loaded again, and what it used before that is lost.
        if end is not None and (end >= start or math.isfinite(limit)):
            used = (used or 0.0) + (end - start if end >= start else end + limit - start)
    return used
