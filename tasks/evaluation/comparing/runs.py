"""Comparing models that were each trained several times on the same mix: the noise floor, and differences that allow for it.

A difference between two models has two sources of chance: which items were asked, and which seeds the trainings had. The first
is the paired error over items, of each item's mean over the runs. The second is the spread between runs of the same mix, pooled
over all that were repeated: the noise floor. Their squares are added. Deviation: chance that a run has on single items is in
both, so the sum errs on the safe side. With few runs the floor itself is uncertain, so Student's t judges, with the degrees of
freedom of Welch and Satterthwaite (Satterthwaite 1946).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import atan, cos, fsum, isfinite, pi, sin, sqrt
from statistics import NormalDist, variance

from tasks.evaluation.comparing.comparison import Comparison, two_sided

_Items = Mapping[str, float]
"""Score by item."""
NORMAL_FROM = 200
"""Degrees of freedom from which the normal distribution stands for Student's."""


@dataclass(frozen=True, slots=True)
class Floor:
    """How far the means of two runs of the same mix lie apart by chance."""

    variance: float
    """Between the mean scores of runs of one candidate."""
    freedom: int
    """Runs beyond the first of each candidate."""

    @property
    def deviation(self) -> float:
        return sqrt(self.variance)


@dataclass(frozen=True, slots=True)
class RunsCompared:
    """The second candidate minus the first."""

    items: Comparison
    """Over items, of the mean over runs."""
    floor: Floor | None
    """None where no candidate was repeated: chance between seeds is then not known."""
    shares: float
    """1 / runs of the first + 1 / runs of the second."""

    @property
    def difference(self) -> float:
        return self.items.difference

    @property
    def seed_variance(self) -> float:
        """What chance between seeds adds to the variance of the difference."""
        return self.floor.variance * self.shares if self.floor else 0.0

    @property
    def stderr(self) -> float:
        return sqrt(self.items.stderr**2 + self.seed_variance)

    @property
    def p_value(self) -> float:
        """Probability of a difference at least as large by chance alone."""
        # Without repeated runs the chance between seeds is unknown, so only items judge.
        if self.floor is None or self.seed_variance == 0:
            return two_sided(self.difference, self.stderr)
        total = self.stderr**2
        spread = self.items.stderr**4 / max(1, self.items.n - 1) + self.seed_variance**2 / self.floor.freedom
        return student_two_sided(self.difference / self.stderr, total**2 / spread)


def noise_floor(means: Sequence[Sequence[float]]) -> Floor | None:
    """Pooled variance between the runs of each candidate, given the mean score of every run; None where none was repeated."""
    repeated = [runs for runs in means if len(runs) > 1]
    freedom = sum(len(runs) - 1 for runs in repeated)
    if not freedom:
        return None
    # Weighted by degrees of freedom: a candidate with more runs says more of the spread.
    return Floor(fsum(variance(runs) * (len(runs) - 1) for runs in repeated) / freedom, freedom)


def mean_over_runs(runs: Sequence[_Items]) -> dict[str, float]:
    """Mean score of each item that all runs answered. Raises ValueError for runs that answered different items."""
    if any(run.keys() != runs[0].keys() for run in runs[1:]):
        raise ValueError(f"{len(runs)} runs answered different items; evaluate them with one config")
    return {item: fsum(run[item] for run in runs) / len(runs) for item in runs[0]}


def seeds_to_decide(found: RunsCompared, level: float, power: float) -> int | None:
    """Runs of each candidate with which a difference of the measured size is significant at `level` with this power, by the
    same items; None where the items alone do not suffice, or no floor is known.
    """
    if found.floor is None or found.difference == 0:
        return None
    law = NormalDist()
    errors = law.inv_cdf(1 - level / 2) + law.inv_cdf(power)
    room = (found.difference / errors) ** 2 - found.items.stderr**2
    if room <= 0:
        return None
    # Each candidate's mean over k runs has a variance of floor / k, and there are two.
    needed = 2 * found.floor.variance / room
    return max(1, int(needed) + (needed > int(needed)))


def student_two_sided(value: float, freedom: float) -> float:
    """Probability that Student's t lies beyond ±value.

    For whole degrees of freedom, to which `freedom` is rounded down (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
    """
    if not isfinite(value):
        return 0.0
    # Rounded down, which errs on the safe side.
    whole = max(1, int(freedom))
    if whole > NORMAL_FROM:
        return two_sided(value, 1.0)
    angle = atan(abs(value) / sqrt(whole))
    term = total = cos(angle) if whole % 2 else 1.0
    for place in range(3 if whole % 2 else 2, whole - 1, 2):
        term *= cos(angle) ** 2 * (place - 1) / place
        total += term
    odd = angle + (sin(angle) * total if whole > 1 else 0.0)
    inside = 2 / pi * odd if whole % 2 else sin(angle) * total
    return max(0.0, 1 - inside)
