"""Norms, rotary embedding, SwiGLU, attention and softmax on CPUs as one operation each, forward and backward.

In a small model they take more than half of a training step when each is a dozen operations of PyTorch. C++ of `model/kernels`
computes them: `train.cpp`, `attention.cpp`, `softmax.cpp`, and with matrix tiles (AMX) `head.cpp` and `gradients.cpp`. They are
equal to those operations up to rounding. Sums are fp32, and results are rounded to the type of activations at the same places,
but gradients within one of them are not rounded on the way. Attention keeps scores in fp32; in bf16 what multiplies values and
keys is rounded first, as FlashAttention does.

`torch.compile` fuses the operations by itself, so code that it traces does not come here. Source of attention's backward pass:
FlashAttention (Dao et al. 2022).
"""

import ctypes
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.kernels.library import half, kernels_for, pointer

LONGEST = 512
"""Tokens of a sequence up to which attention is computed here: beyond, matmuls in bf16 are quicker."""
WHOLE_VECTORS = 16
"""What a head's width has to be a multiple of."""
FUSED_TYPES = (torch.float32, torch.bfloat16)


def fuses(x: Tensor, *norms: Tensor) -> bool:
    """Whether this is computed here: `x` and weights of norms plain tensors on the CPU, fp32 or bf16, in code that nothing
    compiles or transforms.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or type(x) is not Tensor:
        return False
    if any(weight.dtype not in FUSED_TYPES or type(weight) is not torch.nn.Parameter for weight in norms):
        return False
    return kernels_for(x.dtype, x.device) is not None


class HeadShape(NamedTuple):
    """How a projection splits into queries, keys and values."""

    heads: int
    kv_heads: int
    dim: int


class _Heads(ctypes.Structure):
    """`Heads` of train.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "heads", "kv_heads", "dim")),
        ("epsilon", ctypes.c_float),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
    )


class _Attention(ctypes.Structure):
    """`Attention` of attention.cpp."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("batch", "length", "heads", "kv_heads", "dim"))


class _Softmax(ctypes.Structure):
    """`Softmax` of softmax.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "vocab")),
        *((name, ctypes.c_float) for name in ("temperature", "z_weight")),
    )


class _Outer(ctypes.Structure):
    """`Outer` of gradients.cpp."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("rows", "smaller", "larger", "smaller_apart", "larger_apart", "turned", "adds")
        ),
        *((name, ctypes.c_void_p) for name in ("small", "large", "to")),
    )


class _Head(ctypes.Structure):
    """`Head` of head.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "vocab")),
        ("z_weight", ctypes.c_float),
        ("adds", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in ("x", "head", "targets", "scales", "log_totals", "picked", "to_x", "to_head")
        ),
    )


def fused_norm(
    x: Float[Tensor, "*rows width"],
    weight: Float[Tensor, " width"],
    eps: float,
    residual: Float[Tensor, "*rows width"] | None = None,
) -> Float[Tensor, "*rows width"]:
    """RMSNorm of `x`, added to `residual` where there is one."""
    return cast(Tensor, _Norm.apply(x, weight.float(), residual, eps))


