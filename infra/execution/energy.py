"""Energy that the machine's processor packages used, where the kernel counts it (Linux powercap, RAPL).

The counters are the whole machine's: two stages side by side both see the sum. Where there is no counter, or it may not be
read, there is no figure; none is estimated. Paper section 6.5 measures node power instead, every 25 ms.
"""

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


def read_joules(root: Path = POWERCAP) -> dict[str, tuple[float, float]]:
    """Counter and its wrap-around value in joules, per processor package; empty where nothing is counted."""
    found = {}
    for package in sorted(root.glob("intel-rapl:*")):
        # Sub-zones (intel-rapl:0:0) are parts of their package.
        if package.name.count(":") != 1:
            continue
        try:
            counter = int((package / "energy_uj").read_text())
            limit = int((package / "max_energy_range_uj").read_text())
        except OSError:
            continue
        found[package.name] = (counter / 1e6, limit / 1e6)
    return found


def joules_between(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> float | None:
    """Joules used between two readings, or None without counters. A counter that fell has wrapped around once."""
    used = None
    for name, (start, limit) in before.items():
        if name in after:
            end = after[name][0]
            used = (used or 0.0) + (end - start if end >= start else end + limit - start)
    return used
