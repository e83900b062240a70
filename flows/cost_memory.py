"""Memory of one GPU in training: sharded state by formula, activations from our own forward pass on tensors without data.

Source: RECIPE D (fp32 weights, gradients and moments, bf16 products). Two figures span what a run may use: everything kept for
backward, and each block recomputed with its weights gathered only while it works. Left out: the allocator's waste, buffers of
communication, and the cache of keys and values while sampling.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model.config import ModelConfig
from model.losses import chunk_rows
from model.transformer import Transformer

Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    state: float
    """fp32 weights, gradients and Adam's two moments, sharded over the GPUs."""
    kept: float
    """With everything kept for backward: cast weights, activations of one pass, and the loss."""
    recomputed: float
    """With each block's weights gathered and its activations computed again when backward needs them."""

    @property
    def most(self) -> float:
        return self.state + self.kept

    @property
    def least(self) -> float:
        return self.state + self.recomputed


def memory_of(model: ModelConfig, precision: Precision, gpus: int, tokens: int, frozen_models: int = 0) -> Memory:
    """Memory of one of `gpus` GPUs when `tokens` tokens go through it at once; frozen models are further fp32 weights."""
    width = 2 if precision == "bf16" else 4
    head = model.vocab_size * model.d_model
    saved = saved_for_backward(model, precision)
    # The loss keeps the head's fp32 gradient and the rows' gradient, and holds a chunk of logits; the head is cast.
    logits = width * chunk_rows(model.vocab_size) * model.vocab_size
    loss = (4 + width) * head + tokens * model.d_model * width + logits
    outside = saved.outside_per_token * tokens + loss
    block = saved.block_per_token * tokens
    inputs = model.n_layers * tokens * model.d_model * width
    # Two blocks' weights are gathered (the one at work and the next), and one block's gradient before it is sharded.
    gathered = 3 * width * model.block_parameters
    return Memory(
        state=(16 + 4 * frozen_models) * model.parameters / gpus,
        kept=model.n_layers * (saved.block_weights + block) + outside,
        recomputed=inputs + gathered + block + outside,
    )


@dataclass(frozen=True)
class Saved:
    """Bytes that the forward pass keeps for backward."""

    block_weights: float
    """Of one block, whatever the batch: its weights in the type of the products."""
    block_per_token: float
    """Of one block and token."""
    outside_per_token: float
    """Of embedding and final norm, per token."""


def saved_for_backward(model: ModelConfig, precision: Precision) -> Saved:
    """What our own forward pass keeps, from tensors without data: models of one and two blocks, batches of one and two."""
    return _saved_for_backward(model.model_dump_json(), precision)


@lru_cache(maxsize=16)
def _saved_for_backward(model_json: str, precision: Precision) -> Saved:
    model = ModelConfig.model_validate_json(model_json)
    length = min(128, model.max_sequence_length)
    kept = {(layers, batch): _kept(model, precision, layers, batch, length) for layers in (1, 2) for batch in (1, 2)}
    first, second = (kept[2, batch] - kept[1, batch] for batch in (1, 2))
    per_token = (second - first) / length
    outside = (kept[1, 2] - kept[1, 1]) / length - per_token
    return Saved(first - per_token * length, per_token, outside)


def _kept(model: ModelConfig, precision: Precision, layers: int, batch: int, length: int) -> int:
    """Bytes of all storages that autograd keeps of one forward pass, the fp32 weights themselves left out."""
    found: dict[Any, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode():
        network = Transformer(model.model_copy(update={"n_layers": layers}), seed=None)
        ids = torch.zeros(batch, length, dtype=torch.int64)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        ):
            output = network.hidden(ids)
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        del output
    return sum(size for key, size in found.items() if key not in weights)
