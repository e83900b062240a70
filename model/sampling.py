"""Choosing the next token: greedy, temperature, top-p, with noise that depends on nothing but seed, prompt
and position.

One uniform number per generated token, from a counter-based hash, is turned into a token through the
cumulative distribution. So a prompt's samples are the same in any batch, order and process; only rounding in
the logits can move them. Log-probabilities are those of softmax(logits / temperature), before top-p leaves
any token out; at temperature 0, of softmax(logits).
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: the step of the splitmix64 sequence


def uniform(seed: int, prompts: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Float64 numbers in (0, 1), one for each (prompt index, position of the new token); a pure function of
    its arguments.
    """
    key = _mix(np.array([seed & _MASK], dtype=np.uint64))
    key = _mix(key + _mix(prompts.astype(np.uint64) + np.uint64(1)))
    bits = _mix(key + positions.astype(np.uint64) * np.uint64(_GOLDEN))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mix(value: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(_GOLDEN)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def choose(
    logits: Float[Tensor, "rows vocab"], temperature: float, top_p: float, noise: np.ndarray | None
) -> tuple[Int[Tensor, "rows"], Float[Tensor, "rows"]]:
    """Next token of each row and its log-probability. `noise`, shape `[rows]`, is needed unless temperature
    is 0.
    """
    if temperature == 0:
        best, tokens = logits.max(dim=-1)
        return tokens, -(logits - best[:, None]).exp_().sum(dim=-1).log()
    assert noise is not None
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    uniforms = torch.from_numpy(noise).to(logits.device)[:, None]
    probabilities = logprobs.exp()
    nucleus = top_p < 1
    tokens = _draw_nucleus(probabilities, top_p, uniforms) if nucleus else _draw(probabilities, uniforms)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def _draw(weights: Float[Tensor, "rows vocab"], uniforms: Float[Tensor, "rows 1"]) -> Int[Tensor, "rows"]:
    """The first index at which the cumulative weight exceeds the uniform share of the total."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    found = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    return found[:, 0].clamp(max=weights.shape[-1] - 1)


def _draw_nucleus(
    probabilities: Float[Tensor, "rows vocab"], top_p: float, uniforms: Float[Tensor, "rows 1"]
) -> Int[Tensor, "rows"]:
    """A draw from the smallest set of most likely tokens whose probability reaches `top_p`."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = ordered.masked_fill(before >= top_p, 0.0)
    kept[:, 0] = ordered[:, 0]
    return order.gather(-1, _draw(kept, uniforms)[:, None])[:, 0]
