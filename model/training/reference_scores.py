"""Computes log-probabilities and scores of rows without gradients: references of DPO and GRPO, held-out scores.

Source: RECIPE G, H.3. Rows are padded and grouped as in training and computed in the training precision, so
that a policy compared with itself differs by rounding only. The workers of a group share the passes out and tell each
other what they found.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from model.config import Precision
from model.data.chat_batches import LabelledRow, pad_rows, split_passes
from model.network.transformer import Transformer
from model.parallel.group import Group
from model.training.loop import to_device
from model.training.objectives import label_log_probs, score_sequences, token_values


def row_log_probs(
    model: Transformer,
    rows: Sequence[LabelledRow],
    *,
    pad_id: int,
    pass_tokens: int,
    precision: Precision,
    temperature: float = 1.0,
    group: Group | None = None,
) -> list[Float32[np.ndarray, " seq"]]:
    """log p of every row's labels, at the positions that predict them; 0 where untrained. In the order of
    `rows`. All workers of a `group` have to call this with the same rows.
    """

    def values(model: Transformer, batch: dict[str, Tensor]) -> Tensor:
        return label_log_probs(model, batch["ids"], batch["labels"], temperature)

    padded = _over_passes(
        model, rows, values, pad_id=pad_id, pass_tokens=pass_tokens, precision=precision, group=group or Group()
    )
    return [found[: len(row.ids)] for found, row in zip(padded, rows, strict=True)]


def row_values(
    model: Transformer,
    rows: Sequence[LabelledRow],
    *,
    pad_id: int,
    pass_tokens: int,
    precision: Precision,
    group: Group,
) -> list[Float32[np.ndarray, " seq"]]:
    """The one-output head's value at every position of every row. All workers of the group have to call this with the same
    rows.
    """

    def values(model: Transformer, batch: dict[str, Tensor]) -> Tensor:
        return token_values(model, batch["ids"])

    padded = _over_passes(model, rows, values, pad_id=pad_id, pass_tokens=pass_tokens, precision=precision, group=group)
    return [found[: len(row.ids)] for found, row in zip(padded, rows, strict=True)]


def row_scores(
    model: Transformer,
    rows: Sequence[LabelledRow],
    *,
    pad_id: int,
    pass_tokens: int,
    precision: Precision,
    group: Group,
) -> Float32[np.ndarray, " rows"]:
    """The one-output head's value at every row's last token. All workers of the group have to call this with the same rows."""

    def values(model: Transformer, batch: dict[str, Tensor]) -> Tensor:
        return score_sequences(model, batch["ids"], batch["lengths"])

    found = _over_passes(model, rows, values, pad_id=pad_id, pass_tokens=pass_tokens, precision=precision, group=group)
    return np.array(found, dtype=np.float32)


def _over_passes(
    model: Transformer,
    rows: Sequence[LabelledRow],
    function: Callable[[Transformer, dict[str, Tensor]], Tensor],
    *,
    pad_id: int,
    pass_tokens: int,
    precision: Precision,
    group: Group,
) -> list[np.ndarray]:
    """`function` of every padded pass; its outputs by row, put back into the order of `rows`."""
    device = torch.device(group.device) if group.device else model.device
    passes = split_passes([len(row.ids) for row in rows], pass_tokens)
    own: dict[int, np.ndarray] = {}
    for first in range(0, len(passes), group.world):
        # Sharded weights are gathered by all workers at once: whoever is left without a pass repeats the last one.
        members = passes[min(first + group.rank, len(passes) - 1)]
        # The length of a row says where its last real token is; padded places are cut off by the caller.
        batch = pad_rows([rows[i] for i in members], pad_id)
        batch["lengths"] = np.array([len(rows[i].ids) for i in members], dtype=np.int64)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = group.apply(function, model, to_device(batch, str(device))).float().cpu().numpy()
        own |= zip(members, outputs, strict=True)
    found: dict[int, np.ndarray] = {}
    for made in group.exchange(own):
        found |= made
    return [found[i] for i in range(len(rows))]
