"""Decodes with a KV cache: the arithmetic of `model/network/transformer.py`, arranged for one new token per row and step.

A CPU's step is compiled where it can be (`model/decoding/compiled_step.py`); elsewhere it is PyTorch's operations over weights
that were laid out once (`model/decoding/prepared_weights.py`).

Build a decoder per generation and drop it after; it costs about as much as one copy of the weights. Whether it follows later
changes of the model is not defined. Active rows are the first ones (`move` keeps them so).
"""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from model.decoding.compiled_step import LONGEST_PROMPT, CompiledStep, suits
from model.decoding.kv_cache import StepCache, free_bytes, make_cache, rows_that_fit
from model.decoding.prepared_weights import Holding, Prepared, decoding_type
from model.kernels.library import kernels_for
from model.network.transformer import Transformer


class Decoder:
    """A model's weights for decoding and a cache of at most `rows` rows of `length` tokens: of so many as fit into the
    device's memory. Where weights are sharded, all workers have to build theirs together.
    """

    def __init__(self, model: Transformer, rows: int, length: int, holding: Holding = nullcontext) -> None:
        self.config, self.device = model.config, model.device
        dtype = decoding_type(model)
        # Weights are packed from fp32, or from what they are multiplied in.
        known = suits(self.config) and model.head.weight.dtype in (torch.float32, dtype)
        kernels = kernels_for(dtype, self.device) if known else None
        self.prepared = Prepared(model, rows, length, holding, kernels=kernels)
        self.rows = rows_that_fit(self.config, rows, length, dtype, free_bytes(self.device))
        self.cache: CompiledStep | StepCache
        if kernels is not None:
            self.cache = CompiledStep(kernels, self.prepared, self.rows, length)
        else:
            self.cache = make_cache(self.config, self.rows, length, dtype, self.device)

    def prefill(self, first_row: int, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompts vocab"]:
        """Prefill: put prompts into rows `first_row`, `first_row + 1`, ...; return the logits after each prompt's last
        token.

        Prompts are padded on the right to the longest, so causality keeps padding from reaching real tokens. What padding
        leaves in the cache lies beyond the row's position until real tokens overwrite it.
        """
        longest = max(map(len, prompts))
        if isinstance(self.cache, CompiledStep) and longest <= LONGEST_PROMPT:
            return self.cache.prefill(first_row, prompts)
        padded = np.zeros((len(prompts), longest), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = prompt
        ids = torch.from_numpy(padded).to(self.device)
        grouped = self.config.n_heads != self.config.n_kv_heads

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # The last blocks got tokens as one flat list; attention wants [prompts, longest, heads, head_dim].
            q, k, v = (t.unflatten(0, ids.shape) for t in (q, k, v))
            self.cache.put(layer, first_row, k, v)
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            # scale=1.0: the queries come scaled already.
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=grouped)
            return mixed.transpose(1, 2).flatten(2).flatten(0, 1)

        # Flat index of each prompt's last real token; only these go through the head.
        last = torch.tensor([row * longest + len(prompt) - 1 for row, prompt in enumerate(prompts)])
        turns = self.prepared.turns[:longest].repeat(len(prompts), 1)
        return self.prepared.logits(self.prepared.blocks(ids.view(-1), turns, attend, last.to(self.device)))

    def step(self, ids: Sequence[int], positions: Sequence[int]) -> Float[Tensor, "rows vocab"]:
        """Feed one token into each of the first rows, at the given 0-based positions; return the logits that
        follow.
        """
        if isinstance(self.cache, CompiledStep):
            return self.cache.step(ids, positions)
        # One copy to the device for both lists.
        token, position = torch.tensor([ids, positions]).to(self.device, non_blocking=True)
        self.cache.begin(positions)
        return self.prepared.logits(self.prepared.blocks(token, self.prepared.turns[position], self.cache.attend))

    def clear(self, row: int) -> None:
        """Forget what a row holds. Weights of 0 hide what lies beyond a row's position, but 0 times NaN is NaN."""
        if isinstance(self.cache, CompiledStep):
            self.cache.clear(row)

    def move(self, source: int, target: int, used: int) -> None:
        """Copy the first `used` tokens of one row's cache to another row."""
        self.cache.move(source, target, used)
