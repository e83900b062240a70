"""Stability measures. Oracle: planted spikes, RECIPE D's definitions, a linear network whose growth is
known.
"""

import math

import numpy as np
import pytest
import torch

from model.config import OLMO_0424, ModelConfig
from model.diagnostics import NormWatch, growth_exponent, monitor_spike_score, spike_score
from model.optim import OptimConfig, Optimizer
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


def test_contributions_are_what_a_layer_adds() -> None:
    """With its norms scaled by e per layer, each layer of a reordered-norm model adds e times as much as the one before."""
    model = Transformer(ModelConfig(**SHAPE, init_std=1e-3), seed=0)
    ids = torch.randint(0, 128, (5, 16), generator=torch.Generator().manual_seed(0))
    plain = growth_exponent(model, ids).contributions
    with torch.no_grad():
        model.blocks[-1].attention_norm.weight.mul_(math.e)  # type: ignore[union-attr]
        model.blocks[-1].feed_forward_norm.weight.mul_(math.e)  # type: ignore[union-attr]
    # The last MLP reads another input now, so its direction moves a little.
    assert growth_exponent(model, ids).contributions == pytest.approx(plain + 1 / 4, abs=0.03)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_watched_norms_are_those_of_the_update() -> None:
    model = Transformer(ModelConfig(**SHAPE), seed=0)
    optimizer = Optimizer(model.named_parameters(), OptimConfig(clip_norm=0.5))
    with NormWatch(model, every=2) as watch:
        for step in range(3):
            watch.arm(step)
            model(torch.randint(0, 128, (2, 8))).square().mean().backward()
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.step(1e-2, torch.tensor(1.0))
            assert bool(watch.metrics(step + 1)) == (step == 1)
            if step == 1:
                after = {name: p.detach().clone() for name, p in model.named_parameters()}
                found = watch.metrics(2)
                expected = (gradients, before, after)
        assert not watch.metrics(3)
    gradients, before, after = expected
    groups = {"embedding", "head", "norm", *(f"blocks.{n}" for n in range(4))}
    assert found.keys() == {f"{kind}_norm/{group}" for kind in ("param", "grad", "update") for group in groups}
    for group in groups:
        members = [name for name in after if name.startswith(f"{group}.")]
        for kind, values in (("grad", gradients), ("param", after)):
            norm = sum(float(values[name].square().sum()) for name in members) ** 0.5
            assert found[f"{kind}_norm/{group}"] == pytest.approx(norm, rel=1e-5)
        moved = sum(float((after[name] - before[name]).square().sum()) for name in members) ** 0.5
        assert found[f"update_norm/{group}"] == pytest.approx(moved, rel=1e-5)


def test_watching_changes_nothing_and_ends() -> None:
    def run(every: int) -> list[torch.Tensor]:
        model = Transformer(ModelConfig(**SHAPE), seed=0)
        optimizer = Optimizer(model.named_parameters(), OptimConfig())
        with NormWatch(model, every) as watch:
            for step in range(2):
                watch.arm(step)
                model(torch.arange(16).view(2, 8)).square().mean().backward()
                optimizer.step(1e-2, torch.tensor(1.0))
        assert bool(watch.found) == (every == 1)
        watch.arm(2)
        optimizer.step(1e-2, torch.tensor(1.0))
        assert watch.update == (3 if every == 1 else 0)
        assert not watch._before
        return [p.detach() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(0), run(1), strict=True))
