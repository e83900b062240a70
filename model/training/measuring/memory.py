"""Estimates the memory of one GPU in training. Sharded state comes by formula, activations from our own forward pass on
tensors without data. What `model/parallel/group.py` gathers is added.

Source: RECIPE D (fp32 weights, gradients and moments, bf16 matmuls). Two figures span what a run may use: each block
computed again when backward needs it, and everything kept. Each is that of the moment of an update at which most is in use.
On several GPUs weights are sharded over all of them (`fsdp`) and gathered where they are used. The embedding is gathered at
the beginning, and blocks two at a time in the type of the matmuls. Final norm and head stay gathered from the end of the
forward pass to the beginning of backward. Oracle: the bytes of all tensors that live while the trainer itself makes updates
(tests/flows/test_cost_memory.py). Blocks run eagerly there; compiled ones keep less. Left out: the allocator's waste, and
the KV cache while sampling.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model.config import ModelConfig, Precision
from model.network.transformer import Transformer, separate_projections
from model.training.losses import WIDE_PRODUCTS, loss_sizes

NORM_COPIES = 5
"""fp32 copies of the residual stream that the backward pass of a norm holds for itself (measured)."""
LOGIT_COPIES = {2: 3, 4: 2}
"""fp32 copies of the logits at work while their softmax is made, by the bytes of a logit (measured)."""


@dataclass(frozen=True)
class Pass:
    """Bytes on one GPU, besides its state, at the moment of an update at which most is in use."""

    activations: float
    """What the forward pass keeps for backward."""
    working: float
    """Gathered weights, gradients before they are sharded, the loss, what backward computes again or in between, and the
    copy of the weights that samples."""

    @property
    def total(self) -> float:
        return self.activations + self.working


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    parameters: float
    """fp32 weights, sharded over the GPUs; with those of frozen models."""
    gradients: float
    """fp32, likewise."""
    moments: float
    """Adam's two, fp32, likewise."""
    recomputed: Pass
    """With each block computed again when backward needs it."""
    kept: Pass
    """With everything kept for backward."""

    @property
    def state(self) -> float:
        return self.parameters + self.gradients + self.moments

    @property
    def most(self) -> float:
        return self.state + self.kept.total

    @property
    def least(self) -> float:
        return self.state + self.recomputed.total


def memory_of(
    model: ModelConfig,
    precision: Precision,
    gpus: int,
    tokens: int,
    *,
    trained_models: int = 1,
    frozen_models: int = 0,
    samples: bool = False,
    device: str = "cuda",
) -> Memory:
    """Memory of one of `gpus` GPUs when `tokens` tokens go through it at once.

    Several trained models go through one update together, as if each had a head; frozen ones are further fp32 weights. Where
    a model `samples`, each GPU has the decoder's copy of it (tasks/training/answers/rollouts.py). By the type of
    `device` goes how much of the loss is made at a time.
    """
    # Measured on tensors without data, so the estimate follows the model's code.
    saved = saved_for_backward(model, precision, in_parts=gpus > 1)
    width = 2 if precision == "bf16" else 4
    outside = trained_models * saved.outside_per_token * tokens
    inputs = model.n_layers * tokens * model.d_model * width
    block = saved.block_weights + saved.block_per_token * tokens
    share = 4 * model.parameters / gpus
    # Decoding works on a copy of the weights in the type of the matmuls; the last block is held while its copy is made.
    last = 2 * width * model.block_parameters if gpus > 1 else 0
    sampling = Pass(0, width * model.parameters + last if samples else 0)
    policies = ((inputs, block), (model.n_layers * block, 0.0))
    recomputed, kept = (
        max(
            sampling,
            *_moments(
                model,
                width,
                gpus,
                tokens,
                trained_models,
                Activations(trained_models * of_blocks, outside, again),
                device,
            ),
            key=lambda found: found.total,
        )
        for of_blocks, again in policies
    )
    return Memory(
        parameters=(trained_models + frozen_models) * share,
        gradients=trained_models * share,
        moments=2 * trained_models * share,
        recomputed=recomputed,
        kept=kept,
    )


class Activations(NamedTuple):
    """Bytes of activations: kept of all blocks, of embedding and final norm, and recomputed of one block."""

    kept: float
    outside: float
    recomputed: float


