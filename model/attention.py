"""Causal attention, with a CPU path for bf16 that is several times quicker than the built-in kernel there.

The built-in CPU kernel multiplies bf16 slowly where the processor has AVX512-BF16 but no matrix tiles. Here
queries are taken in blocks of rows; each block meets only the keys at or before its end, the products are
batched bf16 matrix products, and softmax is fp32. The backward pass computes the scores again from the
row-wise logsumexp, as FlashAttention does (Dao et al. 2022), so nothing of size seq x seq is kept. Deviation
from the built-in kernel: scores pass through bf16 before the softmax, as in eager attention.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

BLOCK_ROWS = 128
"""Least rows of one query block: smaller blocks waste less on masked scores, larger ones make quicker
products.
"""
MAX_BLOCKS = 8
"""Most blocks of a sequence: each is unrolled in the compiled code."""


def attention(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads seq head_dim"],
    v: Float[Tensor, "batch kv_heads seq head_dim"],
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Causal softmax attention with scale 1/sqrt(head_dim); kv_heads divides heads (grouped queries)."""
    groups = q.shape[1] // k.shape[1]
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or not torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups > 1)
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    flat = (tensor.reshape(-1, *tensor.shape[2:]) for tensor in (q, k, v))
    with torch.autocast("cpu", enabled=False):
        return cast(Tensor, BlockedAttention.apply(*flat)).view(q.shape)


def blocks(length: int) -> list[tuple[int, int]]:
    """Row ranges [start, end) of the query blocks of a sequence."""
    rows = max(BLOCK_ROWS, math.ceil(length / MAX_BLOCKS))
    return [(start, min(start + rows, length)) for start in range(0, length, rows)]


def _scores(q: Tensor, k: Tensor, start: int, end: int) -> Float[Tensor, "n rows keys"]:
    """Scaled fp32 scores of query rows [start, end) with keys [0, end), minus infinity above the diagonal."""
    scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2)).float() / math.sqrt(q.shape[-1])
    rows = torch.arange(start, end, device=q.device).unsqueeze(1)
    return scores.masked_fill(torch.arange(end, device=q.device) > rows, float("-inf"))


class BlockedAttention(torch.autograd.Function):
    """Attention of (n, seq, head_dim) tensors, n being batch times heads."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outputs, log_sums = [], []
        for start, end in blocks(q.shape[1]):
            scores = _scores(q, k, start, end)
            top = scores.amax(-1, keepdim=True)
            powers = (scores - top).exp()
            total = powers.sum(-1, keepdim=True)
            outputs.append((torch.bmm(powers.to(q.dtype), v[:, :end]).float() / total).to(q.dtype))
            log_sums.append(top + total.log())
        output, log_sum = torch.cat(outputs, dim=1), torch.cat(log_sums, dim=1)
        ctx.save_for_backward(q, k, v, output, log_sum)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, output, log_sum = ctx.saved_tensors
        outer = gradients[0].to(q.dtype)
        scale = 1 / math.sqrt(q.shape[-1])
        delta = (outer.float() * output.float()).sum(-1, keepdim=True)
        q_parts: list[Tensor] = []
        k_total, v_total = (torch.zeros(k.shape, dtype=torch.float32, device=k.device) for _ in range(2))
        for start, end in blocks(q.shape[1]):
            weights = (_scores(q, k, start, end) - log_sum[:, start:end]).exp()
            inner = torch.bmm(outer[:, start:end], v[:, :end].transpose(1, 2)).float()
            inner = (weights * (inner - delta[:, start:end]) * scale).to(q.dtype)
            q_parts.append(torch.bmm(inner, k[:, :end]))
            pad = (0, 0, 0, k.shape[1] - end)
            k_total = k_total + F.pad(torch.bmm(inner.transpose(1, 2), q[:, start:end]), pad)
            v_total = v_total + F.pad(torch.bmm(weights.to(q.dtype).transpose(1, 2), outer[:, start:end]), pad)
        return torch.cat(q_parts, dim=1), k_total.to(k.dtype), v_total.to(v.dtype)
