"""Memory on the CPU that costs nothing until it is used."""

import math

import numpy as np
import torch
from torch import Tensor

_LINE = 64  # bytes of a cache line, and of the widest vector


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros on the CPU that take no time to make, because NumPy lets the system clear memory when it is first touched, in
    huge pages. Clearing thousands of small pages costs as much as a tenth of a short generation. They begin at a cache line.
    """
    size = math.prod(shape) * dtype.itemsize
    # NumPy's zeros come from calloc: pages are cleared by the system when they are first touched.
    memory = np.zeros(size + _LINE, dtype=np.uint8)
    # calloc's own notes stand before the memory, so that vectors would straddle two lines.
    start = -memory.ctypes.data % _LINE
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(shape)
