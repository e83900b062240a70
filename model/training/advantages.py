"""Computes what reinforcement learning makes of rewards: scores, advantages, KL estimators, GAE, whitening.

Source: RECIPE H.2 (PPO) and H.3 (GRPO), oracle `tests/golden/rl_arithmetic.json`. Pure functions of tensors,
nothing is sampled here. Axis names: `prompts samples` for groups of answers, `batch time` for response
tokens, where index 0 is the first response token and padding is at the right.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.training.configs import KLEstimator, Normalization

ADVANTAGE_EPSILON = 1e-8
"""Added to a group's std (H.3)."""
WHITEN_EPSILON = 1e-8
"""Added to the variance inside the reciprocal root (H.2 step 5)."""


def stop_penalty(
    scores: Float[Tensor, "*shape"], finished: Bool[Tensor, "*shape"], penalty: float | None
) -> Float[Tensor, "*shape"]:
    """Scores with `penalty` for every answer that did not end by itself, even a correct one (H.2 step 2).

    `penalty=None` leaves the scores as they are.
    """
    return scores if penalty is None else torch.where(finished, scores, torch.full_like(scores, penalty))


def group_advantages(
    scores: Float[Tensor, "prompts samples"], normalization: Normalization
) -> Float[Tensor, "prompts samples"]:
    """Advantage of each answer over the others to its prompt: (score − mean) / (std + 1e-8), per group.

    A group whose answers all scored the same has advantage exactly 0 everywhere, whatever the score. Raises
    ValueError for fewer than two samples, where nothing can be compared.
    """
    samples = scores.shape[1]
    if samples < 2:
        raise ValueError(f"samples={samples} per prompt: group advantages compare at least 2; sample more answers")
    # Eight times 0.1 has a mean that is not quite 0.1, and the rounding of that over the rounding of the std is of order 1.
    flat = zero_std_groups(scores)[:, None]
    centred = torch.where(flat, torch.zeros_like(scores), scores - scores.mean(dim=1, keepdim=True))
    if normalization == "centered":
        return centred
    correction = 1 if normalization == "sample_std" else 0
    return centred / (scores.std(dim=1, keepdim=True, correction=correction) + ADVANTAGE_EPSILON)


def zero_std_groups(scores: Float[Tensor, "prompts samples"]) -> Bool[Tensor, " prompts"]:
    """Which prompts got the same score for every answer, hence teach nothing."""
    return scores.amax(dim=1) == scores.amin(dim=1)


def kl_estimate(log_ratio: Float[Tensor, "*shape"], estimator: KLEstimator) -> Float[Tensor, "*shape"]:
    """Estimate per sampled token, in nats, of KL(policy ‖ reference) from `log_ratio` = log π − log π_ref."""
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    # expm1 keeps the digits of exp(-d) - 1 where d is small, as it is for nearly every token.
    return torch.expm1(-log_ratio) + log_ratio


def token_rewards(
    log_ratio: Float[Tensor, "batch time"],
    scores: Float[Tensor, " batch"],
    lengths: Int[Tensor, " batch"],
    kl_coefficient: float,
) -> Float[Tensor, "batch time"]:
    """PPO's reward per response token: −β·(log π − log π_ref) on real tokens, the score once (H.2 steps 3 and
    4). `lengths` counts real tokens, EOS included. The score is added at the first padding slot, index
    `lengths`, or on the last token where the row has no padding.
    """
    time = log_ratio.shape[1]
    positions = torch.arange(time, device=log_ratio.device)
    rewards = torch.where(positions < lengths[:, None], -kl_coefficient * log_ratio, torch.zeros_like(log_ratio))
    # An answer that fills the row has no padding slot, so its score joins the last token's reward.
    slot = lengths.clamp(max=time - 1)
    return rewards.scatter_add(1, slot[:, None], scores[:, None].to(rewards.dtype))


def keep_values(values: Float[Tensor, "batch time"], lengths: Int[Tensor, " batch"]) -> Float[Tensor, "batch time"]:
    """Values through the first padding slot (index `lengths`, where the score sits), then zero (H.2 step 4)."""
    positions = torch.arange(values.shape[1], device=values.device)
    return torch.where(positions <= lengths[:, None], values, torch.zeros_like(values))


def generalized_advantages(
    rewards: Float[Tensor, "batch time"], values: Float[Tensor, "batch time"], gamma: float, lam: float
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """GAE over the whole padded length: δ_t = r_t + γ·V_{t+1} − V_t, A_t = δ_t + γλ·A_{t+1} (H.2 step 5).

    Returns advantages and returns (advantages + values); the value after the last slot is 0.
    """
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    # Backwards, since each advantage is built on the one after it; a loop over time, [batch] values at once.
    for t in range(rewards.shape[1] - 1, -1, -1):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(running)
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = delta + gamma * lam * running
        advantages[:, t] = running
    return advantages, advantages + values


def whiten(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Mean 0 and variance 1 (unbiased, ε inside the root) over the masked-in entries; 0 elsewhere."""
    count = int(mask.sum())
    if count < 2:
        raise ValueError(f"{count} unmasked values: whitening needs at least 2")
    chosen = values[mask]
    scaled = (values - chosen.mean()) * torch.rsqrt(chosen.var(correction=1) + WHITEN_EPSILON)
    return torch.where(mask, scaled, torch.zeros_like(values))
