"""Stability measures. Oracle: planted spikes, RECIPE D's definitions, a linear network whose growth is
known.
"""

import math

import numpy as np
import pytest
import torch

from model.config import OLMO_0424, ModelConfig
from model.diagnostics import growth_exponent, monitor_spike_score, parameter_norms, spike_score
from model.transformer import Transformer

SHAPE = {
    "d_model": 32,
    "n_layers": 4,
    "n_heads": 2,
    "n_kv_heads": 2,
    "head_dim": 16,
    "mlp_hidden": 64,
    "vocab_size": 128,
}


def test_planted_spikes_are_counted_both_ways() -> None:
    values = np.random.default_rng(0).normal(size=3000)
    values[[1500, 2500]] = (30.0, -30.0)
    assert spike_score(values.tolist()) == pytest.approx(100 * 2 / 2000)
    assert spike_score(values[:1000].tolist()) == 0


def test_monitor_counts_upward_spikes_of_either_series_once() -> None:
    random = np.random.default_rng(0)
    losses, norms = random.normal(size=(2, 1128))
    losses[300] = norms[300] = norms[600] = 40.0
    losses[900] = -40.0
    assert monitor_spike_score(losses.tolist(), norms.tolist()) == pytest.approx(100 * 2 / 1000)
    with pytest.raises(ValueError, match="1128 losses and 5"):
        monitor_spike_score(losses.tolist(), norms[:5].tolist())


def test_growth_of_a_model_whose_blocks_add_nothing_is_zero() -> None:
    model = Transformer(ModelConfig(**SHAPE), seed=0)
    with torch.no_grad():
        for block in model.blocks:
            block.attention_norm.weight.zero_()
            block.feed_forward_norm.weight.zero_()
    growth = growth_exponent(model, torch.randint(0, 128, (5, 16)))
    assert growth.activations == pytest.approx(0, abs=1e-6)
    assert growth.gradients == pytest.approx(0, abs=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_growth_is_finite_for_the_baseline_too() -> None:
    model = Transformer(ModelConfig(**SHAPE, **OLMO_0424), seed=0)
    assert all(math.isfinite(value) for value in growth_exponent(model, torch.randint(0, 128, (5, 16))))


def test_norms_of_parameters_and_gradients() -> None:
    model = Transformer(ModelConfig(**SHAPE), seed=0)
    model.norm.weight.grad = 2 * torch.ones(32)
    norms = dict(parameter_norms(model))
    assert norms["param/norm.weight.norm"] == pytest.approx(32**0.5)
    assert norms["grad/norm.weight.norm"] == pytest.approx(2 * 32**0.5)
