"""The best of several formats, corrected for the choosing (RECIPE I.1 takes the larger of multiple choice and cloze).

The larger of two measured scores is too large on average, most where the formats are equally good. The bootstrap says by how
much: items are drawn anew, the best format of each draw is taken, and what its mean lies above the measured best is the excess
(Efron and Tibshirani 1993, chapter 10). The published rule stays the score; the corrected one stands beside it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

DRAWS = 1_000
SEED = 1_234


ItemValues = Mapping[str, tuple[float, str]]
"""Primary metric and group of every item of a benchmark by its id; the group is empty where the score is a mean over items."""


def choice_excess(formats: Sequence[ItemValues], lower_is_better: bool) -> float:
    """By how much the best format's score is expected to be too good; never below 0.

    Formats are compared on the items that all have. Raises ValueError where there is none.
    """
    ids = [id for id in formats[0] if all(id in other for other in formats[1:])]
    if not ids:
        raise ValueError("formats have no item in common; ask all of them with one limit")
    names = [formats[0][id][1] for id in ids]
    order = sorted(range(len(ids)), key=lambda place: names[place])
    values = np.array([[one[ids[place]][0] for place in order] for one in formats], dtype=np.float64)
    _, starts, inverse, sizes = np.unique(
        np.array([names[place] for place in order]), return_index=True, return_inverse=True, return_counts=True
    )
    weights = 1.0 / (len(sizes) * sizes[inverse])
    best = np.min if lower_is_better else np.max
    measured = best(values @ weights)
    generator = np.random.default_rng(SEED)
    draws = np.empty(DRAWS)
    for draw in range(DRAWS):
        # Within each group, as many items as it has, with return.
        chosen = starts[inverse] + (generator.random(len(ids)) * sizes[inverse]).astype(np.int64)
        draws[draw] = best(values[:, chosen] @ weights)
    excess = float(draws.mean() - measured)
    return max(0.0, -excess if lower_is_better else excess)
