"""Multiplies in float8 in the linear layers of blocks, forward and backward, where a training asks for it.

Each factor of a matmul is divided by a scale of its own, which maps its largest value to the largest of float8, and then rounded:
activations and weights to e4m3 (3 bits of mantissa), gradients of outputs to e5m2 (2 bits). Sums are fp32, and results are bf16.
Weights stay fp32 between steps, and so do gradients and moments. Embedding, norms, attention and head compute as in bf16.

Source: the tensorwise recipe of torchao's float8 training, whose matmul is called here; Micikevicius et al. 2022 for the formats.
A scale is one of all tokens that a process has in one pass, so its micro-batches take part in rounding. Queries, keys and values
have a scale each, as have gate and up, so their matmuls are not joined. Not measured on a GPU, since none was at hand: the tests
emulate it, which rounds the same factors and multiplies them in fp32.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from model.network.transformer import Block, Linear, separate_projections

MULTIPLE = 16
"""Both widths of a weight have to be multiples of this, as GPUs ask."""
_CAPABILITY = (8, 9)
"""CUDA's capability from which a GPU has float8 matmuls: Ada and Hopper."""
_BF16_INSTEAD = "train with optim: {precision: bf16}, which is another artifact"


def check_float8(device: str, emulated: bool) -> None:
    """Raise ValueError where a device cannot multiply float8 and does not emulate it, or torchao is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise ValueError(
            f"precision=float8 needs torchao, which is not installed: pip install 'olmo2-recipe[float8]', or {_BF16_INSTEAD}"
        )
    if emulated:
        return
    kind = torch.device(device).type
    # A device that is not there is refused by whoever puts the model on it.
    if kind == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= _CAPABILITY:
        return
    found = (
        ".".join(map(str, torch.cuda.get_device_capability(device)))
        if kind == "cuda" and torch.cuda.is_available()
        else ""
    )
    raise ValueError(
        f"precision=float8 on execution.device={device}{f' (CUDA capability {found})' if found else ''}: float8 matmuls need an "
        f"NVIDIA GPU of capability {'.'.join(map(str, _CAPABILITY))} or higher; use such a GPU, set execution.emulate_float8, "
        f"which is slow, or {_BF16_INSTEAD}"
    )


def multiply_in_float8(model: nn.Module, emulated: bool) -> None:
    """Let the linear layers of blocks multiply in float8 while they train. Raises ValueError where no layer has the widths."""
    multiply, chosen = _float8_matmul(emulated), list(_eligible(model))
    if not chosen:
        raise ValueError(
            f"precision=float8: no linear layer of a block has widths that are multiples of {MULTIPLE}; {_BF16_INSTEAD}"
        )
    separate_projections(model)
    for layer in chosen:
        layer.float8 = multiply


@contextmanager
def multiplying_in_bf16(model: nn.Module) -> Iterator[None]:
    """In this context the model multiplies in bf16 everywhere."""
    layers = [(layer, layer.float8) for layer in _eligible(model)]
    for layer, _ in layers:
        layer.float8 = None
    try:
        yield
    finally:
        for layer, multiply in layers:
            layer.float8 = multiply


def _eligible(model: nn.Module) -> Iterator[Linear]:
    """Linear layers of blocks, so neither embedding nor head; of a sharded weight the whole shape counts."""
    for block in (part for part in model.modules() if isinstance(part, Block)):
        for layer in (part for part in block.modules() if isinstance(part, Linear)):
            if all(width % MULTIPLE == 0 for width in layer.weight.shape):
                yield layer


def _float8_matmul(emulated: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """x @ weight.T with factors of float8, differentiable. Emulated, the rounded factors are multiplied in fp32."""
    # Without a GPU it warns of each of its libraries that cannot be loaded; none of them is used here.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    # Imported here: the package is optional, and importing it takes a second.
    from torchao.float8 import Float8LinearConfig, LinearMMConfig, ScaledMMConfig
    from torchao.float8.float8_linear import matmul_with_hp_or_float8_args

    # The weight's gradient sums over tokens, whose number may be no multiple of 16: they are padded.
    config = Float8LinearConfig(emulate=emulated, pad_inner_dim=True)
    kinds = (config.gemm_config_output, config.gemm_config_grad_input, config.gemm_config_grad_weight)
    how = LinearMMConfig(*(ScaledMMConfig(emulated, kind.use_fast_accum, False, True) for kind in kinds))

    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        return matmul_with_hp_or_float8_args.apply(x, weight.t(), how, config)

    return multiply
