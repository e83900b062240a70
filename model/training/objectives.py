"""Objectives of post-training: SFT cross-entropy, length-normalised DPO, Bradley–Terry, GRPO and PPO losses.

Source: RECIPE F, G and H. Each loss is a pure function of log-probabilities or scores. The `*_objective` builders wrap one
for `model.training.loop.train`, which averages loss and metrics over the micro-batches ("passes") of a step.

How a step splits into passes is a matter of memory, so it must not change the objective. The batch therefore carries
`weights`, which `model.data.chat_batches` computes on the host. They already hold the published reduction: sum or mean per
micro-batch of so many sequences, then the average. The step's loss is Σ weights · term over its passes.

Labels are aligned with what predicts them, as in `model.training.losses`. Padding is at the right, so causal attention
needs no mask.
"""

from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.data.labels import IGNORE
from model.network.transformer import Transformer
from model.training.advantages import kl_estimate
from model.training.configs import KLEstimator
from model.training.loop import Objective
from model.training.losses import token_log_probs

ObjectiveMetrics = dict[str, Tensor]

# --- batches ------------------------------------------------------------------------------------------


class TokenBatch(TypedDict):
    """A micro-batch of rows with a weight per token."""

    ids: Int[Tensor, "batch seq"]
    labels: Int[Tensor, "batch seq"]
    """What each position predicts; −100 where nothing is learned."""
    weights: Float[Tensor, "batch seq"]
    """A token's weight in the loss of the whole step."""
    token_share: Float[Tensor, "batch seq"]
    """A token's weight in means over the step's trained tokens."""


class PairBatch(TypedDict):
    """A micro-batch of pairs: all chosen rows, then all rejected ones."""

    ids: Int[Tensor, "2*pairs seq"]
    weights: Float[Tensor, " pairs"]
    """A pair's weight in the loss of the whole step."""


class PreferenceBatch(PairBatch):
    """What DPO learns from."""

    labels: Int[Tensor, "2*pairs seq"]
    reference: Float[Tensor, " 2*pairs"]
    """Mean log-probabilities under the reference, nats per token."""


class ScoredPairBatch(PairBatch):
    """What a reward model learns from."""

    lengths: Int[Tensor, " 2*pairs"]
    """Tokens of each row, padding left out."""


class SampledBatch(TokenBatch):
    """Sampled answers."""

    old_log_probs: Float[Tensor, "batch seq"]
    """Of the policy as it begins to learn from them."""
    importance: NotRequired[Float[Tensor, "batch seq"]]
    """Weight of each token's policy loss, where another policy than that of `old_log_probs` sampled."""


class RolloutBatch(SampledBatch):
    """Sampled answers, for GRPO."""

    reference_log_probs: Float[Tensor, "batch seq"]
    advantages: Float[Tensor, " batch"]
    kl_coefficient: NotRequired[Float[Tensor, ""]]
    """Where β changes from step to step."""


# --- log-probabilities --------------------------------------------------------------------------------


def label_log_probs(
    model: Transformer,
    ids: Int[Tensor, "batch seq"],
    labels: Int[Tensor, "batch seq"],
    temperature: float = 1.0,
) -> Float[Tensor, "batch seq"]:
    """log p(labels[b, t] | ids[b, :t+1]) in nats; 0 where the label is −100.

    Computed in fp32 of logits divided by `temperature`. Only labelled positions go through the head.
    """
    # How many they are decides shapes, so the host waits for the device here, once and with nothing queued behind; a mask as
    # an index would make it wait at every use, forward and backward.
    places = (labels.flatten() != IGNORE).nonzero().squeeze(-1)
    rows = model.hidden(ids).flatten(0, 1).index_select(0, places)
    targets = labels.flatten().index_select(0, places)
    values = token_log_probs(rows.unsqueeze(0), model.head.weight, targets.unsqueeze(0), temperature)
    # [positions with a label] -> [batch, seq], zeros elsewhere, so that losses can be weighted as a matrix.
    return torch.zeros(labels.numel(), device=values.device).index_copy(0, places, values[0]).view(labels.shape)


