"""Lays a model's weights out for decoding, and computes its blocks for a flat list of tokens.

What is the same at every step is done once:
* Query, key and value weights become one matrix, and gate and up, laid out for the device (`model/decoding/linear_kernels.py`).
* The rows of the query and key weights are reordered so that the two numbers that RoPE rotates are neighbours. Rotating is
  then one complex product. Scores do not change, since queries and keys are reordered alike.
* The scale of the scores goes into the queries' norm.

Where weights are sharded (`Holding`), they are copied block by block, so that only one block is gathered at a time. The copy is
in the precision of the matmuls: autocast's if autocast is enabled, else the weights' own. Norms, rotations and softmax are
computed in fp32 and rounded once, as in training.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from model.config import ModelConfig
from model.decoding.linear_kernels import Product, product_maker
from model.kernels.library import Kernels
from model.network.sharded_tensors import is_sharded
from model.network.transformer import Attention, Block, LayerNorm, RMSNorm, Transformer, rope_tables

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries, keys, values), `[tokens, heads, head_dim]` each -> mixed values `[tokens, d_model]`"""
Holding = Callable[[nn.Module], AbstractContextManager[None]]
"""Around what reads a part of the model: there its weights are whole (`parallel.Group.holding`). Where they always are,
`contextlib.nullcontext`."""


