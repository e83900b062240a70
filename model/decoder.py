"""Decoding with a key-value cache: the arithmetic of `model/transformer.py`, arranged for one new token per
row and step.

Weights are fused (query, key and value; gate and up) and, on CPUs with oneDNN, packed once into its blocked
layout: fp32 products of a few rows then run two to three times as fast as through the default library, with
the same fp32 accumulation. A decoder holds copies: build one per generation and drop it after; it does not
follow later changes of the model.

Row r's tokens sit at cache positions 0, 1, ... of row r; rows may be at different positions. Active rows are
the first ones (`move` keeps them so), and a step touches only those and only the positions in use. Precision
is autocast's if autocast is enabled, else the weights' own; norms and rotations are computed in fp32 and
rounded once, as in training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from model.transformer import Block, RMSNorm, Transformer, rope_tables

_Product = Callable[[Tensor], Tensor]
_Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
_PACKED_ROWS = 64  # rows to lay weights out for: measured best, or nearly, from 1 row to 64


@dataclass(frozen=True)
class _Layer:
    qkv: _Product
    out: _Product
    gate_up: _Product
    down: _Product
    q_norm: "_Norm | None"
    k_norm: "_Norm | None"
    attention_norm: "_Norm"
    feed_forward_norm: "_Norm"


class Decoder:
    """A model's weights for decoding and a cache of `rows` rows of `length` tokens."""

    def __init__(self, model: Transformer, rows: int, length: int) -> None:
        config, device = model.config, model.device
        autocast = torch.is_autocast_enabled(device.type)
        self.config, self.device, self.length = config, device, length
        self.dtype = torch.get_autocast_dtype(device.type) if autocast else model.head.weight.dtype
        self.embedding = model.get_parameter("embedding.weight").detach()
        self.layers = [_prepare(cast(Block, block), self.dtype) for block in model.blocks]
        self.norm, self.head = _Norm(model.norm), _product(self.dtype, model.head.weight)
        cos, sin = rope_tables(torch.arange(length, device=device), config.head_dim, config.rope_theta)
        half = config.head_dim // 2
        self.cos, self.sin = cos, torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)
        heads = (config.n_layers, rows, config.n_kv_heads)
        # Keys lie position by position within a dimension: the products with a query then run along memory.
        self.keys = torch.empty(*heads, config.head_dim, length, dtype=self.dtype, device=device)
        # Values begin as zeros: weight 0 times what memory happened to hold could be NaN. Scores are masked
        # instead.
        self.values = torch.zeros(*heads, length, config.head_dim, dtype=self.dtype, device=device)

    def prefill(self, first_row: int, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompts vocab"]:
        """Put prompts into rows `first_row`, `first_row + 1`, ...; return the logits after each prompt's last
        token.

        Prompts are padded on the right to the longest: causality keeps padding from reaching real tokens, and
        what it leaves in the cache lies beyond the row's position until real tokens overwrite it.
        """
        longest = max(map(len, prompts))
        padded = np.zeros((len(prompts), longest), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = prompt
        ids = torch.from_numpy(padded).to(self.device)
        rows = slice(first_row, first_row + len(prompts))
        grouped = self.config.n_heads != self.config.n_kv_heads

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            self.keys[layer, rows, :, :, :longest] = k.mT
            self.values[layer, rows, :, :longest] = v
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(1, 2)

        x = self._blocks(ids, self.cos[:longest, None], self.sin[:longest, None], attend)
        last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
        return self._logits(x[torch.arange(len(prompts), device=self.device), last])

    def step(self, ids: Sequence[int], positions: Sequence[int]) -> Float[Tensor, "rows vocab"]:
        """Feed one token into each of the first rows, at the given 0-based positions; return the logits that
        follow.
        """
        rows, used = len(ids), max(positions) + 1
        kv_heads, head_dim = self.config.n_kv_heads, self.config.head_dim
        token, position = torch.tensor([ids, positions]).to(self.device, non_blocking=True)
        row_heads = torch.arange(rows * kv_heads, device=self.device)
        position_heads = position.repeat_interleave(kv_heads)
        value_slots = row_heads * self.length + position_heads
        beyond = None
        if min(positions) + 1 < used:
            beyond = (torch.arange(used, device=self.device) > position[:, None])[:, None, None]
        mix = self._value_mixer(row_heads, used)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.keys[layer].flatten(0, 1)[row_heads, :, position_heads] = k.reshape(-1, head_dim)
            self.values[layer].view(-1, head_dim).index_copy_(0, value_slots, v.reshape(-1, head_dim))
            # The query heads that share a key head stand in the place of a query sequence: no key is
            # repeated.
            queries = q.reshape(rows, kv_heads, -1, head_dim) * head_dim**-0.5
            scores = torch.matmul(queries, self.keys[layer, :rows, :, :, :used]).float()
            if beyond is not None:
                scores.masked_fill_(beyond, float("-inf"))
            return mix(layer, scores.softmax(dim=-1))

        cos, sin = self.cos[position, None, None], self.sin[position, None, None]
        return self._logits(self._blocks(token[:, None], cos, sin, attend)[:, 0])

    def _value_mixer(self, row_heads: Int[Tensor, "row_heads"], used: int) -> Callable[[int, Tensor], Tensor]:
        """(layer, weights of shape `[rows, kv_heads, group, used]`) -> weighted sums of the values.

        On a CPU in fp32 the values are rows of a table and the sums an embedding bag, whose kernel reads them
        at the speed of memory; many small matrix products take twice as long there.
        """
        if self.device.type != "cpu" or self.dtype != torch.float32:
            rows = len(row_heads) // self.config.n_kv_heads
            return lambda layer, weights: torch.matmul(weights.to(self.dtype), self.values[layer, :rows, :, :used])
        group = self.config.n_heads // self.config.n_kv_heads
        bags = row_heads.repeat_interleave(group) * self.length
        indices = (bags[:, None] + torch.arange(used)).view(-1)
        offsets = torch.arange(0, len(indices) + 1, used)

        def mix(layer: int, weights: Tensor) -> Tensor:
            table = self.values[layer].view(-1, self.config.head_dim)
            return torch.embedding_bag(table, indices, offsets, False, 0, False, weights.view(-1), True)[0]

        return mix

    def move(self, source: int, target: int, used: int) -> None:
        """Copy the first `used` tokens of one row's cache to another row."""
        self.keys[:, target, :, :, :used] = self.keys[:, source, :, :, :used]
        self.values[:, target, :, :used] = self.values[:, source, :, :used]

    def _blocks(
        self, ids: Int[Tensor, "rows seq"], cos: Tensor, sin: Tensor, attend: _Attend
    ) -> Float[Tensor, "rows seq d_model"]:
        """The residual stream after all blocks; `attend` stores keys and values and mixes the values."""
        config = self.config
        width, heads = config.n_kv_heads * config.head_dim, config.n_heads + config.n_kv_heads
        x = F.embedding(ids, self.embedding).to(self.dtype)
        for index, layer in enumerate(self.layers):
            normed_in = config.norm_placement == "input"
            qkv = layer.qkv(layer.attention_norm(x) if normed_in else x)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k, v = qkv.split([config.d_model, width, width], dim=-1)
                qk = torch.cat([layer.q_norm(q), layer.k_norm(k)], dim=-1)
            else:
                qk, v = qkv.split([config.d_model + width, width], dim=-1)
            qk = _rotate(qk.unflatten(-1, (heads, config.head_dim)), cos, sin)
            q, k = qk.split([config.n_heads, config.n_kv_heads], dim=-2)
            v = v.unflatten(-1, (config.n_kv_heads, config.head_dim))
            mixed = layer.out(attend(index, q, k, v).reshape(x.shape))
            x = x + mixed if normed_in else layer.attention_norm.add(x, mixed)
            gate, up = layer.gate_up(layer.feed_forward_norm(x) if normed_in else x).chunk(2, dim=-1)
            mixed = layer.down(F.silu(gate).mul_(up))
            x = x + mixed if normed_in else layer.feed_forward_norm.add(x, mixed)
        return x

    def _logits(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        return self.head(self.norm(x)).float()


def _prepare(block: Block, dtype: torch.dtype) -> _Layer:
    attention, feed_forward = block.attention, block.feed_forward
    return _Layer(
        qkv=_product(dtype, attention.q.weight, attention.k.weight, attention.v.weight),
        out=_product(dtype, attention.out.weight),
        gate_up=_product(dtype, feed_forward.gate.weight, feed_forward.up.weight),
        down=_product(dtype, feed_forward.down.weight),
        q_norm=_Norm(attention.q_norm) if isinstance(attention.q_norm, RMSNorm) else None,
        k_norm=_Norm(attention.k_norm) if isinstance(attention.k_norm, RMSNorm) else None,
        attention_norm=_Norm(block.attention_norm),
        feed_forward_norm=_Norm(block.feed_forward_norm),
    )


def _product(dtype: torch.dtype, *weights: Tensor) -> _Product:
    """x -> x @ concat(weights).T with the weights laid out once for the device."""
    weight = torch.cat([w.detach() for w in weights]).to(dtype)
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_ROWS)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return lambda x: F.linear(x, weight)


class _Norm:
    """RMSNorm as x * weight * sqrt(width) / sqrt(|x|**2 + width * eps): half as many operations, equal up to
    rounding.
    """

    def __init__(self, norm: RMSNorm) -> None:
        weight = norm.weight.detach().float()
        self.weight = weight * len(weight) ** 0.5
        self.floor = torch.tensor((len(weight) * norm.eps) ** 0.5, device=weight.device)

    def __call__(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        wide = x.float()
        return (wide * self.weight).div_(self._length(wide)).to(x.dtype)

    def add(self, residual: Tensor, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """residual + norm(x)"""
        if x.dtype == torch.float32:
            return torch.addcdiv(residual, x * self.weight, self._length(x))
        return residual + self(x)

    def _length(self, x: Tensor) -> Tensor:
        return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor)


def _rotate(x: Float[Tensor, "... head_dim"], cos: Tensor, sin: Tensor) -> Float[Tensor, "... head_dim"]:
    """Half-split rotation; `sin` carries the sign of the first half, so that exchanging the halves suffices."""
    wide = x.float()
    return torch.addcmul(wide * cos, wide.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)