def mean_log_probs(log_probs: Float[Tensor, "batch seq"], labels: Int[Tensor, "batch seq"]) -> Float[Tensor, " batch"]:
    """Average log-probability over each row's trained tokens, which makes DPO "dpo_norm" (RECIPE G)."""
    return log_probs.sum(dim=1) / (labels != IGNORE).sum(dim=1)


# --- losses -------------------------------------------------------------------------------------------


def dpo_loss(
    policy_chosen: Float[Tensor, " pairs"],
    policy_rejected: Float[Tensor, " pairs"],
    reference_chosen: Float[Tensor, " pairs"],
    reference_rejected: Float[Tensor, " pairs"],
    beta: float,
) -> Float[Tensor, " pairs"]:
    """−log σ(β[(π_c − π_r) − (ref_c − ref_r)]) per pair; log 2 where policy and reference agree (RECIPE G)."""
    # The reference's margin is a constant of the batch: it comes from a pass without gradients.
    margin = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    return -F.logsigmoid(beta * margin)


def bradley_terry_loss(chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """−log σ(r_chosen − r_rejected) per pair (RECIPE G, reward model)."""
    return -F.logsigmoid(chosen - rejected)


def clipped_policy_loss(
    log_probs: Float[Tensor, "*shape"],
    old_log_probs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, "*shape"]:
    """max(−A·ρ, −A·clip(ρ, 1 − clip_low, 1 + clip_high)) per token, ρ = exp(log π − log π_old) (H.2, H.3)."""
    ratio = torch.exp(log_probs - old_log_probs)
    # The larger of two losses is the pessimistic one: clipping may only take gain away (PPO).
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))


def weighted_advantages(advantages: Float[Tensor, "batch seq"], batch: SampledBatch) -> Float[Tensor, "batch seq"]:
    """Advantages times the batch's `importance`, min(π_old / μ, cap), where a policy μ that is not π_old sampled (Espeholt et al.
    2018). Weights are not negative, so the clipped policy loss is multiplied by them too.
    """
    return advantages * batch["importance"] if "importance" in batch else advantages


