"""Chooses the kernel behind PyTorch's attention by measuring the ones that a device has.

PyTorch has several: FlashAttention, cuDNN's, the memory-efficient one of xFormers, and plain matmuls with a softmax ("math").
Which of them is the quickest depends on the device, the type and the shape, and PyTorch's own order does not measure it. So each
is run forward and backward on random tensors of the training's shape. One whose output or gradients are not those of math in
fp32, up to rounding, is refused, however quick it is.

Source: PyTorch's `scaled_dot_product_attention` and `torch.nn.attention.sdpa_kernel`. CUDA: not measured, since no GPU was at
hand; the tests choose between the two kernels that a CPU has.

Example: `measure_kernels(AttentionShape("cuda", torch.bfloat16, 32, 8, 128, 4096)).chosen("auto")` names the quickest.
"""

import functools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.config import AttentionBackend

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""PyTorch's kernels by the names that `execution.attention` has for them."""
_TOKENS = 16_384
"""Tokens of one measured pass: enough to occupy a GPU. Longer sequences are measured with one row."""
_WARM_RUNS, _TIMED_RUNS = 2, 5
"""Passes before and while time is taken: the first ones load and tune kernels."""
_LARGEST_ERROR = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-3}
"""Largest error of output and gradients against math in fp32, relative to their L2 norm: some five roundings of the type; in fp32
those of TF32, which a kernel may multiply in."""

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Causal attention of q [rows heads seq head_dim] and k, v [rows kv_heads seq head_dim]."""


def attention_by(
    backend: str,
    q: Float[Tensor, "batch heads seq head_dim"],
    k: Float[Tensor, "batch kv_heads seq head_dim"],
    v: Float[Tensor, "batch kv_heads seq head_dim"],
    *,
    alone: bool = False,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Causal attention by one of PyTorch's kernels, and by math for shapes that it does not take.

    With `alone` there is no such fallback, and RuntimeError is raised.
    """
    wanted = [BACKENDS[backend]] if alone or backend == "math" else [BACKENDS[backend], SDPBackend.MATH]
    # Math is last in PyTorch's own order, so it is taken only where the other refuses.
    with sdpa_kernel(wanted):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] > k.shape[1])


KERNELS: Mapping[str, Kernel] = {name: functools.partial(attention_by, name, alone=True) for name in BACKENDS}


class AttentionShape(NamedTuple):
    """What a choice holds for: where, in which type, and how heads and sequence are cut."""

    device: str
    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int
    length: int
    """Tokens of a row."""

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.length} tokens, {self.heads} heads of {self.head_dim} with {self.kv_heads} for keys and values, {dtype} on "
            f"{self.device}"
        )


class MeasuredKernels(NamedTuple):
    """What the kernels of a device did with one shape."""

    shape: AttentionShape
    seconds: dict[str, float]
    """Of a pass forward and backward, for each kernel that agrees with the reference."""
    refused: dict[str, str]
    """Why each of the others is not used."""

    def chosen(self, wanted: AttentionBackend) -> str:
        """The kernel of that name, or the quickest for `auto`.

        Raises ValueError where it cannot compute the shape or computes it wrongly, or where none can.
        """
        if wanted == "auto" and self.seconds:
            return min(self.seconds, key=lambda name: self.seconds[name])
        if wanted in self.seconds:
            return wanted
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.refused.items())
        raise ValueError(
            f"execution.attention={wanted} cannot compute attention of {self.shape} ({reasons}); name another of "
            f"{', '.join(BACKENDS)}, or auto, which takes the quickest that agrees with math in fp32"
        )

    def line(self, chosen: str) -> str:
        """The choice in one line."""
        times = [f"{name} {1e3 * seconds:.3g} ms" for name, seconds in sorted(self.seconds.items(), key=lambda x: x[1])]
        return (
            f"attention by {chosen} ({', '.join((*times, *(f'no {name}' for name in self.refused)))}) for {self.shape}"
        )


@functools.cache
def measured(shape: AttentionShape, names: Sequence[str]) -> MeasuredKernels:
    """`measure_kernels` with PyTorch's kernels of these names, once in a process; `names` is a tuple."""
    return measure_kernels(shape, {name: KERNELS[name] for name in names})


def measure_kernels(shape: AttentionShape, kernels: Mapping[str, Kernel] = KERNELS) -> MeasuredKernels:
    """Run each kernel forward and backward on random tensors, compare it with math in fp32, and time it where it agrees."""
    rows = max(1, _TOKENS // shape.length)
    generator = torch.Generator(shape.device).manual_seed(0)

    def drawn(heads: int) -> Tensor:
        size = (rows, heads, shape.length, shape.head_dim)
        return torch.randn(size, dtype=shape.dtype, device=shape.device, generator=generator)

    q, k, v, outer = drawn(shape.heads), drawn(shape.kv_heads), drawn(shape.kv_heads), drawn(shape.heads)
    # Heads and rows do not meet, so one row and one group of queries say enough; all of them in fp32 might not fit.
    group = shape.heads // shape.kv_heads
    sample = [tensor[:1, :count].float() for tensor, count in ((q, group), (k, 1), (v, 1), (outer, group))]
    wanted = _passes(KERNELS["math"], *sample)
    seconds, refused = {}, {}
    for name, kernel in kernels.items():
        try:
            found = _passes(kernel, q, k, v, outer)
            cut = [tensor[:1, : like.shape[1]] for tensor, like in zip(found, wanted, strict=True)]
            error = max(_error(tensor, like) for tensor, like in zip(cut, wanted, strict=True))
            # Asked this way round, so that a NaN is refused too.
            if not error <= _LARGEST_ERROR[shape.dtype]:
                refused[name] = f"is off math in fp32 by {error:.2g} (limit {_LARGEST_ERROR[shape.dtype]:g})"
                continue
            seconds[name] = _timed(lambda kernel=kernel: _passes(kernel, q, k, v, outer), shape.device)
        # What a kernel cannot do, memory that it lacks included, PyTorch says by this.
        except RuntimeError as error:
            refused[name] = str(error).splitlines()[0]
    if torch.device(shape.device).type == "cuda":
        # What math needed here is more than a training ever asks for at once.
        torch.cuda.empty_cache()
    return MeasuredKernels(shape, seconds, refused)


def _passes(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, outer: Tensor) -> tuple[Tensor, ...]:
    """Output, and gradients of q, k and v."""
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    # Called before a step, where autograd may be off; PyTorch warns with each reason why it refuses a shape.
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = kernel(*leaves)
        output.backward(outer)
    return output.detach(), *(cast(Tensor, leaf.grad) for leaf in leaves)


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


def _timed(run: Callable[[], object], device: str) -> float:
    """Seconds of the quickest of some runs: other programs can make one slower, never faster."""
    times = []
    for _ in range(_WARM_RUNS + _TIMED_RUNS):
        start = time.perf_counter()
        run()
        # Kernels of a GPU are only queued when the call returns.
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[_WARM_RUNS:])
