"""The decision of a sweep on simulated scores: how often it claims what is not there, and finds what is. Oracles: the rates
that the design asks for (equal candidates undecided in 19 of 20 sweeps, a gain of 2 points ranked first in 18), and tables of
Student's t.
"""

from math import sqrt

import numpy as np
import pytest

from tasks.evaluation.comparing.comparison import holm, two_sided
from tasks.evaluation.comparing.runs import (
    Floor,
    compare_runs,
    mean_over_runs,
    noise_floor,
    seeds_to_decide,
    student_two_sided,
)

ITEMS, SEEDS, SWEEPS = 2000, 3, 20
SEED_NOISE = 0.006
"""Standard deviation between seeds of the chance of a right answer: 0.6 points."""


def simulated(accuracies: list[float], random: np.random.Generator) -> list[list[dict[str, float]]]:
    """Item scores of every run: items differ in difficulty, which all candidates share, and each run has luck of its own."""
    difficulty = random.normal(0, 0.25, ITEMS)
    runs = []
    for accuracy in accuracies:
        chances = [np.clip(accuracy + random.normal(0, SEED_NOISE) + difficulty, 0, 1) for _ in range(SEEDS)]
        runs.append([{str(i): float(v) for i, v in enumerate(random.random(ITEMS) < chance)} for chance in chances])
    return runs


def decided(runs: list[list[dict[str, float]]]) -> tuple[int, bool]:
    """The best candidate, and whether it is better than all others beyond chance: as `rank` judges."""
    means = [[sum(run.values()) / len(run) for run in one] for one in runs]
    order = sorted(range(len(runs)), key=lambda place: -sum(means[place]))
    floor = noise_floor(means)
    found = [compare_runs(runs[order[0]], runs[place], floor) for place in order[1:]]
    adjusted = holm([one.p_value for one in found])
    return order[0], all(p < two_sided(2.0, 1.0) for p in adjusted)


def test_three_equal_candidates_are_undecided():
    random = np.random.default_rng(0)
    claims = sum(decided(simulated([0.5, 0.5, 0.5], random))[1] for _ in range(SWEEPS))
    assert claims <= 1


def test_a_candidate_better_by_two_points_is_ranked_first():
    random = np.random.default_rng(1)
    first = sum(decided(simulated([0.5, 0.52, 0.5], random))[0] == 1 for _ in range(SWEEPS))
    assert first >= 18


def test_a_clearly_better_candidate_is_decided():
    random = np.random.default_rng(2)
    found = [decided(simulated([0.5, 0.5, 0.6], random)) for _ in range(SWEEPS)]
    assert found == [(2, True)] * SWEEPS


@pytest.mark.parametrize(
    ("value", "freedom"), [(12.706, 1), (4.303, 2), (3.182, 3), (2.571, 5), (2.228, 10), (1.984, 100)]
)
def test_students_t_is_the_printed_one(value, freedom):
    assert student_two_sided(value, freedom) == pytest.approx(0.05, abs=1e-4)
    assert student_two_sided(value, 1e6) == two_sided(value, 1.0)


def test_the_floor_is_the_pooled_variance_of_repeated_runs():
    floor = noise_floor([[0.1, 0.3], [0.5, 0.5, 0.8], [0.9]])
    assert floor is not None and floor.freedom == 3
    assert floor.variance == pytest.approx((0.02 * 1 + 0.03 * 2) / 3)
    assert noise_floor([[0.1], [0.2]]) is None


def test_seeds_that_would_decide_are_those_that_make_the_difference_significant():
    items = [{str(i): float(i % 2) for i in range(400)}]
    better = [{str(i): float(i % 2 or i % 10 == 0) for i in range(400)}]
    found = compare_runs(items, better, Floor(0.05**2, 4))
    needed = seeds_to_decide(found, 0.05, 0.8)
    assert needed is not None

    def errors(seeds: int) -> float:
        return found.difference / sqrt(found.items.stderr**2 + 2 * 0.05**2 / seeds)

    assert errors(needed) >= 2.8015 > errors(needed - 1)
    assert seeds_to_decide(compare_runs(items, better, None), 0.05, 0.8) is None


def test_runs_that_answered_different_items_are_refused():
    with pytest.raises(ValueError, match="2 runs answered different items"):
        mean_over_runs([{"a": 1.0}, {"b": 1.0}])
