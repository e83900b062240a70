"""Pads chats, preference pairs and rollouts into batches, which are pure functions of the step.

Source: RECIPE F (no packing, right padding, −100 on padding, loss "sum" or "mean"), G (chosen and rejected in
one forward), H.3 (token mean). Deviations, each so that the outcome depends on the config alone:

* The published loss is reduced per micro-batch and averaged over micro-batches and ranks. Here that reduction
  is turned into one weight per token on the host, so how many sequences go through the model at once ("a
  pass") is free.
* Epochs are joined into one stream of permutations and the steps are the whole batches that fit in it. The published trainer
  ends each epoch with a short batch.
* Rows are padded to one of few lengths, not to the longest row, so that compiled code sees few shapes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt32

from model.data.labels import IGNORE, next_token_labels

Reduction = Literal["sum", "mean"]
"""How the token losses of one micro-batch become a number: their sum, or their mean over trained tokens
(RECIPE F).
"""

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class LabelledRow:
    """One sequence: `ids` and, aligned with what predicts them, `labels` (−100 where untrained)."""

    ids: Int64[np.ndarray, " seq"]
    labels: Int64[np.ndarray, " seq"]

    @property
    def trained_tokens(self) -> int:
        return int((self.labels != IGNORE).sum())


def make_row(ids: UInt32[np.ndarray, " tokens"], trained: Bool[np.ndarray, " tokens"]) -> LabelledRow:
    # The first token has no label pointing at it, since labels are shifted by one.
    """A row from tokens and the mask of those to learn; the first, predicted by nothing, is never learnt."""
    return LabelledRow(ids.astype(np.int64), next_token_labels(ids[None], trained[None])[0])


# --- order --------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def steps_for(count: int, batch: int, epochs: float) -> int:
    """Whole batches in `epochs` passes over `count` examples, at least one. Raises ValueError for none."""
    if count == 0:
        raise ValueError("no trainable example is left; check the data and max_tokens")
    # A batch larger than the data is the whole data, so that small sets still train.
    return max(1, int(count * epochs) // min(batch, count))


def indices_of_step(step: int, count: int, batch: int, seed: int) -> list[int]:
    """The examples of 0-based `step`: `batch` places of a stream of permutations keyed by (seed, epoch).

    A batch larger than the whole data is the whole data once per step.
    """
    size = min(batch, count)
    places = range(step * size, (step + 1) * size)
    # A step may cross an epoch: each place asks the permutation of its own epoch.
    return [int(_permutation(count, seed, place // count)[place % count]) for place in places]


# --- shapes -------------------------------------------------------------------------------------------


def padded_length(length: int) -> int:
    """The smallest of 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, … (quarters between powers of two) that is at least `length`."""
    if length <= 32:
        return 32
    # Four lengths to a power of two: at most a fifth of a row is padding, and compiled code sees some 30 lengths up to 4,096.
    step = 1 << (length - 1).bit_length() - 3
    return -(-length // step) * step


def split_passes(lengths: Sequence[int], pass_tokens: int) -> list[list[int]]:
    """Group indices of `lengths`, longest first, so that a group's padded size is at most `pass_tokens`.

    A single sequence longer than that makes a pass of its own.
    """
    # Ties are broken by index, so the passes are the same on every machine.
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    passes: list[list[int]] = []
    while order:
        # The longest row of a group sets its padded length, and the order makes that the first one.
        rows = max(1, pass_tokens // padded_length(lengths[order[0]]))
        passes.append(order[:rows])
        order = order[rows:]
    return passes


def pad_rows(rows: Sequence[LabelledRow], pad_id: int) -> Batch:
    """`ids` and `labels` (batch seq), int64, right-padded with `pad_id` and −100."""
    length = padded_length(max(len(row.ids) for row in rows))
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    labels = np.full((len(rows), length), IGNORE, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = row.ids
        labels[i, : len(row.labels)] = row.labels
    return {"ids": ids, "labels": labels}


# --- weights ------------------------------------------------------------------------------------------


def row_weights(trained: Sequence[int], reduction: Reduction, micro_batch: int) -> list[float]:
    """Weight of every trained token of each row, such that Σ weight · loss is the published objective.

    Consecutive `micro_batch` rows form a micro-batch, reduced by "sum" or by "mean" over its trained tokens;
    micro-batches are then averaged. With "sum" and one row per micro-batch that is (1/batch) Σ_sequences
    Σ_tokens (RECIPE F).
    """
    groups = math.ceil(len(trained) / micro_batch)
    # Published trainers reduce each micro-batch first, so under "mean" a token of a short one weighs more.
    weights: list[float] = []
    for start in range(0, len(trained), micro_batch):
        group = trained[start : start + micro_batch]
        weights += [1 / groups / (sum(group) if reduction == "mean" else 1)] * len(group)
    return weights


def weigh(labels: Int64[np.ndarray, "batch seq"], weights: Sequence[float]) -> Float32[np.ndarray, "batch seq"]:
    """Each row's weight at its trained positions, 0 elsewhere."""
    return (np.asarray(weights, dtype=np.float64)[:, None] * (labels != IGNORE)).astype(np.float32)


