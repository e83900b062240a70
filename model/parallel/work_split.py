"""Splits a step over the ranks of a group: each computes whole micro-batches, or rows of them.

Source: RECIPE C.9 (a batch does not depend on the world size), D. Micro-batches are cut into pieces, and the pieces dealt
out. Every row goes to exactly one worker, and pairs stay together. What a worker gets carries the divisor or the weights of
the whole batch, so that the workers' losses and gradients add up to those of one process.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from model.data.labels import IGNORE

HostBatch = Mapping[str, Any]
"""A micro-batch on the host: arrays or tensors by name. `ids` [rows, seq] is in every one; what else, the objective says
(`model.data.batches.WindowBatch`, `model.data.chat_batches.Batch`)."""

UNEVEN = 1.25
"""How much longer a worker may compute so that there are fewer rounds: in each of them, sharded weights are gathered."""


class Shape(NamedTuple):
    """A micro-batch as far as cutting goes."""

    units: int
    """Rows, or pairs of rows, that can go to different workers."""
    tokens: int
    """Of a unit, with padding."""


class Piece(NamedTuple):
    """One of equal parts of a micro-batch."""

    batch: int
    part: int
    parts: int


def share_of(batches: Sequence[HostBatch], rank: int, world: int) -> Sequence[HostBatch]:
    """Return what a rank computes of a step's micro-batches. All ranks get equally many; if need be, one that counts for
    nothing.

    Raises ValueError where a micro-batch has to be cut whose loss depends on which rows are together.
    """
    if world == 1:
        return batches
    pieces = cut_micro_batches(tuple(map(_shape, batches)), world)
    # Dealt out by stride: round r consists of pieces r * world .. (r + 1) * world - 1, all of nearly equal size.
    own = [_rows_of(batches[piece.batch], piece.part, piece.parts) for piece in pieces[rank::world]]
    # Every rank must come to each collective, so a rank without a piece computes one whose loss is zero.
    if len(own) * world < len(pieces):
        last = pieces[-1]
        own.append(_silenced(_rows_of(batches[last.batch], last.part, last.parts)))
    return own


def own_rows(micro_batches: int, rows: int, rank: int, world: int) -> Int[np.ndarray, " own"]:
    """Return which rows of a step `share_of` gives to a rank, counted through equal micro-batches of `rows` rows."""
    step = np.arange(micro_batches * rows).reshape(micro_batches, rows)
    own = cut_micro_batches((Shape(rows, 1),) * micro_batches, world)[rank::world]
    return np.concatenate([step[0, :0], *(np.array_split(step[batch], parts)[part] for batch, part, parts in own)])


@lru_cache(maxsize=64)
def cut_micro_batches(shapes: tuple[Shape, ...], world: int) -> list[Piece]:
    """Cut a step's micro-batches into pieces, the largest first; in each round the next `world` of them are computed at
    once.

    Each micro-batch is cut into equal parts, or into single units where it has fewer. The largest pieces of all rounds,
    summed, are the time that workers wait for. Of all cuts for which that sum is nearly as small as can be, the one with
    fewest rounds is taken. Workers at the same step cut the batch into the same pieces, so their slices never overlap.
    """
    units, tokens = np.array(shapes, dtype=np.int64).T
    found = []
    for most in range(1, min(world, int(units.max())) + 1):
        parts = np.minimum(units, most)
        largest = -(-units // parts) * tokens
        # Largest first, so that the pieces of one round, which wait for each other, are nearly equal.
        order = np.argsort(-largest, kind="stable")
        # The first piece of each round is the largest, so it is the straggler that the others wait for.
        firsts = np.repeat(largest[order], parts[order])[::world]
        found.append((len(firsts), int(firsts.sum()), order, parts))
    enough = UNEVEN * min(waited for _, waited, _, _ in found)
    *_, order, parts = min((each for each in found if each[1] <= enough), key=lambda each: each[:2])
    return [Piece(batch, part, int(parts[batch])) for batch in order.tolist() for part in range(parts[batch])]


def _rows_of(batch: HostBatch, part: int, parts: int) -> HostBatch:
    """Return one of so many parts of a micro-batch's rows, or of its pairs; at most as many as there are.

    Raises ValueError for parts of a micro-batch whose loss depends on which rows are together: it needs `divisor` or
    `weights`.
    """
    if parts == 1:
        return batch
    if "weights" not in batch and "divisor" not in batch:
        raise ValueError(
            "a micro-batch with neither `divisor` nor `weights` cannot be split over workers, since its loss is a mean over "
            "its own tokens; add the divisor of the whole batch"
        )
    count, units = len(batch["ids"]), _shape(batch).units
    own = np.array_split(np.arange(units), parts)[part]
    # Rows of a pair lie `units` apart: chosen rows come first, then rejected ones.
    rows = own if units == count else np.concatenate([own, units + own])
    piece: dict[str, np.ndarray] = {}
    for name, value in batch.items():
        if value.ndim == 0:
            # Metrics are summed over pieces, so each has a share of the micro-batch's.
            piece[name] = value if name == "divisor" else value / np.float32(parts)
        else:
            piece[name] = value[rows if len(value) == count else own]
    return piece


def _shape(batch: HostBatch) -> Shape:
    """Pairs are where `weights` has one value for two rows of `ids`."""
    count, length = batch["ids"].shape
    pairs = "weights" in batch and batch["weights"].ndim == 1 and 2 * len(batch["weights"]) == count
    return Shape(count // 2, 2 * length) if pairs else Shape(count, length)


def _silenced(batch: HostBatch) -> HostBatch:
    """A micro-batch that counts for nothing: neither in the loss nor in metrics."""
    silent = dict(batch)
    for name, value in batch.items():
        if name in ("weights", "token_share", "value_share") or (value.ndim == 0 and name != "divisor"):
            silent[name] = np.zeros_like(value)
    # Windows have no weights. Without labels their summed loss is zero, and the divisor stays valid.
    if "weights" not in batch:
        silent["labels"] = np.full_like(batch["labels"], IGNORE)
    return silent