def fused_heads(
    joined: Float[Tensor, "batch seq width"],
    norms: tuple[Float[Tensor, " queries"], Float[Tensor, " keys"]],
    eps: float,
    turns: tuple[Float[Tensor, "seq head_dim"], Float[Tensor, "seq head_dim"]],
    shape: HeadShape,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [batch, heads, seq, head_dim] of one matmul's output, which holds them side by side.

    `norms` are the weights of the norms of queries and keys, `turns` the cosines and sines by position.
    """
    return cast(
        tuple[Tensor, Tensor, Tensor], _HeadsOf.apply(joined, *(weight.float() for weight in norms), *turns, eps, shape)
    )


def fused_gate(joined: Float[Tensor, "*rows twice"]) -> Float[Tensor, "*rows width"]:
    """silu(gate) * up, of one matmul's output, which holds gate and up side by side."""
    return cast(Tensor, _Gate.apply(joined))


def fused_attention(
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads seq head_dim"],
    v: Float[Tensor, "batch kv_heads seq head_dim"],
) -> Float[Tensor, "batch seq heads_times_dim"]:
    """Causal softmax attention with scale 1/sqrt(head_dim), the heads of a position side by side."""
    return cast(Tensor, _Attend.apply(q, k, v))


def fused_softmax(
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    scales: Float[Tensor, " rows"] | None = None,
    temperature: float = 1.0,
    z_weight: float = 0.0,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Each row's logsumexp of logits / temperature, and what its target has of them, in fp32.

    With scales, the logits are overwritten with their gradient of
    scale * (logsumexp + z_weight * logsumexp^2 - logits[target] / temperature).
    """
    rows, vocab = logits.shape
    log_totals, picked = torch.empty(rows), torch.empty(rows)
    softmax = _Softmax(rows, vocab, temperature, z_weight)
    scales = None if scales is None else scales.contiguous().float()
    assert logits.is_contiguous() and targets.is_contiguous() and targets.dtype == torch.long
    _code(logits).olmo2_softmax(
        half(logits), ctypes.byref(softmax), pointer(logits), pointer(targets), None if scales is None else pointer(scales),
        pointer(log_totals), pointer(picked), torch.get_num_threads(),
    )  # fmt: skip
    return log_totals, picked


def has_tiles(x: Tensor) -> bool:
    """Whether `fused_outer` is the quicker one here: bf16, on a processor with matrix tiles (AMX)."""
    if x.dtype is not torch.bfloat16 or not fuses(x):
        return False
    kernels = kernels_for(x.dtype, x.device)
    return kernels is not None and kernels.tiles


def fused_outer(
    left: Float[Tensor, "rows m"],
    right: Float[Tensor, "rows n"],
    out: Float[Tensor, "m n"] | None = None,
    adds: bool = False,
) -> Float[Tensor, "m n"]:
    """left.T @ right of bf16 factors, in fp32, in `out` where it is given; it `adds` to what is there."""
    left, right = (t if t.stride(1) == 1 else t.contiguous() for t in (left, right))
    m, n = left.shape[1], right.shape[1]
    out = torch.empty(m, n) if out is None else out
    assert out.is_contiguous() and out.dtype == torch.float32
    small, large = (right, left) if m >= n else (left, right)
    outer = _Outer(
        len(left), small.shape[1], large.shape[1], small.stride(0), large.stride(0), m >= n, adds,
        pointer(small), pointer(large), pointer(out),
    )  # fmt: skip
    _code(left).olmo2_outer(ctypes.byref(outer), torch.get_num_threads())
    return out


def fused_head_loss(
    x: Float[Tensor, "rows d_model"],
    head: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, " rows"],
    scales: Float[Tensor, " rows"],
    z_weight: float,
    to_x: Float[Tensor, "rows d_model"] | None = None,
    to_head: Float[Tensor, "vocab d_model"] | None = None,
    adds: bool = False,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Logsumexp of each row's logits x @ head.T, and its target's logit, both fp32.

    The gradient of the sum of scale * (logsumexp + z_weight * logsumexp^2 - logit of the target) goes to `to_x`. It also goes to
    `to_head`, or `adds` to what is there. `x`, `head` and `to_x` are bf16. The logits are fp32 and never written.
    """
    x, head, targets, scales = (tensor.contiguous() for tensor in (x, head, targets, scales.float()))
    log_totals, picked = torch.empty(len(x)), torch.empty(len(x))
    assert all(to is None or to.is_contiguous() for to in (to_x, to_head)) and targets.dtype is torch.long
    assert to_head is None or to_head.dtype is torch.float32
    given = _Head(
        *x.shape, len(head), z_weight, adds, *map(pointer, (x, head, targets, scales, log_totals, picked)),
        *(None if to is None else pointer(to) for to in (to_x, to_head)),
    )  # fmt: skip
    _code(x).olmo2_head_loss(ctypes.byref(given), torch.get_num_threads())
    return log_totals, picked


def attends(shape: HeadShape, length: int) -> bool:
    """Whether `fused_attention` computes heads of this shape over so many positions."""
    return shape.dim % WHOLE_VECTORS == 0 and length <= LONGEST


def _code(x: Tensor) -> ctypes.CDLL:
    kernels = kernels_for(x.dtype, x.device)
    assert kernels is not None, "ask `fuses` first"
    return kernels.library


def _wide(count: int) -> ctypes.c_int64:
    return ctypes.c_int64(count)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, residual: Tensor | None, eps: float) -> Tensor:
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        width = x.shape[-1]
        out, scales = torch.empty_like(x), torch.empty(x.numel() // width)
        _code(x).olmo2_norm(
            half(x), pointer(x), pointer(weight), None if residual is None else pointer(residual), _wide(len(scales)),
            _wide(width), ctypes.c_float(eps), pointer(out), pointer(scales), torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, scales)
        ctx.added = residual is not None
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scales = ctx.saved_tensors
        given = gradients[0].contiguous()
        to, to_weight = torch.empty_like(x), torch.empty_like(weight)
        _code(x).olmo2_norm_gradient(
            half(x), pointer(x), pointer(weight), pointer(scales), pointer(given), _wide(len(scales)), _wide(x.shape[-1]),
            pointer(to), pointer(to_weight), torch.get_num_threads(),
        )  # fmt: skip
        return to, to_weight, given if ctx.added else None, None


class _HeadsOf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        cosines: Tensor,
        sines: Tensor,
        eps: float,
        shape: HeadShape,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, cosines, sines = x.contiguous(), cosines.contiguous(), sines.contiguous()
        batch, length, _ = x.shape
        heads = _Heads(batch, length, *shape, eps, pointer(cosines), pointer(sines))
        q, k, v = (
            torch.empty(batch, count, length, shape.dim, dtype=x.dtype)
            for count in (shape.heads, shape.kv_heads, shape.kv_heads)
        )
        scales = torch.empty(batch * length, 2)
        _code(x).olmo2_heads(
            half(x), ctypes.byref(heads), pointer(x), pointer(q_weight), pointer(k_weight), pointer(q), pointer(k), pointer(v),
            pointer(scales), torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(x, q_weight, k_weight, cosines, sines, scales)
        ctx.eps, ctx.shape = eps, shape
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, q_weight, k_weight, cosines, sines, scales = ctx.saved_tensors
        q, k, v = (gradient.contiguous() for gradient in gradients)
        heads = _Heads(*x.shape[:2], *ctx.shape, ctx.eps, pointer(cosines), pointer(sines))
        to, to_weights = torch.empty_like(x), torch.empty(len(q_weight) + len(k_weight))
        _code(x).olmo2_heads_gradient(
            half(x), ctypes.byref(heads), pointer(x), pointer(q_weight), pointer(k_weight), pointer(scales), pointer(q),
            pointer(k), pointer(v), pointer(to), pointer(to_weights), torch.get_num_threads(),
        )  # fmt: skip
        return to, to_weights[: len(q_weight)], to_weights[len(q_weight) :], None, None, None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1] // 2
        out = torch.empty(*x.shape[:-1], width, dtype=x.dtype)
        rows = out.numel() // width
        _code(x).olmo2_gated(half(x), pointer(x), _wide(rows), _wide(width), pointer(out), torch.get_num_threads())
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        given, to = gradients[0].contiguous(), torch.empty_like(x)
        width = given.shape[-1]
        _code(x).olmo2_gated_gradient(
            half(x),
            pointer(x),
            pointer(given),
            _wide(given.numel() // width),
            _wide(width),
            pointer(to),
            torch.get_num_threads(),
        )
        return to


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        batch, heads, length, dim = q.shape
        shape = _Attention(batch, length, heads, k.shape[1], dim)
        out = torch.empty(batch, length, heads * dim, dtype=q.dtype)
        log_sums = torch.empty(batch, heads, length)
        _code(q).olmo2_attend(
            half(q), ctypes.byref(shape), pointer(q), pointer(k), pointer(v), pointer(out), pointer(log_sums),
            torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, log_sums = ctx.saved_tensors
        batch, heads, length, dim = q.shape
        shape, given = _Attention(batch, length, heads, k.shape[1], dim), gradients[0].contiguous()
        to_q, to_k, to_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        _code(q).olmo2_attend_gradient(
            half(q), ctypes.byref(shape), pointer(q), pointer(k), pointer(v), pointer(out), pointer(log_sums), pointer(given),
            pointer(to_q), pointer(to_k), pointer(to_v), torch.get_num_threads(),
        )  # fmt: skip
        return to_q, to_k, to_v
