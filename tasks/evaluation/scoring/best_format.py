"""The best of several formats, corrected for the choosing (RECIPE I.1 takes the larger of multiple choice and cloze).

The larger of two measured scores is too large on average, most where the formats are equally good. The bootstrap says by how
much: items are resampled, and the best format of each draw is taken. How far its mean lies above the measured best is the
excess (Efron and Tibshirani 1993, chapter 10). The published rule stays the score; the corrected one stands next to it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

_DRAWS = 1_000
_SEED = 1_234


ItemValues = Mapping[str, tuple[float, str]]
"""Primary metric and group of every item of a benchmark by its id; the group is empty where the score is a mean over items."""


def choice_excess(formats: Sequence[ItemValues], lower_is_better: bool) -> float:
    """By how much the best format's score is expected to be too good; never below 0.

    The same items are drawn of all formats; of formats without a common item each has draws of its own.
    """
    common = [id for id in formats[0] if all(id in other for other in formats[1:])]
    # Without a common item each format has draws of its own, from another seed.
    sides = [{id: one[id] for id in common} for one in formats] if common else formats
    best = np.min if lower_is_better else np.max
    drawn = [drawn_means(side, _SEED if common else _SEED + place) for place, side in enumerate(sides)]
    measured = best([one[0] for one in drawn])
    excess = float(best([means for _, means in drawn], axis=0).mean() - measured)
    return max(0.0, -excess if lower_is_better else excess)


def drawn_means(items: ItemValues, seed: int) -> tuple[float, np.ndarray]:
    """The mean, over groups where there are some, and that of every draw with return of as many items from each group."""
    ordered = sorted(items.values(), key=lambda item: item[1])
    values = np.array([value for value, _ in ordered], dtype=np.float64)
    groups = np.array([group for _, group in ordered])
    _, starts, inverse, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    # Every group weighs the same, and within it every item.
    weights = 1.0 / (len(sizes) * sizes[inverse])
    generator, means = np.random.default_rng(seed), np.empty(_DRAWS)
    for draw in range(_DRAWS):
        # A draw with return within each group, so that groups keep their sizes.
        chosen = starts[inverse] + (generator.random(len(values)) * sizes[inverse]).astype(np.int64)
        means[draw] = values[chosen] @ weights
    return float(values @ weights), means
