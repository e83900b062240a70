"""Matmuls with fixed weights lay the weights out once for the device that decodes.

Compiled kernels have a layout of their own (`PackedProduct`). Without them, on CPUs with oneDNN, two layouts beat the default
library, with its fp32 accumulation:
* Many rows: oneDNN's own blocked layout; fp32 matmuls of 32 rows run several times as fast.
* One row, which is nothing but a walk through the weights: the transposed weight as a table whose rows are summed with the
  input as factors. The kernel for such sums (an embedding bag) reads at the memory's speed. The libraries' matmuls of a
  matrix and a vector read at a third of it.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from model.decoding.lazy_memory import lazy_zeros
from model.kernels.library import PANEL_OUTPUTS, Kernels

Product = Callable[[Tensor], Tensor]
"""x [rows, inputs] -> x @ weight.T [rows, outputs]"""

_PACKED_ROWS = 64  # rows to lay weights out for: measured best, or nearly, from 2 rows to 256


def product_maker(
    dtype: torch.dtype, device: torch.device, rows: int, copy: bool = False, kernels: Kernels | None = None
) -> Callable[..., Product]:
    """How to make the matmul with weights [outputs, inputs] that are put one below the other; `rows` is what most
    inputs will have. `copy`: the matmul may share no memory with the weights, which are let go after. `kernels` multiply, if
    given.
    """
    if kernels is not None:
        return lambda *weights: PackedProduct(kernels, dtype, weights)
    kind = (OneRow if rows == 1 else _packed) if _has_onednn(dtype, device) else _plain

    def product(first: Tensor, *others: Tensor) -> Product:
        weight = torch.cat([first, *others]) if others else first
        return kind(weight.detach().to(dtype, copy=copy and not others))

    return product


def _has_onednn(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN multiplies in this type here. It does in bf16 from AVX-512 on."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _plain(weight: Float[Tensor, "outputs inputs"]) -> Product:
    return lambda x: F.linear(x, weight)


def _packed(weight: Float[Tensor, "outputs inputs"]) -> Product:
    blocked = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_ROWS)
    return lambda x: _mkldnn_linear(x, blocked)


class PackedProduct:
    """Weights in panels for compiled kernels, which serve one row and many with the same layout."""

    def __init__(
        self, kernels: Kernels, dtype: torch.dtype, weights: Sequence[Float[Tensor, "outputs inputs"]]
    ) -> None:
        self.kernels, self.outputs = kernels, sum(map(len, weights))
        panels = -(-self.outputs // PANEL_OUTPUTS)
        self.packed = lazy_zeros((panels, weights[0].shape[1], PANEL_OUTPUTS), dtype)
        first = 0
        for weight in weights:
            kernels.pack(self.packed, weight.detach().contiguous(), first)
            first += len(weight)

    def __call__(self, x: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        return self.kernels.linear(x.contiguous(), self.packed, self.outputs)


class OneRow:
    """Weights as a table for single rows, its columns cut into one part per thread: bags are what threads share out.

    Inputs of several rows (a prompt) go through oneDNN, which lays the weights out again each time.
    """

    def __init__(self, weight: Float[Tensor, "outputs inputs"]) -> None:
        outputs, inputs = weight.shape
        parts = torch.get_num_threads()
        # The largest number of parts up to the threads that divides the outputs evenly.
        while outputs % parts:
            parts -= 1
        table = weight.unflatten(0, (parts, -1)).mT.contiguous()
        self.parts = [part.T for part in table]
        self.table = table.flatten(0, 1)
        self.lines = torch.arange(parts * inputs)
        self.starts = torch.arange(0, parts * inputs + 1, inputs)

    def __call__(self, x: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        if len(x) > 1:
            return torch.cat([_mkldnn_linear(x, part) for part in self.parts], dim=-1)
        factors = x.expand(len(self.parts), -1).reshape(-1)
        return weighted_sums(self.table, self.lines, self.starts, factors).view(1, -1)


def _mkldnn_linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def weighted_sums(
    table: Float[Tensor, "lines width"], lines: Int[Tensor, "n"], starts: Int[Tensor, "bags+1"], weights: Tensor
) -> Float[Tensor, "bags width"]:
    """Per bag, the sum of its table rows, each times its weight."""
    return torch.embedding_bag(table, lines, starts, False, 0, False, weights, True)[0]
