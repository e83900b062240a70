"""Causal attention, with a CPU path for bf16 that is several times quicker than the built-in kernel there.

The built-in CPU kernel multiplies bf16 slowly where the processor has AVX512-BF16 but no matrix tiles. Here queries are
taken in blocks of rows, and each block meets only the keys at or before its end. The matmuls are batched and bf16, and
softmax is fp32. The backward pass computes the scores again from the row-wise logsumexp, as FlashAttention does (Dao et al.
2022), so nothing of size seq x seq is kept. It goes by blocks of keys and the queries from each on, as FlashAttention 2 does
(Dao 2023), so that only the queries' gradient is a sum over blocks. Deviation from the built-in kernel: scores pass through
bf16 before the softmax, as in eager attention.
"""

import functools
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from model.network.attention_backend import attention_by

BLOCK_ROWS = 128
"""Least rows of one query block: smaller blocks waste less on masked scores, larger ones make quicker
matmuls.
"""
MAX_BLOCKS = 8
"""Most blocks of a sequence: each is unrolled in the compiled code."""


def attention(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads seq head_dim"],
    v: Float[Tensor, "batch kv_heads seq head_dim"],
    backend: str | None = None,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Causal softmax attention with scale 1/sqrt(head_dim); kv_heads divides heads (grouped queries).

    `backend` names the kernel of PyTorch's that computes it; None leaves the choice to what is here and to PyTorch.
    """
    if backend is not None:
        return attention_by(backend, q, k, v)
    groups = q.shape[1] // k.shape[1]
    # The blocked path relies on the compiler, which fuses its elementwise steps and folds its masks into constants.
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or not torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups > 1)
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    flat = (tensor.reshape(-1, *tensor.shape[2:]) for tensor in (q, k, v))
    # The types inside are chosen by hand: bf16 matmuls, fp32 softmax. Autocast must not choose others.
    with torch.autocast("cpu", enabled=False):
        return cast(Tensor, BlockedAttention.apply(*flat)).view(q.shape)


def blocks(length: int) -> list[tuple[int, int]]:
    """Row ranges [start, end) of the query blocks of a sequence."""
    # At least 128 rows a block, and at most 8 blocks: a sequence of 4096 has 8 blocks of 512 rows.
    rows = max(BLOCK_ROWS, math.ceil(length / MAX_BLOCKS))
    return [(start, min(start + rows, length)) for start in range(0, length, rows)]


def _row_mask(rows: int, length: int) -> Float[Tensor, "rows columns"]:
    """Minus infinity where column > row + length, else 0: from column length - start on, the mask of the query
    rows that begin at start. A constant of the compiled code, because comparing indices there is slower than
    the softmax itself.
    """
    return torch.full((rows, length + rows), float("-inf")).triu(length + 1)


def _column_mask(length: int, columns: int) -> Float[Tensor, "length columns"]:
    """Minus infinity where column > row, else 0: the mask of a block of keys and all queries from its start on."""
    return torch.full((length, columns), float("-inf")).triu(1)


def mark_constants() -> None:
    """Tell torch.compile that the masks are constants. Not a decorator, which would import the compiler with this module."""
    for mask in (_row_mask, _column_mask):
        torch.compiler.assume_constant_result(mask)


class BlockedAttention(torch.autograd.Function):
    """Attention of (n, seq, head_dim) tensors, n being batch times heads."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length, scale = q.shape[1], q.shape[2] ** -0.5
        rows = blocks(length)[0][1]
        mask = _row_mask(rows, length)
        outputs, log_sums = [], []
        for start, end in blocks(length):
            first = length - start
            # [n, rows, head_dim] @ [n, head_dim, end] -> [n, rows, end]: keys past the block's last row are never
            # touched.
            scores = torch.bmm(q[:, start:end], k[:, :end].mT).float() * scale
            scores = scores + mask[: end - start, first : first + end]
            # Subtracting the row's maximum keeps exp() within range.
            top = scores.amax(-1, keepdim=True)
            powers = (scores - top).exp().to(q.dtype)
            # Summed from the rounded bf16 powers, so that the weights which multiply v add up to one.
            total = powers.float().sum(-1, keepdim=True)
            outputs.append((torch.bmm(powers, v[:, :end]).float() / total).to(q.dtype))
            # log(sum(exp(scores))) of each row is all that backward needs to compute the weights again.
            log_sums.append(top + total.log())
        output, log_sum = torch.cat(outputs, dim=1), torch.cat(log_sums, dim=1)
        ctx.save_for_backward(q, k, v, output, log_sum)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, output, log_sum = ctx.saved_tensors
        outer = gradients[0].to(q.dtype)
        length, scale = q.shape[1], q.shape[2] ** -0.5
        ranges = blocks(length)
        mask = _column_mask(length, ranges[0][1])
        # Rows of dO * O summed: the softmax's correction term, computed once instead of per block (FlashAttention).
        delta = (outer.float() * output.float()).sum(-1, keepdim=True)
        q_parts, k_parts, v_parts = [], [], []
        for start, end in ranges:
            # Batched matmuls copy slices each time; here each is copied once.
            late_q, late_outer, block_k = (t.contiguous() for t in (q[:, start:], outer[:, start:], k[:, start:end]))
            scores = torch.bmm(late_q, block_k.mT).float() * scale + mask[: length - start, : end - start]
            weights = (scores - log_sum[:, start:]).exp()
            inner = torch.bmm(late_outer, v[:, start:end].mT).float() - delta[:, start:]
            inner = (weights * inner * scale).to(q.dtype)
            # dQ of the block's keys only; the parts are summed below in fp32, since bf16 sums would lose digits.
            q_parts.append(torch.bmm(inner, block_k))
            k_parts.append(torch.bmm(inner.mT, late_q))
            v_parts.append(torch.bmm(weights.to(q.dtype).mT, late_outer))
        q_gradient = []
        for start, end in ranges:
            shares = [
                part[:, start - first : end - first].float()
                for part, (first, _) in zip(q_parts, ranges, strict=True)
                # Under the causal mask, keys that begin after these queries give them nothing.
                if first <= start
            ]
            q_gradient.append(functools.reduce(torch.add, shares).to(q.dtype))
        return torch.cat(q_gradient, dim=1), torch.cat(k_parts, dim=1), torch.cat(v_parts, dim=1)