class Prepared:
    """A model's weights laid out for matmuls of about `rows` tokens at once, at positions below `length`.

    `head_rows` cuts the head into pieces of so many vocabulary rows (None: one), for readers that do not need all logits at
    once. `kernels`: compiled ones that multiply. Where weights are sharded, all workers have to build theirs together.
    """

    def __init__(
        self,
        model: Transformer,
        rows: int,
        length: int,
        holding: Holding = nullcontext,
        head_rows: int | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        config, device = model.config, model.device
        self.config, self.device, self.dtype = config, device, decoding_type(model)
        in_parts = is_sharded(model.head.weight)
        product = product_maker(self.dtype, device, rows, in_parts, kernels)
        # The order is that of `held_parts`: embedding, norm with head, then the blocks.
        table, outputs, *blocks = held_parts(model)
        with held(table, holding):
            embedding = model.get_parameter("embedding.weight").detach()
            # Gathered weights are freed when the context ends, so what is needed later has to be copied.
            self.embedding = embedding.to(self.dtype, copy=True) if in_parts else embedding
        with held(outputs, holding):
            self.norm = _norm(model.norm)
            self.head = [product(part) for part in model.head.weight.split(head_rows or config.vocab_size)]
        self.layers: list[PreparedLayer] = []
        for block in blocks:
            with held(block, holding):
                self.layers.append(_prepare(cast(Block, block), config, product))
        cos, sin = rope_tables(torch.arange(length, device=device), config.head_dim, config.rope_theta)
        half = config.head_dim // 2
        # [length, head_dim / 2] unit complex numbers: multiplying a pair by one rotates it.
        self.turns = torch.complex(cos[:, :half], sin[:, :half])

    def blocks(
        self, ids: Tensor, turns: Complex[Tensor, "tokens pairs"], attend: Attend, wanted: Tensor | None = None
    ) -> Float[Tensor, "wanted d_model"]:
        """The residual stream of the wanted tokens (None: all) after all blocks; `attend` stores keys and values and
        mixes the values.
        """
        x = F.embedding(ids, self.embedding).to(self.dtype)
        # [tokens, 1, 1, pairs]: broadcast over query and key, and over their heads.
        turns = turns[:, None, None]
        input_norms = self.config.norm_placement == "input"
        for index, layer in enumerate(self.layers):
            q, k, v = layer.project(layer.attention_norm(x) if input_norms else x, turns)
            mixed = attend(index, q, k, v)
            if wanted is not None and layer is self.layers[-1]:  # nothing more is read from the others
                x, mixed = x[wanted], mixed[wanted]
                if not len(wanted):
                    # Keys and values of this layer are stored by now, which is all that a prefix read needs.
                    return x
            mixed = layer.out(mixed)
            x = x + mixed if input_norms else layer.attention_norm.add(x, mixed)
            gate, up = layer.gate_up(layer.feed_forward_norm(x) if input_norms else x).chunk(2, dim=-1)
            # mul_ in place: gate is not needed again, and decode is limited by memory traffic.
            mixed = layer.down(F.silu(gate).mul_(up))
            x = x + mixed if input_norms else layer.feed_forward_norm.add(x, mixed)
        return x

    def logits(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        """Logits of the next token, fp32, of what `blocks` returned."""
        parts = list(self.logit_parts(x))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def logit_parts(self, x: Float[Tensor, "rows d_model"]) -> Iterator[Float[Tensor, "rows part"]]:
        """The same logits, one piece of the vocabulary after the other."""
        x = self.norm(x)
        for head in self.head:
            yield head(x).float()


def decoding_type(model: Transformer) -> torch.dtype:
    """The type of the matmuls: autocast's if autocast is enabled, else the weights' own."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.head.weight.dtype


def held_parts(model: Transformer) -> list[nn.Module]:
    """What a decoder holds whole, one after the other: embedding, final norm and head, every block."""
    return [model.embedding, nn.ModuleList([model.norm, model.head]), *model.blocks]


@contextmanager
def held(part: nn.Module, holding: Holding) -> Iterator[None]:
    """A part that is whole meanwhile. It is gathered outside of inference mode: in it, it could not be trained after."""
    # A tensor that is gathered under inference mode is an inference tensor, which autograd refuses afterwards.
    inference = torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.no_grad(), holding(part), torch.inference_mode(inference):
        yield


class ScaledNorm:
    """RMSNorm as x * weight * sqrt(width) / sqrt(|x|**2 + width * eps): half as many operations, equal up to
    rounding. Vectors lie along the last dimension; weights `[parts, width]` norm several side by side.
    """

    def __init__(self, weight: Float[Tensor, "*parts width"], eps: float) -> None:
        width = weight.shape[-1]
        self.weight = weight.detach().float() * width**0.5
        # sqrt(|x|^2 + width * eps) = hypot(|x|, floor), which cannot overflow.
        self.floor = torch.tensor((width * eps) ** 0.5, device=weight.device)

    def wide(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """norm(x) in fp32"""
        return (x * self.weight).div_(self._length(x))

    def __call__(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return self.wide(x).to(x.dtype)

    def add(self, residual: Tensor, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """residual + norm(x)"""
        # addcdiv is one kernel; in bf16 the norm has to be rounded before it is added, as in training.
        if x.dtype == torch.float32:
            return torch.addcdiv(residual, x * self.weight, self._length(x))
        return residual + self(x)

    def _length(self, x: Tensor) -> Tensor:
        return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32), self.floor)


class ScaledLayerNorm:
    """Layer norm without weights, times a scale."""

    def __init__(self, eps: float, scale: float = 1.0) -> None:
        self.eps, self.scale = eps, scale

    def wide(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """norm(x) in fp32"""
        return F.layer_norm(x.float(), x.shape[-1:], eps=self.eps).mul_(self.scale)

    def __call__(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return self.wide(x).to(x.dtype)

    def add(self, residual: Tensor, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """residual + norm(x)"""
        return residual + self(x)


def _norm(norm: RMSNorm | LayerNorm) -> ScaledNorm | ScaledLayerNorm:
    return ScaledNorm(norm.weight, norm.eps) if isinstance(norm, RMSNorm) else ScaledLayerNorm(norm.eps)


@dataclass(frozen=True)
class Turned:
    """A piece of the projection that is normed and rotated: `parts` vectors of heads * head_dim numbers."""

    parts: int
    head_dim: int
    norm: ScaledNorm | ScaledLayerNorm | None
    scale: float
    """Of the result; a norm holds it itself."""

    def __call__(self, x: Float[Tensor, "tokens width"], turns: Tensor) -> list[Float[Tensor, "tokens heads head_dim"]]:
        x = x.unflatten(-1, (self.parts, -1))
        wide = x.float() * self.scale if self.norm is None else self.norm.wide(x)
        # Neighbours (2i, 2i + 1) are read as one complex number, which needs no copy.
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, self.head_dim // 2, 2)))
        return list(torch.view_as_real(pairs.mul_(turns)).flatten(-2).to(x.dtype).unbind(1))


@dataclass(frozen=True)
class PreparedLayer:
    qkv: Product
    widths: list[int]
    """What each of `turned`, and last the values, take from that matmul."""
    turned: tuple[Turned, ...]
    out: Product
    gate_up: Product
    down: Product
    attention_norm: ScaledNorm | ScaledLayerNorm
    feed_forward_norm: ScaledNorm | ScaledLayerNorm
    clip: float | None
    """Largest size of a projected number."""

    def project(self, x: Float[Tensor, "tokens d_model"], turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (scaled), keys and values, shape `[tokens, heads, head_dim]` each."""
        projected = self.qkv(x)
        if self.clip is not None:
            projected = projected.clamp_(-self.clip, self.clip)
        *pieces, v = projected.split(self.widths, dim=-1)
        q, k = (part for turn, piece in zip(self.turned, pieces, strict=True) for part in turn(piece, turns))
        return q, k, v.unflatten(-1, (-1, q.shape[-1]))


def _prepare(block: Block, config: ModelConfig, product: Callable[..., Product]) -> PreparedLayer:
    attention, feed_forward = block.attention, block.feed_forward
    q, k = (_neighbours(linear.weight, config.head_dim) for linear in (attention.q, attention.k))
    turned = _turned(attention, config)
    return PreparedLayer(
        qkv=product(q, k, attention.v.weight),
        # Query and key are one piece where their widths agree, so `widths` has two or three entries.
        widths=[*([len(q) + len(k)] if len(turned) == 1 else [len(q), len(k)]), len(k)],
        turned=turned,
        out=product(attention.out.weight),
        gate_up=product(feed_forward.gate.weight, feed_forward.up.weight),
        down=product(feed_forward.down.weight),
        attention_norm=_norm(block.attention_norm),
        feed_forward_norm=_norm(block.feed_forward_norm),
        clip=config.qkv_clip,
    )


def _turned(attention: Attention, config: ModelConfig) -> tuple[Turned, ...]:
    """Query and key: one piece where both are equally wide, so that one set of operations serves both."""
    head_dim, scale = config.head_dim, config.head_dim**-0.5
    if isinstance(attention.q_norm, LayerNorm):
        scaled, plain = (ScaledLayerNorm(config.norm_eps, value) for value in (scale, 1.0))
        return Turned(1, head_dim, scaled, scale), Turned(1, head_dim, plain, 1.0)
    if not isinstance(attention.q_norm, RMSNorm) or not isinstance(attention.k_norm, RMSNorm):
        return Turned(1, head_dim, None, scale), Turned(1, head_dim, None, 1.0)
    # Weights that are held for a while may be bf16.
    q = _neighbours(attention.q_norm.weight, head_dim).float() * scale
    k = _neighbours(attention.k_norm.weight, head_dim).float()
    if len(q) == len(k):
        return (Turned(2, head_dim, ScaledNorm(torch.stack([q, k]), config.norm_eps), 1.0),)
    return tuple(Turned(1, head_dim, ScaledNorm(weight, config.norm_eps), 1.0) for weight in (q, k))


def _neighbours(weight: Float[Tensor, "width *rest"], head_dim: int) -> Float[Tensor, "width *rest"]:
    """Within each head, rows 0, head_dim/2, 1, head_dim/2 + 1, ...: what RoPE rotates together lies together."""
    # [heads, 2, head_dim / 2] -> [heads, head_dim / 2, 2]: the two halves interleave.
    heads = weight.detach().unflatten(0, (-1, 2, head_dim // 2))
    return heads.transpose(1, 2).flatten(0, 2)
