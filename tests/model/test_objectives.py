"""Post-training losses against the formulas of RECIPE F, G and H written out in plain torch, and known
values.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import ModelConfig
from model.data.chat_batches import LabelledRow, make_row, pad_rows, pair_batches, token_batches
from model.data.labels import IGNORE
from model.network.transformer import Transformer
from model.training.objectives import (
    bradley_terry_loss,
    clipped_policy_loss,
    clipped_value_loss,
    dpo_loss,
    dpo_objective,
    grpo_loss,
    grpo_objective,
    label_log_probs,
    mean_log_probs,
    reward_objective,
    score_sequences,
    sft_objective,
)

VOCAB, PAD = 128, 127
TINY = ModelConfig(d_model=16, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=8, mlp_hidden=32, vocab_size=VOCAB)


@pytest.fixture
def model() -> Transformer:
    made = Transformer(TINY, seed=0)
    with torch.no_grad():
        made.head.weight.mul_(20)  # so that log-probabilities differ visibly between tokens
    return made


def rows(*lengths: int) -> list[LabelledRow]:
    rng = np.random.default_rng(0)
    return [
        make_row(rng.integers(0, 100, length).astype(np.uint32), np.arange(length) >= length // 2) for length in lengths
    ]


def tensors(batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in batch.items()}


def direct_log_probs(model: Transformer, row: LabelledRow, temperature: float = 1.0) -> Tensor:
    """log p of every label of one unpadded row, from the full logits."""
    logits = model(torch.from_numpy(row.ids)[None])[0] / temperature
    labels = torch.from_numpy(row.labels)
    picked = torch.log_softmax(logits, -1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return torch.where(labels == IGNORE, torch.zeros(()), picked)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_label_log_probs_ignore_padding(model, temperature):
    made = rows(5, 40, 12)
    batch = tensors(pad_rows(made, PAD))
    values = label_log_probs(model, batch["ids"], batch["labels"], temperature)
    for i, row in enumerate(made):
        expected = direct_log_probs(model, row, temperature)
        torch.testing.assert_close(values[i, : len(row.ids)], expected, rtol=1e-5, atol=1e-5)
        assert float(values[i, len(row.ids) :].detach().abs().sum()) == 0
    means = mean_log_probs(values, batch["labels"])
    expected = torch.stack([direct_log_probs(model, row).sum() / row.trained_tokens for row in made])
    if temperature == 1.0:
        torch.testing.assert_close(means, expected, rtol=1e-5, atol=1e-5)


def test_the_host_waits_once_for_how_many_labels_there_are(model):
    """Oracle: the operators of a pass, seen at torch's dispatcher; those listed are what a GPU's host waits for."""
    seen = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    batch = tensors(pad_rows(rows(5, 40, 12), PAD))
    with Seen():
        label_log_probs(model, batch["ids"], batch["labels"]).sum().backward()
    waits = ("nonzero", "index.", "index_put", "masked_s", "_local_scalar_dense")
    assert [name for name in seen if name.startswith(waits)] == ["nonzero.default"]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("pass_tokens", [32, 64, 10**6])
def test_sft_loss_and_gradient_are_the_published_reduction_for_any_passes(model, reduction, pass_tokens):
    made = rows(9, 30, 20, 5)
    groups = [made[:2], made[2:]]

    def reduced(group):
        total = -sum(direct_log_probs(model, row).sum() for row in group)
        return total if reduction == "sum" else total / sum(row.trained_tokens for row in group)

    expected = sum(reduced(group) for group in groups) / len(groups)
    expected.backward()
    gradient = model.blocks[0].attention.q.weight.grad.clone()
    model.zero_grad()
    passes = token_batches(made, pad_id=PAD, reduction=reduction, micro_batch=2, pass_tokens=pass_tokens)
    losses = [sft_objective()(model, tensors(batch)) for batch in passes]
    loss = sum(loss for loss, _ in losses) / len(passes)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.blocks[0].attention.q.weight.grad, gradient, rtol=1e-3, atol=1e-5)
    ce = sum(float(metrics["ce"]) for _, metrics in losses) / len(passes)
    tokens = sum(row.trained_tokens for row in made)
    direct = -sum(float(direct_log_probs(model, row).detach().sum()) for row in made) / tokens
    assert ce == pytest.approx(direct, rel=1e-5)


def test_dpo_at_the_reference_is_log_two():
    values = torch.randn(7)
    other = torch.randn(7)
    loss = dpo_loss(values, other, values, other, beta=5.0)
    torch.testing.assert_close(loss, torch.full((7,), math.log(2)))


def test_dpo_known_value():
    """Margin 0.2, β 5: −log σ(1) = log(1 + e⁻¹)."""
    loss = dpo_loss(torch.tensor([-0.5]), torch.tensor([-0.9]), torch.tensor([-0.6]), torch.tensor([-0.8]), beta=5.0)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-1)), rel=1e-6)


@pytest.mark.parametrize("pass_tokens", [64, 10**6])
def test_dpo_objective_equals_the_formula(model, pass_tokens):
    reference = Transformer(TINY, seed=1)
    pairs = list(zip(rows(9, 30, 20), rows(12, 6, 25), strict=True))

    def mean(of, row):
        return direct_log_probs(of, row).sum() / row.trained_tokens

    with torch.no_grad():
        cached = np.array([[float(mean(reference, c)), float(mean(reference, r))] for c, r in pairs], np.float32)
    margins = torch.stack(
        [mean(model, c) - mean(model, r) - (mean(reference, c) - mean(reference, r)) for c, r in pairs]
    )
    expected = -torch.nn.functional.logsigmoid(5 * margins).mean()
    passes = pair_batches(pairs, pad_id=PAD, pass_tokens=pass_tokens, references=cached)
    results = [dpo_objective(5.0)(model, tensors(batch)) for batch in passes]
    torch.testing.assert_close(sum(loss for loss, _ in results) / len(passes), expected, rtol=1e-4, atol=1e-5)
    accuracy = sum(float(metrics["accuracy"]) for _, metrics in results) / len(passes)
    assert accuracy == pytest.approx(float((margins > 0).float().mean()))


def test_bradley_terry():
    assert float(bradley_terry_loss(torch.tensor([3.0]), torch.tensor([3.0]))) == pytest.approx(math.log(2))
    assert float(bradley_terry_loss(torch.tensor([2.0]), torch.tensor([0.0]))) == pytest.approx(
        math.log1p(math.exp(-2)), rel=1e-6
    )


def test_scores_are_read_at_the_last_real_token(model):
    model.head = nn.Linear(TINY.d_model, 1, bias=False)
    pairs = list(zip(rows(9, 30), rows(12, 6), strict=True))
    batch = tensors(pair_batches(pairs, pad_id=PAD, pass_tokens=10**6)[0])
    scores = score_sequences(model, batch["ids"], batch["lengths"])
    order = [pairs[1][0], pairs[0][0], pairs[1][1], pairs[0][1]]
    direct = [model.head(model.hidden(torch.from_numpy(row.ids)[None]))[0, -1, 0] for row in order]
    torch.testing.assert_close(scores, torch.stack(direct), rtol=1e-5, atol=1e-5)
    loss, metrics = reward_objective()(model, batch)
    expected = bradley_terry_loss(scores[:2], scores[2:]).mean()
    torch.testing.assert_close(loss, expected)
    assert float(metrics["accuracy"]) == pytest.approx(float((scores[:2] > scores[2:]).float().mean()))


def test_clipped_policy_loss_is_pessimistic():
    """RECIPE H.2: max(−A·r, −A·clip(r)). A>0: no gain beyond 1.2; A<0: no gain below 0.8, full loss above."""
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss = clipped_policy_loss(ratio.log(), torch.zeros(4), advantages, 0.2, 0.2)
    torch.testing.assert_close(loss, torch.tensor([-1.2, -0.5, 1.5, 0.8]))


def test_first_grpo_step_has_the_plain_policy_gradient():
    """At ratio 1 the gradient in log π is −A + β·(1 − e^{−d})."""
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    reference = torch.tensor([-1.5, -1.0])
    advantages = torch.tensor([0.7, -0.3])
    loss, kl = grpo_loss(
        log_probs, log_probs.detach(), reference, advantages,
        clip_low=0.2, clip_high=0.2, kl_coefficient=0.1, kl_estimator="k3",
    )  # fmt: skip
    loss.sum().backward()
    d = log_probs.detach() - reference
    torch.testing.assert_close(log_probs.grad, -advantages + 0.1 * (1 - torch.exp(-d)))
    torch.testing.assert_close(kl.detach(), torch.exp(-d) - 1 + d)


def test_importance_weighs_the_policy_loss_and_not_the_kl(model):
    """At ratio 1 the loss of a token is −w·A + β·KL, and its gradient in log π is −w·A + β·(1 − e^{−d})."""
    made, rng = rows(9, 30, 20), np.random.default_rng(5)
    advantages = np.array([1.0, -0.5, 0.75], np.float32)
    logs = [direct_log_probs(model, row) for row in made]
    old = [values.detach().numpy() for values in logs]
    reference = [values + rng.normal(0, 0.3, len(values)).astype(np.float32) for values in old]
    importance = [rng.uniform(0, 2, len(values)).astype(np.float32) for values in old]
    columns = {"old_log_probs": old, "reference_log_probs": reference, "importance": importance}
    passes = token_batches(
        made, pad_id=PAD, reduction="mean", micro_batch=len(made), pass_tokens=64, per_row={"advantages": advantages},
        per_token=dict(columns),
    )  # fmt: skip
    objective = grpo_objective(clip_low=0.2, clip_high=0.2, kl_coefficient=0.1, kl_estimator="k3", temperature=1.0)
    loss = torch.stack([objective(model, tensors(batch))[0] for batch in passes]).mean()
    loss.backward()
    gradient = model.head.weight.grad.clone()
    model.head.weight.grad = None
    total, surrogate = 0.0, torch.zeros(())
    for row, logp, ref, weight, advantage in zip(made, logs, reference, importance, advantages.tolist(), strict=True):
        trained = torch.from_numpy(row.labels != IGNORE)
        d = (logp.detach() - torch.from_numpy(ref))[trained]
        weighted = -torch.from_numpy(weight)[trained] * advantage
        total += float((weighted + 0.1 * (torch.exp(-d) - 1 + d)).sum())
        surrogate = surrogate + ((weighted + 0.1 * (1 - torch.exp(-d))) * logp[trained]).sum()
    count = sum(row.trained_tokens for row in made)
    assert float(loss.detach()) == pytest.approx(total / count, rel=1e-4)
    (surrogate / count).backward()
    torch.testing.assert_close(gradient, model.head.weight.grad, rtol=1e-3, atol=1e-5)


def test_value_loss_clips_around_old_values():
    loss = clipped_value_loss(torch.tensor([1.0, 0.1]), torch.zeros(2), torch.tensor([2.0, 0.0]), 0.2)
    torch.testing.assert_close(loss, torch.tensor([0.5 * 1.8**2, 0.5 * 0.1**2]))


def test_grpo_objective_is_a_token_mean_over_the_mini_batch(model):
    made = rows(9, 30, 20)
    advantages = np.array([1.0, -0.5, 0.75], np.float32)
    logs = [direct_log_probs(model, row).detach().numpy() for row in made]
    passes = token_batches(
        made, pad_id=PAD, reduction="mean", micro_batch=len(made), pass_tokens=64,
        per_row={"advantages": advantages},
        per_token={"old_log_probs": logs, "reference_log_probs": logs},
    )  # fmt: skip
    objective = grpo_objective(clip_low=0.2, clip_high=0.2, kl_coefficient=0.1, kl_estimator="k3", temperature=1.0)
    results = [objective(model, tensors(batch)) for batch in passes]
    counts = np.array([row.trained_tokens for row in made])
    expected = -float((advantages * counts).sum() / counts.sum())
    assert float(sum(loss for loss, _ in results)) / len(passes) == pytest.approx(expected, rel=1e-4)
    assert sum(float(m["ratio"]) for _, m in results) / len(passes) == pytest.approx(1.0, rel=1e-5)
    assert sum(float(m["kl"]) for _, m in results) == pytest.approx(0.0, abs=1e-6)
