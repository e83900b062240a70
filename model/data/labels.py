"""Labels say what each position has to predict; the divisor says by what a summed loss is divided.

Source: RECIPE A.5 (both normalisations). Labels are shifted already: `labels[b, t]` is the id that follows position t;
-100 stands where nothing is trained.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

IGNORE = -100
"""Label of a position that is not trained."""


LossNormalisation = Literal["labels", "positions", "sum"]


def next_token_labels(
    ids: Int[np.ndarray, "batch seq"], trained: Bool[np.ndarray, "batch seq"] | None = None
) -> Int[np.ndarray, "batch seq"]:
    """Shift ids into labels (int64); the last position, and targets where `trained` is False, become -100."""
    labels = np.full(ids.shape, IGNORE, dtype=np.int64)
    # Copied whole before masking: labels[b, t] = ids[b, t + 1], so the mask is shifted by one as well.
    labels[:, :-1] = ids[:, 1:]
    if trained is not None:
        labels[:, :-1][~trained[:, 1:]] = IGNORE
    return labels


def loss_divisor(
    trained_labels: int, masked_instances: int, instances: int, length: int, normalisation: LossNormalisation
) -> float:
    """What the loss summed over a whole batch is divided by. The batch has `instances` rows of `length` positions, of which
    so many labels are trained. The repetition filter removed `masked_instances` of the rows.
    """
    if normalisation == "sum":
        return 1.0
    if normalisation == "positions":
        return float(instances * length)
    # Masked rows count with all their positions, as in the published trainer: masking doesn't raise other rows'
    # weight.
    return float(trained_labels + masked_instances * length)
