"""Chooses the next token: greedy, temperature, top-p, with noise that depends on nothing but seed, prompt and position.

One uniform number per generated token, from a counter-based hash, is turned into a token through the cumulative
distribution. So a prompt's samples are the same in any batch, order and process; only rounding in the logits can move them.
Log-probabilities are those of softmax(logits / temperature), as a training computes them. They come before top-p leaves any
token out, and count all rows of the head, padding rows without a token too. Those are never chosen. At temperature 0 they
are of softmax(logits).
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.data.splitmix import GOLDEN, splitmix64
from model.kernels.library import kernels_for

_BLOCK = 128  # the vocabulary is padded to a multiple of it
_MASK = (1 << 64) - 1
_PIECE = 8_192  # columns that are normalised at once


def uniform_noise(seed: int, prompts: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Float64 numbers in (0, 1), one for each (prompt index, position of the new token); a pure function of
    its arguments.
    """
    # Masked to 64 bits: seeds may be larger or negative, and NumPy refuses those.
    key = _mix(np.array([seed & _MASK], dtype=np.uint64))
    key = _mix(key + _mix(prompts.astype(np.uint64) + np.uint64(1)))
    bits = _mix(key + positions.astype(np.uint64) * GOLDEN)
    # 53 bits fill a float64's mantissa; the half keeps the number off 0 and 1.
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mix(value: np.ndarray) -> np.ndarray:
    """What splitmix64 gives after the state `value`."""
    with np.errstate(over="ignore"):
        return splitmix64(value + GOLDEN)


def choose(
    logits: Float[Tensor, "rows vocab"], temperature: float, top_p: float, noise: np.ndarray | None, ids: int
) -> tuple[Int[Tensor, "rows"], Float[Tensor, "rows"]]:
    """Next token of each row, below `ids`, and its log-probability, NaN where logits are not numbers. `noise`, shape
    `[rows]`, is needed unless temperature is 0.
    """
    compiled = logits.dtype == torch.float32 and (top_p == 1 or temperature == 0)
    kernels = kernels_for(logits.dtype, logits.device) if compiled else None
    if kernels is not None:
        return kernels.choose(logits.contiguous(), temperature, noise if temperature > 0 else None, ids)
    if temperature == 0:
        return _choose_largest(logits, ids)
    assert noise is not None
    # Divided before the softmax: a training at this temperature computes the same numbers.
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    uniforms = torch.from_numpy(noise).to(logits.device)[:, None]
    probabilities = _below(ids, logprobs.exp(), 0.0)
    tokens = _draw_nucleus(probabilities, top_p, uniforms) if top_p < 1 else _draw(probabilities, uniforms)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def _choose_largest(logits: Float[Tensor, "rows vocab"], ids: int) -> tuple[Int[Tensor, "rows"], Float[Tensor, "rows"]]:
    """The first of the largest logits below `ids`, and its log-probability. Only one number of each row is normalised, and
    the logits are read in pieces that stay in a CPU's caches. Whole rows of log-probabilities would take a third of the time
    of the head's matmul.
    """
    inner = math.gcd(logits.shape[-1], _BLOCK)
    whole = ids // inner * inner
    tokens, largest = _largest(logits[:, :whole], inner)
    # Columns beyond whole blocks; with real vocabularies there are at most 127.
    if whole < ids:
        found, place = logits[:, whole:ids].max(-1)
        # `not <=` and not `>`: a NaN must win, so that it is noticed.
        later = ~(found <= largest)
        tokens, largest = torch.where(later, whole + place, tokens), torch.where(later, found, largest)
    # Rows that pad the head are not chosen, but they count, and may hold the largest logit of all.
    highest = torch.maximum(largest, logits[:, ids:].amax(-1)) if ids < logits.shape[-1] else largest
    sums = torch.zeros_like(highest)
    for part in logits.split(_PIECE, dim=-1):
        sums += (part - highest[:, None]).exp_().sum(-1)
    return tokens, largest - highest - sums.log()


def _below(ids: int, values: Float[Tensor, "rows vocab"], nothing: float) -> Float[Tensor, "rows vocab"]:
    """The values, with `nothing` from column `ids` on."""
    width = values.shape[-1]
    return values if ids >= width else values.masked_fill(torch.arange(width, device=values.device) >= ids, nothing)


def _blocks(values: Float[Tensor, "rows width"]) -> Float[Tensor, "rows blocks inner"]:
    """Rows cut into blocks, so that a search walks through block totals and then through one block only."""
    return values.unflatten(-1, (-1, math.gcd(values.shape[-1], _BLOCK)))


def _pick(blocks: Float[Tensor, "rows blocks inner"], block: Int[Tensor, "rows 1"]) -> Float[Tensor, "rows inner"]:
    return blocks.gather(1, block[..., None].expand(-1, -1, blocks.shape[-1]))[:, 0]


def _largest(logits: Float[Tensor, "rows width"], inner: int) -> tuple[Int[Tensor, "rows"], Float[Tensor, "rows"]]:
    """The first index of the largest logit, and it. A maximum is several times as fast as its index."""
    if not logits.shape[-1]:
        return torch.zeros(len(logits), dtype=torch.long, device=logits.device), logits.new_full(
            (len(logits),), -math.inf
        )
    blocks = logits.unflatten(-1, (-1, inner))
    block = blocks.amax(-1).argmax(-1, keepdim=True)
    largest, place = _pick(blocks, block).max(-1)
    return block[:, 0] * inner + place, largest


def _draw(weights: Float[Tensor, "rows vocab"], uniforms: Float[Tensor, "rows 1"]) -> Int[Tensor, "rows"]:
    """The first index at which the cumulative weight exceeds the uniform share of the total."""
    blocks = _blocks(weights)
    # fp64 sums: in fp32, a vocabulary's cumulative sum would round small probabilities away.
    totals = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    share = uniforms * totals[:, -1:]
    block = torch.searchsorted(totals, share, right=True).clamp(max=totals.shape[-1] - 1)
    cumulative = _pick(blocks, block).cumsum(-1, dtype=torch.float64)
    rest = share - torch.where(block > 0, totals.gather(-1, (block - 1).clamp(min=0)), 0.0)
    # Below the block's total even where the two sums round apart: a token without weight is never drawn.
    rest = torch.minimum(rest, cumulative[:, -1:] * (1 - 2.0**-52))
    # The end is found for weights that are not numbers only.
    found = torch.searchsorted(cumulative, rest, right=True).clamp(max=blocks.shape[-1] - 1)
    return (block * blocks.shape[-1] + found)[:, 0]


def _draw_nucleus(
    probabilities: Float[Tensor, "rows vocab"], top_p: float, uniforms: Float[Tensor, "rows 1"]
) -> Int[Tensor, "rows"]:
    """A draw from the smallest set of most likely tokens whose probability reaches `top_p`."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    # The probability before each token: the one that crosses `top_p` is still kept.
    before = ordered.cumsum(dim=-1) - ordered
    kept = ordered.masked_fill(before >= top_p, 0.0)
    # The likeliest token is always kept, even where it alone exceeds `top_p`.
    kept[:, 0] = ordered[:, 0]
    return order.gather(-1, _draw(kept, uniforms)[:, None])[:, 0]