# --- batches ------------------------------------------------------------------------------------------


def token_batches(
    rows: Sequence[LabelledRow],
    *,
    pad_id: int,
    reduction: Reduction,
    micro_batch: int,
    pass_tokens: int,
    per_row: dict[str, np.ndarray] | None = None,
    per_token: dict[str, Sequence[np.ndarray]] | None = None,
) -> list[Batch]:
    """One step's passes: `ids`, `labels`, `weights` and `token_share` (batch seq).

    `token_share` is 1 / (the step's trained tokens) at trained positions: Σ token_share · x is the token mean of x.
    `per_row` and `per_token` are cut and padded along: arrays by row, and by row's position (0 on padding). The
    loop averages over passes, so `weights` and `token_share` are multiplied by the number of passes.
    """
    trained = [row.trained_tokens for row in rows]
    weights = row_weights(trained, reduction, micro_batch)
    passes = split_passes([len(row.ids) for row in rows], pass_tokens)
    batches = []
    for members in passes:
        batch = pad_rows([rows[i] for i in members], pad_id)
        # The loop divides by the number of passes. Multiplying by it here keeps the sum of the step.
        batch["weights"] = weigh(batch["labels"], [len(passes) * weights[i] for i in members])
        batch["token_share"] = weigh(batch["labels"], [len(passes) / sum(trained)] * len(members))
        for name, values in (per_row or {}).items():
            batch[name] = values[members]
        for name, values in (per_token or {}).items():
            batch[name] = np.zeros(batch["ids"].shape, dtype=np.float32)
            for place, i in enumerate(members):
                batch[name][place, : len(values[i])] = values[i]
        batches.append(batch)
    return batches


def pair_batches(
    pairs: Sequence[tuple[LabelledRow, LabelledRow]],
    *,
    pad_id: int,
    pass_tokens: int,
    references: Float32[np.ndarray, "pairs 2"] | None = None,
) -> list[Batch]:
    """One step's passes over (chosen, rejected) pairs, mean over pairs.

    `ids`, `labels` (2·pairs seq: chosen rows, then rejected), `lengths` (2·pairs), `weights` (pairs), `reference`
    (2·pairs). The loop averages over passes, so `weights` are multiplied by the number of passes.
    """
    # Half the budget each: a pair puts two rows into the pass.
    passes = split_passes([max(len(c.ids), len(r.ids)) for c, r in pairs], max(1, pass_tokens // 2))
    batches = []
    for members in passes:
        # [chosen..., rejected...]: one forward pass, after which the loss splits the batch in the middle.
        rows = [pairs[i][0] for i in members] + [pairs[i][1] for i in members]
        batch = pad_rows(rows, pad_id)
        batch["lengths"] = np.array([len(row.ids) for row in rows], dtype=np.int64)
        batch["weights"] = np.full(len(members), len(passes) / len(pairs), dtype=np.float32)
        if references is not None:
            # [pairs, 2] -> [2 * pairs], in the order of the rows: first all chosen, then all rejected.
            batch["reference"] = references[members].T.reshape(-1)
        batches.append(batch)
    return batches
