"""The decision of the `rank` stage on simulated scores: how often it claims what is not there, and finds what is. Oracles: the
rates that the design asks for (equal candidates undecided in 19 of 20 sweeps, a gain of 2 points ranked first in 18), and tables
of Student's t.
"""

from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from tasks.evaluation.comparing.comparison import compare, two_sided
from tasks.evaluation.comparing.runs import (
    Floor,
    RunsCompared,
    mean_over_runs,
    noise_floor,
    seeds_to_decide,
    student_two_sided,
)
from tests.tasks.evaluation.test_rank import Desk

ITEMS, SEEDS, SWEEPS = 2000, 3, 20
SEED_NOISE = 0.006
"""Standard deviation between seeds of the chance of a right answer: 0.6 points."""


def outcomes(folder: Path, accuracies: dict[str, float], seed: int) -> list[str]:
    """What each of the sweeps ends with. Items differ in difficulty, which all candidates share, and each run has luck of its
    own.
    """
    random, desk, found = np.random.default_rng(seed), Desk(folder), []
    for sweep in range(SWEEPS):
        difficulty = random.normal(0, 0.25, ITEMS)
        scores = []
        for name, accuracy in accuracies.items():
            for run in range(SEEDS):
                chance = np.clip(accuracy + random.normal(0, SEED_NOISE) + difficulty, 0, 1)
                values = (random.random(ITEMS) < chance).astype(float).tolist()
                scores.append(desk.scores(f"{sweep}-{name}-{run}", values))
        found.append(desk.rank(scores, tuple(accuracies), seeds=SEEDS)[0])
    return [f"{made.order[0]}, {made.outcome}" for made in found]


def test_three_equal_candidates_are_undecided(tmp_path):
    found = outcomes(tmp_path, {"a": 0.5, "b": 0.5, "c": 0.5}, 0)
    assert sum(outcome.endswith("undecided") for outcome in found) >= 19


def test_a_candidate_better_by_two_points_is_ranked_first(tmp_path):
    found = outcomes(tmp_path, {"a": 0.5, "better": 0.52, "c": 0.5}, 1)
    assert sum(outcome.startswith("better") for outcome in found) >= 18


def test_a_clearly_better_candidate_is_decided(tmp_path):
    assert outcomes(tmp_path, {"a": 0.5, "b": 0.5, "better": 0.6}, 2) == ["better, better"] * SWEEPS


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
    items_compared = compare(*map(mean_over_runs, (items, better)))
    found = RunsCompared(items_compared, Floor(0.05**2, 4), 2.0)
    needed = seeds_to_decide(found, 0.05, 0.8)
    assert needed is not None

    def errors(seeds: int) -> float:
        return found.difference / sqrt(found.items.stderr**2 + 2 * 0.05**2 / seeds)

    assert errors(needed) >= 2.8015 > errors(needed - 1)
    assert seeds_to_decide(RunsCompared(items_compared, None, 2.0), 0.05, 0.8) is None


def test_runs_that_answered_different_items_are_refused():
    with pytest.raises(ValueError, match="2 runs answered different items"):
        mean_over_runs([{"a": 1.0}, {"b": 1.0}])
