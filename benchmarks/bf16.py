"""Matmuls in bf16 as the libraries make them here and through fp32 (`model/network/matmul.py`), in CPU milliseconds.

Run alone: `[ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2] python benchmarks/bf16.py`. The three matmuls of a linear layer,
of 2,048 tokens and the laptop's widths, on one thread. The last line is one JSON object: `native`, `through_fp32` and `fp32`,
each in milliseconds of the three together; `ratio`: native over through fp32.
"""

import json
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F

from infra.processor import processor_name
from model.network import matmul

ROWS, INPUTS, OUTPUTS, REPEATS = 2048, 128, 384, 10


def milliseconds(compute: Callable[[], object]) -> float:
    """The quickest of some calls."""
    best = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        compute()
        best = min(best, time.process_time() - began)
    return 1000 * best


def layer(kind: torch.dtype, native: bool) -> float:
    """Forward and both gradients."""
    matmul.NATIVE_BF16 = native
    x = torch.randn(ROWS, INPUTS, dtype=kind, requires_grad=True)
    weight = torch.randn(OUTPUTS, INPUTS, dtype=kind, requires_grad=True)
    given = torch.randn(ROWS, OUTPUTS, dtype=kind)
    return milliseconds(lambda: (F.linear if native else matmul.linear)(x, weight).backward(given))


def main() -> None:
    found = {
        "native": layer(torch.bfloat16, native=True),
        "through_fp32": layer(torch.bfloat16, native=False),
        "fp32": layer(torch.float32, native=True),
    }
    print(json.dumps({"processor": processor_name(), **found, "ratio": found["native"] / found["through_fp32"]}))


if __name__ == "__main__":
    main()