def grpo_loss(
    log_probs: Float[Tensor, "*shape"],
    old_log_probs: Float[Tensor, "*shape"],
    reference_log_probs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    *,
    clip_low: float,
    clip_high: float,
    kl_coefficient: float | Tensor,
    kl_estimator: KLEstimator,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Clipped policy loss + β·KL per token, and that KL, which is of the current policy (RECIPE H.3)."""
    kl = kl_estimate(log_probs - reference_log_probs, kl_estimator)
    policy = clipped_policy_loss(log_probs, old_log_probs, advantages, clip_low, clip_high)
    return policy + kl_coefficient * kl, kl


def clipped_value_loss(
    values: Float[Tensor, "*shape"],
    old_values: Float[Tensor, "*shape"],
    returns: Float[Tensor, "*shape"],
    clip: float,
) -> Float[Tensor, "*shape"]:
    """0.5·max((v − R)², (clip(v, v_old ± clip) − R)²) per token (RECIPE H.2 step 6)."""
    clipped = torch.minimum(torch.maximum(values, old_values - clip), old_values + clip)
    # As for the policy: the larger error, so that clipping never rewards a jump of the value model.
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


# --- scores -------------------------------------------------------------------------------------------


def score_sequences(
    model: Transformer, ids: Int[Tensor, "batch seq"], lengths: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Value of the one-output head `model.head` at each row's last real token, fp32 (RECIPE G)."""
    rows = torch.arange(ids.shape[0], device=ids.device)
    # [batch, seq, d_model] -> [batch, d_model]: the last real token has seen the whole row.
    last = model.hidden(ids)[rows, lengths - 1]
    return model.outputs(last).float().squeeze(-1)


def token_values(model: Transformer, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
    """Value of the one-output head `model.head` at every position, fp32 (RECIPE H.2): of the tokens up to it."""
    return model.outputs(model.hidden(ids)).float().squeeze(-1)


# --- objectives for the training loop -----------------------------------------------------------------


def sft_objective() -> Objective:
    """Weighted token cross-entropy. Metrics: `ce`, nats per trained token."""

    def objective(model: Transformer, batch: TokenBatch) -> tuple[Tensor, ObjectiveMetrics]:
        log_probs = label_log_probs(model, batch["ids"], batch["labels"])
        loss = -(batch["weights"] * log_probs).sum()
        return loss, {"ce": -(batch["token_share"] * log_probs.detach()).sum()}

    return objective


def dpo_objective(beta: float) -> Objective:
    """Length-normalised DPO, mean over the step's pairs.

    Metrics, as means over pairs: `margin` (times β), `accuracy`, `chosen_log_prob` and `rejected_log_prob` (nats per token).
    """

    def objective(model: Transformer, batch: PreferenceBatch) -> tuple[Tensor, ObjectiveMetrics]:
        labels, weights = batch["labels"], batch["weights"]
        policy = mean_log_probs(label_log_probs(model, batch["ids"], labels), labels)
        chosen, rejected = policy.chunk(2)
        reference_chosen, reference_rejected = batch["reference"].chunk(2)
        loss = (weights * dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta)).sum()
        margin = ((chosen - rejected) - (reference_chosen - reference_rejected)).detach()
        return loss, {
            "margin": (weights * beta * margin).sum(),
            "accuracy": (weights * (margin > 0)).sum(),
            "chosen_log_prob": (weights * chosen.detach()).sum(),
            "rejected_log_prob": (weights * rejected.detach()).sum(),
        }

    return objective


def reward_objective() -> Objective:
    """Bradley–Terry on sequence scores, mean over the step's pairs. Metrics, as means over pairs: `margin`, `accuracy`."""

    def objective(model: Transformer, batch: ScoredPairBatch) -> tuple[Tensor, ObjectiveMetrics]:
        weights = batch["weights"]
        chosen, rejected = score_sequences(model, batch["ids"], batch["lengths"]).chunk(2)
        loss = (weights * bradley_terry_loss(chosen, rejected)).sum()
        margin = (chosen - rejected).detach()
        return loss, {"margin": (weights * margin).sum(), "accuracy": (weights * (margin > 0)).sum()}

    return objective


def grpo_objective(
    *, clip_low: float, clip_high: float, kl_coefficient: float, kl_estimator: KLEstimator, temperature: float
) -> Objective:
    """GRPO's loss, weighted per token. Metrics are token means: `kl`, `ratio`, `clip_share`."""

    def objective(model: Transformer, batch: RolloutBatch) -> tuple[Tensor, ObjectiveMetrics]:
        labels, share = batch["labels"], batch["token_share"]
        log_probs = label_log_probs(model, batch["ids"], labels, temperature)
        advantages = weighted_advantages(batch["advantages"][:, None].expand_as(log_probs), batch)
        per_token, kl = grpo_loss(
            log_probs,
            batch["old_log_probs"],
            batch["reference_log_probs"],
            advantages,
            clip_low=clip_low,
            clip_high=clip_high,
            kl_coefficient=batch.get("kl_coefficient", kl_coefficient),
            kl_estimator=kl_estimator,
        )
        ratio = torch.exp(log_probs.detach() - batch["old_log_probs"])
        outside: Bool[Tensor, "batch seq"] = (ratio < 1 - clip_low) | (ratio > 1 + clip_high)
        return (batch["weights"] * per_token).sum(), {
            "kl": (share * kl.detach()).sum(),
            "ratio": (share * ratio).sum(),
            "clip_share": (share * outside).sum(),
        }

    return objective
