"""Draws the initial weights of a model, for any rows of any matrix without drawing the others.

Source: RECIPE A.4 (N(0, 0.02) truncated at three standard deviations; OLMo-0424's scaled variant); paper section 3.2.
Random numbers come from a counter-based generator (Philox 4x64, Salmon et al. 2011). Element i of a matrix takes the i-th
number of that matrix, whoever asks for it. A worker of a sharded training so draws its own rows only, in memory of their size.
The inverse of the normal distribution is taken in fp64, so that processors with other vector instructions agree in fp32.

Example: `initial_rows(config, 0, "head.weight", (512, 64), 128, 256)` gives rows 128 to 255 of the head.
"""

import hashlib
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.config import ModelConfig

TRUNCATION = 3.0
"""Standard deviations at which the normal distribution is cut off."""
CHUNK = 1 << 18
"""Numbers drawn at a time: 2 MiB of fp64, which the allocator reuses instead of leaving holes between larger tensors."""
PER_COUNT = 4
"""Numbers that Philox 4x64 makes from one value of its counter."""


def initial_std(config: ModelConfig, name: str) -> float:
    """Standard deviation of a matrix before truncation (RECIPE A.4); layers count from 1 in the scaled variant.

    The scaled variant follows OLMo's `mitchell` as run: an output projection scales with the width that it sums over. For
    the MLP that is its hidden width; the paper writes d_model for both.
    """
    if config.init == "normal":
        return config.init_std
    summed = {"attention.out.weight": config.n_heads * config.head_dim, "feed_forward.down.weight": config.mlp_hidden}
    for suffix, width in summed.items():
        if name.endswith(suffix):
            layer = int(name.split(".")[1]) + 1
            # The 2 stands for the two sub-layers of a layer, which both add to the residual stream.
            return (2 * width * layer) ** -0.5
    return config.d_model**-0.5


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Give every parameter the weights of a seeded initialisation."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_rows(config, seed, name, parameter.shape, 0, len(parameter)))


def initial_rows(
    config: ModelConfig, seed: int, name: str, shape: Sequence[int], start: int, stop: int
) -> Float[Tensor, "rows ..."]:
    """Rows [start, stop) of a parameter of this whole `shape`: a matrix from a truncated normal, a norm's weights 1.

    Each matrix has its own stream of random numbers, keyed by seed and name and drawn on the CPU. Weights therefore depend
    neither on the device, nor on the number or order of layers, nor on who holds which rows.
    """
    rows = torch.ones(stop - start, *shape[1:])
    if len(shape) == 1:
        # A norm starts as the identity.
        return rows
    width = math.prod(shape[1:])
    flat, first = rows.view(-1), start * width
    std = initial_std(config, name)
    for place in range(0, len(flat), CHUNK):
        part = flat[place : place + CHUNK]
        # With numpy, one thread scales; only the costly function below is worth waiting for others.
        drawn = truncated_normal(uniform(f"{seed}:{name}", first + place, len(part)))
        part.numpy()[:] = drawn.numpy() * std
    return rows


def uniform(key: str, first: int, count: int) -> Float[np.ndarray, " count"]:
    """Numbers first ... first + count - 1 of a stream of fp64 numbers in [0, 1) that is named by `key`."""
    # A hash of seed and name is the key, so that two matrices never share a stream.
    digest = hashlib.sha256(key.encode()).digest()
    stream = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"))
    # A counter can be set to any place, so a shard draws its rows without those before it.
    stream.advance(first // PER_COUNT)
    skipped = first % PER_COUNT
    return np.random.Generator(stream).random(skipped + count)[skipped:]


def truncated_normal(drawn: Float[np.ndarray, " count"]) -> Float[Tensor, " count"]:
    """Uniform numbers in [0, 1) as those of a normal distribution that is cut off at three standard deviations, fp64.

    The input is overwritten.
    """
    lowest = NormalDist().cdf(-TRUNCATION)
    # Uniform on [cdf(-3), cdf(3)): the inverse function then never leaves three standard deviations.
    drawn *= 1 - 2 * lowest
    drawn += lowest
    return torch.special.ndtri(torch.from_numpy(drawn))
