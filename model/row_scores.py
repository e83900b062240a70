"""Log-probabilities and scores of rows without gradients: references of DPO and GRPO, held-out scores.

Source: RECIPE G, H.3. Rows are padded and grouped as in training and computed in the training precision, so
that a policy compared with itself differs by rounding only.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from model.chat_batches import Row, pad_rows, split_passes
from model.loop import to_device
from model.objectives import label_log_probs, score_sequences
from model.transformer import Transformer

Precision = Literal["bf16", "fp32"]


def row_log_probs(
    model: Transformer,
    rows: Sequence[Row],
    *,
    pad_id: int,
    pass_tokens: int,
    precision: Precision,
    temperature: float = 1.0,
) -> list[Float32[np.ndarray, " seq"]]:
    """log p of every row's labels, at the positions that predict them; 0 where untrained. In the order of
    `rows`.
    """

    def values(batch: dict[str, Tensor]) -> Tensor:
        return label_log_probs(model, batch["ids"], batch["labels"], temperature)

    padded = _over_passes(model, rows, values, pad_id=pad_id, pass_tokens=pass_tokens, precision=precision)
    return [found[: len(row.ids)] for found, row in zip(padded, rows, strict=True)]


def row_scores(
    model: Transformer, rows: Sequence[Row], *, pad_id: int, pass_tokens: int, precision: Precision
) -> Float32[np.ndarray, " rows"]:
    """The one-output head's value at every row's last token."""

    def values(batch: dict[str, Tensor]) -> Tensor:
        return score_sequences(model, batch["ids"], batch["lengths"])

    found = _over_passes(model, rows, values, pad_id=pad_id, pass_tokens=pass_tokens, precision=precision)
    return np.array(found, dtype=np.float32)


@torch.no_grad()
def _over_passes(
    model: Transformer,
    rows: Sequence[Row],
    function: Callable[[dict[str, Tensor]], Tensor],
    *,
    pad_id: int,
    pass_tokens: int,
    precision: Precision,
) -> list[np.ndarray]:
    """`function` of every padded pass; its outputs by row, put back into the order of `rows`."""
    device = model.device
    found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
    for members in split_passes([len(row.ids) for row in rows], pass_tokens):
        batch = pad_rows([rows[i] for i in members], pad_id)
        batch["lengths"] = np.array([len(rows[i].ids) for i in members], dtype=np.int64)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = function(to_device(batch, str(device))).float().cpu().numpy()
        for i, output in zip(members, outputs, strict=True):
            found[i] = output
    return found
