"""Stability measures. Oracle: planted spikes, RECIPE D's definitions, OLMo-core's monitor step by step, golden's formula of
growth, networks whose growth is known.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import OLMO_0424, ModelConfig
from model.network.transformer import Transformer
from model.training.configs import OptimConfig
from model.training.measuring import diagnostics
from model.training.measuring.diagnostics import NormWatch, growth_exponent, monitor_spike_score, spike_score
from model.training.optim import Optimizer

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


@pytest.mark.parametrize("window", [-5, 0, 1])
def test_a_window_without_a_deviation_is_refused(window: int) -> None:
    with pytest.raises(ValueError, match=f"window={window}: .* at least 2"):
        spike_score([1.0, 2.0], window)


def test_scores_of_a_long_run_are_those_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: numpy's own windows, all at once."""
    values = np.random.default_rng(0).normal(size=300)
    frames = np.lib.stride_tricks.sliding_window_view(values[:-1], 20)
    expected = (values[20:] - frames.mean(axis=1)) / frames.std(axis=1, ddof=1)
    for at_once in (1, 20, 70, 1 << 20):
        monkeypatch.setattr(diagnostics, "FRAME_VALUES", at_once)
        np.testing.assert_array_equal(diagnostics._scores(values, 20, ddof=1), expected)
    assert diagnostics._scores(values[:20], 20, ddof=1).size == 0


def test_monitor_counts_upward_spikes_of_either_series_once() -> None:
    random = np.random.default_rng(0)
    losses, norms = random.normal(size=(2, 1000))
    losses[300] = norms[300] = norms[600] = 40.0
    losses[900] = -40.0
    assert monitor_spike_score(losses.tolist(), norms.tolist()).total == pytest.approx(100 * 2 / 1000)
    with pytest.raises(ValueError, match="1000 losses and 5"):
        monitor_spike_score(losses.tolist(), norms[:5].tolist())
    assert monitor_spike_score([], []) == (0, 0)


class Monitor:
    """OLMo-core's rule step by step: two lists of at most 128 values, two counters, a list of at most 10,000 verdicts."""

    def __init__(self) -> None:
        self.seen: tuple[list[float], list[float]] = ([], [])
        self.verdicts: list[bool] = []
        self.spikes = self.steps = 0

    def step(self, loss: float, norm: float) -> None:
        spike = False
        for value, history in zip((loss, norm), self.seen, strict=True):
            if len(history) == 128:
                mean = sum(history) / 128
                deviation = math.sqrt(sum((one - mean) ** 2 for one in history) / 128)
                spike |= deviation >= 1e-10 and value > mean + 6 * deviation
                history.pop(0)
            history.append(value)
        self.verdicts = [*self.verdicts[-9_999:], spike]
        self.spikes, self.steps = self.spikes + spike, self.steps + 1


@pytest.mark.parametrize("kind", ["spikes", "flat", "heavy tails", "short", "long"])
def test_monitor_equals_olmo_cores(kind: str) -> None:
    random = np.random.default_rng(1)
    losses, norms = random.normal(size=(2, {"short": 100, "long": 12_000}.get(kind, 700)))
    if kind == "spikes":
        losses[[200, 400]] = norms[[400, 600]] = 9.0
    elif kind == "flat":
        losses[:], norms[:] = 2.1, 0.3
        losses[300] += 1e-7
        norms[500] += 1.0
    elif kind == "heavy tails":
        losses, norms = random.standard_t(2, size=(2, 700))
    elif kind == "long":
        losses[[500, 3_000]] = norms[11_000] = 30.0
    oracle = Monitor()
    for loss, norm in zip(losses.tolist(), norms.tolist(), strict=True):
        oracle.step(loss, norm)
    found = monitor_spike_score(losses.tolist(), norms.tolist())
    assert oracle.spikes == {"spikes": 3, "flat": 0, "short": 0, "long": 3}.get(kind, oracle.spikes)
    assert found.total == pytest.approx(100 * oracle.spikes / oracle.steps)
    assert found.recent == pytest.approx(100 * sum(oracle.verdicts) / len(oracle.verdicts))
    assert (found.recent != found.total) == (kind == "long")


def test_nothing_is_a_spike_after_a_flat_window() -> None:
    """A mean's rounding is no event."""
    values = [2.1] * 300
    assert spike_score(values, 100) == 0
    values[200:] = [2.1 + 1e-7] * 100
    assert spike_score(values[:201], 100) == 0


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


def test_growth_is_the_logarithm_of_last_over_first() -> None:
    """Oracle: golden's formula on vectors kept by hooks of this test. The last layer is loud, so signs are certain."""
    model = Transformer(ModelConfig(**SHAPE), seed=0)
    ids = torch.randint(0, 128, (5, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.blocks[-1].feed_forward_norm.weight.mul_(30)  # type: ignore[union-attr]
    kept: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, __: object, output: torch.Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    model.train()
    handles = [block.register_forward_hook(keep) for block in model.blocks]
    logits = model(ids)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for handle in handles:
        handle.remove()
    golden = json.loads((Path(__file__).parents[1] / "golden/spike_score.json").read_text())["growth_exponent"]
    assert golden == "lambda=(1/n_layers)*ln(norm(v_last)/norm(v_first))"

    def exponent(first: torch.Tensor | None, last: torch.Tensor | None) -> float:
        assert first is not None and last is not None
        return math.log(float(last.mean(dim=(0, 1)).norm() / first.mean(dim=(0, 1)).norm())) / 4

    found = growth_exponent(model, ids)
    assert found.activations == pytest.approx(exponent(kept[0].detach(), kept[-1].detach()), rel=1e-4)
    assert found.gradients == pytest.approx(exponent(kept[0].grad, kept[-1].grad), rel=1e-4)
    assert found.activations > 0.2 and found.gradients < -0.2


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
            assert float(found[f"{kind}_norm/{group}"]) == pytest.approx(norm, rel=1e-5)
        moved = sum(float((after[name] - before[name]).square().sum()) for name in members) ** 0.5
        assert float(found[f"update_norm/{group}"]) == pytest.approx(moved, rel=1e-5)


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
