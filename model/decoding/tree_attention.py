"""Lets tokens of flattened trees attend to their ancestors within a row, and to a prefix that all rows share.

Scoring (`model/decoding/prefix_scoring.py`) and the reading of prompts (`model/decoding/shared_prefix.py`) both use it. The
two sums are joined by the logarithms of their softmax sums, so the prefix is read by one matmul for all rows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.decoding.prefix_tree import Node, sees
from model.decoding.prepared_weights import Prepared

PrefixKeys = list[tuple[Tensor, Tensor]]
"""Per layer the keys and values of a prefix, `[kv_heads, tokens, head_dim]`."""


class Layout:
    """Flattened subtrees: their tokens one row after the other without padding, and where each stands in padded rows."""

    def __init__(self, rows: Sequence[Sequence[Node]]) -> None:
        lengths = [sum(len(node.tokens) for node in row) for row in rows]
        self.count, self.width = len(rows), max(lengths)
        self.full = min(lengths) == self.width
        """Whether no row needs padding."""
        ids: list[int] = []
        positions, wanted = [], []
        self.expected: list[dict[int, int]] = []
        for row in rows:
            for node in row:
                for offset in sorted(node.targets):
                    wanted.append(len(ids) + offset)
                    self.expected.append(node.targets[offset])
                ids += node.tokens
                positions.append(np.arange(node.start, node.start + len(node.tokens)))
        self.ids, self.positions = np.array(ids), np.concatenate(positions)
        self.wanted = np.array(wanted, dtype=np.int64)
        self.padded = np.concatenate([np.arange(n) + i * self.width for i, n in enumerate(lengths)])
        self.sees: Bool[np.ndarray, "rows width width"] = np.stack([sees(row, self.width) for row in rows])


class TreeAttention:
    """Attention of flattened subtrees over a kept prefix and over themselves. Queries come scaled.

    Called per layer, as `Decoder` calls its cache; `kept` gathers keys and values of prefix and row where asked.
    """

    def __init__(self, prepared: Prepared, layout: Layout, past: PrefixKeys | None, keeps: bool) -> None:
        config = prepared.config
        self.heads = config.n_kv_heads, config.n_heads // config.n_kv_heads
        self.shape, self.past, self.keeps = (layout.count, layout.width), past, keeps
        self.padded = None if layout.full else torch.from_numpy(layout.padded).to(prepared.device)
        sees = torch.from_numpy(layout.sees).to(prepared.device)
        self.mask = torch.zeros(sees.shape, device=sees.device).masked_fill_(~sees, float("-inf"))
        # [rows, width, width] -> [rows, 1, groups * width, width]: query heads of one key head share a mask.
        self.mask = self.mask.repeat(1, self.heads[1], 1)[:, None]
        self.kept: PrefixKeys = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "tokens d_model"]:
        if self.keeps:
            self._keep(layer, k.transpose(0, 1), v.transpose(0, 1))
        grouped = q.unflatten(1, self.heads)
        mixed, own = self._over_row(grouped, k, v)
        if self.past is not None:
            before, prefix = self._over_prefix(grouped, *self.past[layer])
            # sigmoid(a - b) = e^a / (e^a + e^b): the prefix's share of the joint softmax.
            mixed = torch.lerp(mixed, before, torch.sigmoid(prefix - own)[..., None])
        return mixed.flatten(1).to(q.dtype)

    def _over_row(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Over the ancestors within the row."""
        q, k, v = (self.pad(t) for t in (q, k, v))
        queries = q.permute(0, 2, 3, 1, 4).flatten(2, 3)  # rows, kv heads, groups x width, head_dim
        mixed, total = _attend(queries, k.transpose(1, 2), v.transpose(1, 2), self.mask)
        mixed, total = (t.unflatten(2, (self.heads[1], -1)) for t in (mixed, total))
        mixed, total = mixed.permute(0, 3, 1, 2, 4).flatten(0, 1), total.permute(0, 3, 1, 2).flatten(0, 1)
        return (mixed, total) if self.padded is None else (mixed[self.padded], total[self.padded])

    def _over_prefix(self, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Over the kept tokens: one matmul for all rows, which need no padding here."""
        queries = q.permute(1, 2, 0, 3).flatten(1, 2)
        mixed, total = _attend(queries[None], keys[None], values[None], None)
        mixed, total = (t[0].unflatten(1, (self.heads[1], -1)) for t in (mixed, total))
        return mixed.permute(2, 0, 1, 3), total.permute(2, 0, 1)

    def _keep(self, layer: int, keys: Tensor, values: Tensor) -> None:
        own = [keys, values]
        if self.past is not None:
            own = [torch.cat([old, new], dim=1) for old, new in zip(self.past[layer], own, strict=True)]
        self.kept.append((own[0].contiguous(), own[1].contiguous()))

    def pad(self, flat: Float[Tensor, "tokens ..."]) -> Float[Tensor, "rows width ..."]:
        if self.padded is None:
            return flat.unflatten(0, self.shape)
        padded = flat.new_zeros(self.shape[0] * self.shape[1], *flat.shape[1:])
        padded[self.padded] = flat
        return padded.unflatten(0, self.shape)


def _attend(
    q: Float[Tensor, "batch kv queries head_dim"],
    k: Float[Tensor, "batch kv keys head_dim"],
    v: Float[Tensor, "batch kv keys head_dim"],
    mask: Float[Tensor, "batch 1 queries keys"] | None,
) -> tuple[Float[Tensor, "batch kv queries head_dim"], Float[Tensor, "batch kv queries"]]:
    """Mixed values and the logarithm of the softmax's sum, both fp32, by which two such parts are joined."""
    if q.device.type == "cpu":
        # The public attention does not return the sums; its kernel for CPUs does, and keeps scores in the caches.
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            # [batch, kv heads, queries, head_dim] in fp32; it returns outputs and log sums.
            q.float(),
            k.float(),
            v.float(),
            0.0,
            False,
            attn_mask=mask,
            scale=1.0,
        )
    return _explicit(q, k, v, mask)


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """`_attend` in plain operations, for devices whose kernels do not return the sums."""
    scores = (q @ k.mT).float()
    if mask is not None:
        scores += mask
    total = scores.logsumexp(-1)
    # fp32 sums: the two parts are joined in fp32 and rounded once.
    return ((scores - total[..., None]).exp_().to(v.dtype) @ v).float(), total
