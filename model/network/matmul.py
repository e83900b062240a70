"""Matmuls in the type of their factors, in bf16 through fp32 on processors that cannot multiply bf16.

x86 processors without AVX512-BF16 or AMX have no instructions for bf16, and the libraries' replacement for them takes 2 to 12
times as long as fp32 does (`benchmarks/bf16.py`). Every such instruction sums in fp32 and rounds once, and so does a matmul of
widened factors: it is the same up to the order of the sum.
"""

import os
import platform
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from model.kernels.library import BELOW_BF16


def multiplies_bf16() -> bool:
    """Whether this process's matmuls of bf16 factors have instructions of their own on the CPU."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in BELOW_BF16:
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


NATIVE_BF16 = multiplies_bf16()
"""A constant, so that compiled code need not ask."""


def through_fp32(factor: Tensor) -> bool:
    """Whether matmuls of factors like this one go through fp32."""
    return factor.dtype is torch.bfloat16 and factor.device.type == "cpu" and not NATIVE_BF16


def product(left: Float[Tensor, "m k"], right: Float[Tensor, "k n"], out: Tensor | None = None) -> Float[Tensor, "m n"]:
    """left @ right, in `out` where it is given. Autocast has to be off."""
    if through_fp32(left):
        wide = left.float() @ right.float()
        return wide.to(left.dtype) if out is None else out.copy_(wide)
    return left @ right if out is None else torch.mm(left, right, out=out)


def linear(x: Float[Tensor, "*rows k"], weight: Float[Tensor, "n k"]) -> Float[Tensor, "*rows n"]:
    """x @ weight.T."""
    return cast(Tensor, _Linear.apply(x, weight)) if through_fp32(x) else F.linear(x, weight)


class _Linear(torch.autograd.Function):
    """Keeps what the plain one does, its factors in bf16, and rounds its gradients to bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        with torch.autocast("cpu", enabled=False):
            return F.linear(x.float(), weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        given = gradients[0].float()
        with torch.autocast("cpu", enabled=False):
            to_x = (given @ weight.float()).to(x.dtype) if ctx.needs_input_grad[0] else None
            to_weight = None
            if ctx.needs_input_grad[1]:
                to_weight = (given.flatten(0, -2).T @ x.flatten(0, -2).float()).to(weight.dtype)
        return to_x, to_weight
