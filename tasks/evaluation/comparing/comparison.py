"""Comparing two models on the items that both answered (Miller 2024, "Adding error bars to evals").

The two answer the same questions, so the errors that the questions bring cancel: what counts is the spread of the
differences per item. Items of one cluster (a CoQA passage, an MMLU subject) are one draw and may all differ together.
Deviation: with no two different differences the sample tells nothing of their spread; then one item either way is added.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import erfc, sqrt

Z_95 = 1.959964
"""Standard errors of a two-sided interval at 95 %."""
Z_POWER = 2.801585
"""Standard errors of the smallest difference found with 80 % power by a two-sided test at 5 %."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Second model minus first, over common items."""

    difference: float
    stderr: float
    n: int
    """Items that both answered."""
    discordant: int
    """Items with different scores: only these tell the two apart."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of intervals made like this hold the true difference."""
        return self.difference - Z_95 * self.stderr, self.difference + Z_95 * self.stderr

    @property
    def p_value(self) -> float:
        """Two-sided, by the normal distribution."""
        return two_sided(self.difference, self.stderr)

    @property
    def smallest_shown(self) -> float:
        """The smallest true difference that this many items would show four times in five."""
        return Z_POWER * self.stderr

    @property
    def words(self) -> str:
        """What the comparison shows, in plain words."""
        low, high = self.interval
        if low <= 0 <= high:
            return f"no effect shown (these {self.n:,} items would show {self.smallest_shown:.2g})"
        return "gain" if low > 0 else "loss"


def compare(
    first: Mapping[str, float], second: Mapping[str, float], clusters: Mapping[str, str] | None = None
) -> Comparison:
    """The paired comparison of item scores by id. `clusters` names the cluster of each item (None: items are independent).

    Raises ValueError where no item is common.
    """
    # In the first model's order, so that equal inputs give equal sums.
    common = [item for item in first if item in second]
    if not common:
        raise ValueError(
            f"two models answered {len(first):,} and {len(second):,} items and none in common; evaluate them with one config"
        )
    differences = {item: second[item] - first[item] for item in common}
    n = len(common)
    mean = sum(differences.values()) / n
    groups = [clusters[item] for item in common] if clusters is not None else common
    return Comparison(
        difference=mean,
        stderr=clustered_error(list(differences.values()), groups),
        n=n,
        discordant=sum(value != 0 for value in differences.values()),
    )


def clustered_error(values: Sequence[float], groups: Sequence[str]) -> float:
    """Standard error of the mean of values whose groups, not they themselves, are independent draws."""
    n = len(values)
    spread = [*values]
    if len(set(values)) == 1:
        # One more item either way: an error of 0 would make any difference certain.
        values, groups = [*values, values[0] + 1, values[0] - 1], [*groups, "\0up", "\0down"]
        n, spread = n + 2, [*values]
    mean = sum(spread) / n
    sums: dict[str, float] = defaultdict(float)
    for value, group in zip(values, groups, strict=True):
        sums[group] += value - mean
    count = len(sums)
    if count < 2:
        raise ValueError(f"{n} items lie in one cluster, {groups[0]!r}; an error needs at least two")
    # count / (count - 1) corrects for few clusters, as n / (n - 1) does for few items.
    return sqrt(sum(total**2 for total in sums.values()) * count / (count - 1)) / n


def two_sided(difference: float, stderr: float) -> float:
    """Probability of a difference at least as large by chance alone."""
    # Without an error a difference is either none or certain.
    if stderr <= 0:
        return 1.0 if difference == 0 else 0.0
    return erfc(abs(difference) / stderr / sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold for all comparisons together (Holm 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        # Adjusted values may not fall, or a larger p could look surer than a smaller one.
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted
