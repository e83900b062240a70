"""Reward arithmetic against tests/golden/rl_arithmetic.json, hand-worked numbers, and slow loops of the same
formulas.
"""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.training.advantages import (
    generalized_advantages,
    group_advantages,
    keep_values,
    kl_estimate,
    stop_penalty,
    token_rewards,
    whiten,
    zero_std_groups,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rl_arithmetic.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["grpo_advantages"], ids=["four", "sixteen"])
@pytest.mark.parametrize(
    ("normalization", "key"), [("sample_std", "ddof1_original"), ("population_std", "ddof0_grpo_fast")]
)
def test_group_advantages_equal_golden(case, normalization, key):
    scores = torch.tensor([case["scores"]], dtype=torch.float64)
    advantages = group_advantages(scores, normalization)[0]
    right, wrong = case[key]
    expected = [right if score else wrong for score in case["scores"]]
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_centered_advantages_are_not_divided():
    assert group_advantages(torch.tensor([[10.0, 0.0]]), "centered").tolist() == [[5.0, -5.0]]


def test_equal_scores_have_no_advantage_and_are_counted():
    scores = torch.tensor([[10.0, 10.0, 10.0], [0.0, 10.0, 0.0]])
    assert group_advantages(scores, "sample_std")[0].tolist() == [0.0, 0.0, 0.0]
    assert zero_std_groups(scores).tolist() == [True, False]


@pytest.mark.parametrize("normalization", ["sample_std", "population_std", "centered"])
@pytest.mark.parametrize(("score", "samples"), [(0.1, 8), (0.7, 8), (0.2, 48), (1e-30, 5), (1e30, 7), (-3.3, 16)])
def test_equal_scores_have_no_advantage_whatever_they_are(normalization, score, samples):
    """The mean of eight times 0.1 is not 0.1 in fp32, and rounding divided by rounding is of order 1."""
    for dtype in (torch.float32, torch.float64):
        scores = torch.full((2, samples), score, dtype=dtype)
        assert not group_advantages(scores, normalization).any()


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(torch.zeros(3, 1), "sample_std")


@given(st.lists(st.sampled_from([0.0, 10.0]), min_size=2, max_size=16))
@settings(max_examples=50)
def test_advantages_of_a_group_sum_to_zero(scores):
    for normalization in ("sample_std", "population_std", "centered"):
        advantages = group_advantages(torch.tensor([scores], dtype=torch.float64), normalization)
        assert abs(float(advantages.sum())) < 1e-9


@pytest.mark.parametrize(
    "case", GOLDEN["kl_estimators_for_logratio_d(policy minus reference)"], ids=lambda c: f"d={c['d']}"
)
def test_kl_estimators_equal_golden(case):
    for name in ("k1", "k2", "k3"):
        value = float(kl_estimate(torch.tensor(case["d"], dtype=torch.float64), name))
        assert value == pytest.approx(case[name], rel=1e-12, abs=1e-15)


@given(st.floats(-5, 5))
@settings(max_examples=50)
def test_k3_is_never_negative(d):
    assert float(kl_estimate(torch.tensor(d, dtype=torch.float64), "k3")) >= 0


def test_unfinished_answers_get_the_penalty_even_when_correct():
    scores, finished = torch.tensor([10.0, 10.0, 0.0]), torch.tensor([True, False, False])
    assert stop_penalty(scores, finished, -10.0).tolist() == [10.0, -10.0, -10.0]
    assert stop_penalty(scores, finished, None).tolist() == [10.0, 10.0, 0.0]


def test_score_sits_on_the_first_padding_slot_or_the_last_token():
    """RECIPE H.2 step 4: L is the last real token; the score goes to L+1 if that exists, else to L."""
    log_ratio = torch.tensor([[0.1, 0.2, 9.0, 9.0], [0.1, 0.2, 0.3, 0.4]])
    rewards = token_rewards(log_ratio, torch.tensor([10.0, 10.0]), torch.tensor([2, 4]), kl_coefficient=0.5)
    expected = [[-0.05, -0.1, 10.0, 0.0], [-0.05, -0.1, -0.15, 9.8]]
    torch.testing.assert_close(rewards, torch.tensor(expected))


def test_values_are_kept_through_the_score():
    kept = keep_values(torch.ones(2, 4), torch.tensor([2, 4]))
    assert kept.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_gae_equals_its_definition_as_a_double_sum():
    torch.manual_seed(0)
    rewards, values = torch.randn(3, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    gamma, lam = 0.9, 0.95
    advantages, returns = generalized_advantages(rewards, values, gamma, lam)
    following = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    deltas = rewards + gamma * following - values
    for t in range(7):
        direct = sum((gamma * lam) ** (s - t) * deltas[:, s] for s in range(t, 7))
        torch.testing.assert_close(advantages[:, t], direct)
    torch.testing.assert_close(returns, advantages + values)


def test_gae_with_lambda_one_is_reward_to_go_minus_value():
    rewards, values = torch.rand(2, 5), torch.rand(2, 5)
    advantages, _ = generalized_advantages(rewards, values, 1.0, 1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, to_go - values)


def test_whitening_over_the_mask_only():
    torch.manual_seed(0)
    values, mask = torch.randn(4, 6) * 3 + 2, torch.rand(4, 6) > 0.4
    white = whiten(values, mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-6)
    assert float(white[mask].var(correction=1)) == pytest.approx(1, rel=1e-5)
    assert float(white[~mask].abs().sum()) == 0
    with pytest.raises(ValueError, match="at least 2"):
        whiten(values, torch.zeros_like(mask))
