"""Initial weights: the distribution, and that rows do not depend on who draws them. Oracle: `statistics.NormalDist`."""

import statistics

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.network.initial_weights import CHUNK, initial_rows, truncated_normal, uniform

CONFIG = ModelConfig(d_model=64, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=32, mlp_hidden=128, vocab_size=50_000)
SHAPE = (50_000, 64)
FIRST = [0.7196816752935749, 0.25053195934318895, 0.0220656825040928]


def test_rows_are_the_same_whoever_draws_them() -> None:
    """Cuts that fall within a counter's four numbers, within a chunk and between chunks."""
    whole = initial_rows(CONFIG, 7, "head.weight", SHAPE, 0, SHAPE[0])
    assert whole.numel() > 3 * CHUNK
    for start, stop in [(0, 1), (3, 17), (16_383, 16_385), (12_500, 25_000), (49_999, 50_000), (9, 9)]:
        assert torch.equal(initial_rows(CONFIG, 7, "head.weight", SHAPE, start, stop), whole[start:stop])
    narrow = initial_rows(CONFIG, 7, "odd.weight", (11, 3), 0, 11)
    assert all(torch.equal(initial_rows(CONFIG, 7, "odd.weight", (11, 3), row, 11), narrow[row:]) for row in range(11))


@pytest.mark.parametrize("other", [(8, "head.weight"), (7, "embedding.weight")])
def test_seeds_and_names_have_streams_of_their_own(other: tuple[int, str]) -> None:
    one, two = (initial_rows(CONFIG, *key, SHAPE, 0, 2_000).flatten().numpy() for key in ((7, "head.weight"), other))
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / len(one) ** 0.5


def test_the_distribution_is_a_normal_one_cut_at_three_deviations() -> None:
    """Quantiles against the inverse of the distribution, and the largest distance between both (Kolmogorov and Smirnov)."""
    values = np.sort(initial_rows(CONFIG, 1, "embedding.weight", SHAPE, 0, SHAPE[0]).double().flatten().numpy()) / 0.02
    assert -3 <= values[0] < -2.99
    assert 2.99 < values[-1] <= 3.0001
    normal = statistics.NormalDist()
    inside = normal.cdf(3) - normal.cdf(-3)
    places = np.arange(0, len(values), 1000)
    wanted = np.array([(normal.cdf(float(values[place])) - normal.cdf(-3)) / inside for place in places])
    assert np.abs(wanted - places / len(values)).max() < 1.95 / len(values) ** 0.5


def test_the_first_numbers_are_these() -> None:
    """Written down once: another version of numpy or torch that draws otherwise would give other models under the same ids."""
    assert uniform("0:head.weight", 0, 3).tolist() == FIRST
    middle = truncated_normal(np.array([0.0, 0.5, 0.75])).tolist()
    assert middle == pytest.approx(
        [-3.0, 0.0, statistics.NormalDist().inv_cdf(0.00134989803163 + 0.75 * 0.99730020393674)]
    )