def _moments(
    model: ModelConfig,
    width: int,
    gpus: int,
    tokens: int,
    models: int,
    activations: Activations,
    device: str,
) -> Iterator[Pass]:
    """What the moments of an update need at which that may be most. What is gathered is there twice for a while, as it came and
    in its place; gradients are on their way until the next ones are.
    """
    kept, outside, recomputed = activations
    several, stream = gpus > 1, tokens * model.d_model
    table, norm = 4 * model.vocab_size * model.d_model, NORM_COPIES * 4 * stream
    block, sent = (width * model.block_parameters, 4 * model.block_parameters) if several else (0, 0)
    gathered = (models + 1) * table if several else 0
    # Beginning: an embedding as it came and in its place, besides the heads of models before it.
    yield Pass(0, gathered + width * stream)
    # Loss: heads, the last as it came, too; its gradient, rows with theirs, and the logits.
    yield Pass(kept + outside, gathered + table + 2 * width * stream + _loss(model, width, tokens, device))
    # Backward: a block in its place, the next as it came, and gradients on their way: the head's or, unless activations go
    # faster, those of the block before.
    yield Pass(kept, max(table, sent if recomputed else 0) + 2 * block + recomputed + norm)
    # End: the embeddings' gradients, and one of them or those of the first block on their way.
    yield Pass(0, models * table + max(table, sent) + norm)


def _loss(model: ModelConfig, width: int, tokens: int, device: str) -> float:
    """Bytes of a chunk of logits, and of the softmax or the matmul made from it; the head is cast unless it is fp32."""
    sizes, product_width = loss_sizes(device, model.vocab_size), 4 if device in WIDE_PRODUCTS else width
    cast = width * model.vocab_size * model.d_model if width < 4 else 0
    softmax = LOGIT_COPIES[width] * 4 * min(sizes.piece, tokens) * model.vocab_size
    product = product_width * min(sizes.tile, model.vocab_size) * model.d_model
    return cast + width * min(sizes.chunk, tokens) * model.vocab_size + max(softmax, product)


@dataclass(frozen=True)
class Saved:
    """Bytes that the forward pass keeps for backward."""

    block_weights: float
    """Of one block, whatever the batch: copies of its weights in the type of the matmuls."""
    block_per_token: float
    """Of one block and token."""
    outside_per_token: float
    """Of embedding and final norm, per token."""


def saved_for_backward(model: ModelConfig, precision: Precision, *, in_parts: bool = False) -> Saved:
    """What our own forward pass keeps, from tensors without data: models of one and two blocks, batches of one and two. Weights
    `in_parts` have come in the type of the matmuls, and come again for backward.
    """
    return _saved_for_backward(model.model_dump_json(), precision, in_parts)


@lru_cache(maxsize=16)
def _saved_for_backward(model_json: str, precision: Precision, in_parts: bool) -> Saved:
    model = ModelConfig.model_validate_json(model_json)
    length = min(128, model.max_sequence_length)
    sizes = [(layers, batch) for layers in (1, 2) for batch in (1, 2)]
    kept = {size: _kept(model, precision, *size, length, in_parts) for size in sizes}
    # Two minus one block is a block alone, and two minus one row is a row alone: what is fixed cancels out.
    first, second = (kept[2, batch] - kept[1, batch] for batch in (1, 2))
    per_token = (second - first) / length
    outside = (kept[1, 2] - kept[1, 1]) / length - per_token
    return Saved(first - per_token * length, per_token, outside)


def _kept(model: ModelConfig, precision: Precision, layers: int, batch: int, length: int, in_parts: bool) -> int:
    """Bytes of all storages that autograd keeps of one forward pass, the weights themselves left out."""
    found: dict[Any, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # By storage, since several saved views of one tensor keep its memory only once.
        found[storage._cdata] = storage.nbytes()
        return tensor

    # Fake tensors have shapes and no memory, so a 32B model can be measured on a laptop.
    with FakeTensorMode():
        network = Transformer(model.model_copy(update={"n_layers": layers}), seed=None)
        if in_parts:
            separate_projections(network)
        if in_parts and precision == "bf16":
            rounded = {name: value.to(torch.bfloat16) for name, value in network.blocks.state_dict().items()}
            network.blocks.load_state_dict(rounded, assign=True)
        ids = torch.zeros(batch, length, dtype=torch.int64)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        ):
            output = network.hidden(ids)
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        # Freed inside the mode: its graph holds fake tensors.
        del output
    return sum(size for key, size in found.items() if key not in weights)
