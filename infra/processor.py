"""This machine's processor: its name, which every measured figure is printed with, and how threads wait on it."""

import os
import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux tells it."""
_TOLD = ("avx2", "avx512f", "avx512_bf16", "amx_tile")
"""Instructions that decide the speed of matmuls."""


def processor_name() -> str:
    """The processor as its maker names it, with its instructions for matmuls, where the system says so."""
    if not CPU_INFO.exists():
        return platform.processor() or platform.machine()
    lines = [line.partition(":") for line in CPU_INFO.read_text(encoding="utf-8").splitlines()]
    # With many cores the names repeat and the last one stays, which is as good as the first.
    said = {name.strip(): value.strip() for name, _, value in lines}
    flags = said.get("flags", "").split()
    return f"{said.get('model name', platform.machine())} ({', '.join(flag for flag in _TOLD if flag in flags)})"


def wait_passively() -> None:
    """Let the threads of OpenMP sleep while they wait for each other, unless the user has said otherwise.

    By default they spin. Where other programs want the same cores, threads that spin keep off those that they wait for: at a
    load of 9 on two cores, matmuls on two threads were 5 times as fast with threads that sleep. The library reads the variable
    when it is loaded, so this comes before torch is imported; processes inherit it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
