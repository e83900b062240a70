"""The name of this machine's processor, which every measured figure is printed with."""

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
