"""The KV cache holds keys and values of the rows that decode, and computes attention of one new token per row over them.

Two layouts for two kinds of device, equal up to rounding. `DenseCache` is the plain one: batched matmuls. `BagCache` is for
CPUs, where a matmul with a single query is limited by memory, and the libraries' small matmuls reach a third of memory's
speed. It writes both sums of attention as embedding bags (weighted sums of a table's rows), whose kernel reads the cache
once, in order.

Row r's tokens sit at positions 0, 1, ... of row r; a step touches only the first rows and only positions in
use. What lies beyond a row's own position is masked, and finite, since both caches begin as zeros.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.config import ModelConfig
from model.decoding.lazy_memory import lazy_zeros
from model.decoding.linear_kernels import weighted_sums

CACHE_CHUNK = 64
"""Positions whose keys lie together in a `BagCache`: whole cache lines, and rows long enough for the kernel."""
CACHE_SHARE = 0.8
"""Of an accelerator's free memory, what a cache may take; activations and logits need the rest."""


class Cache(Protocol):
    """Keys and values of `rows` rows of `length` tokens. Queries come scaled, queries and keys rotated."""

    def put(
        self,
        layer: int,
        first_row: int,
        k: Float[Tensor, "n seq kv hd"],
        v: Float[Tensor, "n seq kv hd"],
        start: int = 0,
    ) -> None:
        """Store the prompts of rows `first_row`, `first_row + 1`, ... from position `start` on."""
        ...

    def spread(self, first_row: int, rows: int, used: int) -> None:
        """Copy the first `used` tokens of a row to those after it, so that `rows` rows have them."""
        ...

    def move(self, source: int, target: int, used: int) -> None:
        """Copy the first `used` tokens of one row to another."""
        ...


class StepCache(Cache, Protocol):
    """A cache that computes attention by itself."""

    def begin(self, positions: Sequence[int]) -> None:
        """Start a step of the first rows, whose new tokens stand at these 0-based positions."""
        ...

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "rows heads hd"],
        k: Float[Tensor, "rows kv hd"],
        v: Float[Tensor, "rows kv hd"],
    ) -> Float[Tensor, "rows d_model"]:
        """Store the step's keys and values, then mix the values of every row up to its position."""
        ...


def make_cache(config: ModelConfig, rows: int, length: int, dtype: torch.dtype, device: torch.device) -> StepCache:
    """The layout that suits the device."""
    kind = BagCache if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) else DenseCache
    return kind(config, rows, length, dtype, device)


def free_bytes(device: torch.device) -> int | None:
    """Return what can still be allocated on an accelerator, memory that this process keeps for reuse included. It is None on
    a host, whose caches take memory only where they are written.
    """
    if device.type != "cuda":
        return None
    # Memory that torch reserved and does not use can be allocated again without asking the device.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def rows_that_fit(config: ModelConfig, rows: int, length: int, dtype: torch.dtype, free: int | None) -> int:
    """How many of `rows` rows of `length` tokens a cache may have with `free` bytes left (None: all), at least one."""
    if free is None:
        return rows
    # 2: keys and values. 7B at 4096 tokens in bf16: 2.1 GB a row.
    row_bytes = 2 * config.n_layers * config.n_kv_heads * length * config.head_dim * dtype.itemsize
    return max(1, min(rows, int(CACHE_SHARE * free) // row_bytes))


class DenseCache:
    """Tokens by rows and key heads, (length, head_dim) each."""

    def __init__(self, config: ModelConfig, rows: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.n_layers, rows, config.n_kv_heads, length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def put(self, layer: int, first_row: int, k: Tensor, v: Tensor, start: int = 0) -> None:
        rows, places = slice(first_row, first_row + len(k)), slice(start, start + k.shape[1])
        self.keys[layer, rows, :, places] = k.transpose(1, 2)
        self.values[layer, rows, :, places] = v.transpose(1, 2)

    def spread(self, first_row: int, rows: int, used: int) -> None:
        for cached in (self.keys, self.values):
            cached[:, first_row + 1 : first_row + rows, :, :used] = cached[:, first_row, None, :, :used]

    def begin(self, positions: Sequence[int]) -> None:
        self.position = torch.tensor(positions).to(self.keys.device, non_blocking=True)
        self.row = torch.arange(len(positions), device=self.keys.device)
        self.used = max(positions) + 1
        self.beyond = _beyond(self.position, positions)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values, rows = self.keys[layer], self.values[layer], len(q)
        keys[self.row, :, self.position] = k
        values[self.row, :, self.position] = v
        # The query heads that share a key head stand in the place of a query sequence: no key is repeated.
        queries = q.unflatten(1, (k.shape[1], -1))
        scores = torch.matmul(queries, keys[:rows, :, : self.used].mT).float()
        if self.beyond is not None:
            # Set to -inf before softmax: what lies beyond a row's position is an older row's leftover.
            scores.masked_fill_(self.beyond[:, None, None], float("-inf"))
        return torch.matmul(scores.softmax(-1).to(v.dtype), values[:rows, :, : self.used]).flatten(1)

    def move(self, source: int, target: int, used: int) -> None:
        self.keys[:, target, :, :used] = self.keys[:, source, :, :used]
        self.values[:, target, :, :used] = self.values[:, source, :, :used]


class BagCache:
    """Values as rows of head_dim numbers, one per position; keys in chunks of `CACHE_CHUNK` positions, as rows of
    `CACHE_CHUNK` numbers, one per dimension.

    A query's scores of one chunk are then the sum of the chunk's rows weighted with the query, and a head's
    output is the sum of its values weighted with the softmax.
    """

    def __init__(self, config: ModelConfig, rows: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        assert device.type == "cpu"
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.length, self.chunks = length, -(-length // CACHE_CHUNK)
        start = (config.n_layers, rows, self.kv_heads)
        # [layers, rows, kv heads, chunks, head_dim, 64]: a line holds one dimension of 64 positions.
        self.keys = lazy_zeros((*start, self.chunks, self.head_dim, CACHE_CHUNK), dtype)
        self.values = lazy_zeros((*start, length, self.head_dim), dtype)
        self.key_tables = [keys.view(-1, CACHE_CHUNK) for keys in self.keys]
        self.value_tables = [values.view(-1, self.head_dim) for values in self.values]
        self.shape = (0, 0)

    def put(self, layer: int, first_row: int, k: Tensor, v: Tensor, start: int = 0) -> None:
        rows, end = slice(first_row, first_row + len(k)), start + k.shape[1]
        self.values[layer, rows, :, start:end] = v.transpose(1, 2)
        # [n, seq, kv, head_dim] -> [n, kv, head_dim, seq]: keys lie by dimension.
        keys, k = self.keys[layer, rows], k.permute(0, 2, 3, 1)
        for first in range(start - start % CACHE_CHUNK, end, CACHE_CHUNK):
            low, high = max(first, start), min(first + CACHE_CHUNK, end)
            keys[:, :, first // CACHE_CHUNK, :, low - first : high - first] = k[..., low - start : high - start]

    def spread(self, first_row: int, rows: int, used: int) -> None:
        chunks = -(-used // CACHE_CHUNK)
        for cached, count in ((self.keys, chunks), (self.values, used)):
            cached[:, first_row + 1 : first_row + rows, :, :count] = cached[:, first_row, None, :, :count]

    def begin(self, positions: Sequence[int]) -> None:
        rows, used = len(positions), max(positions) + 1
        position, row_head = torch.tensor(positions), torch.arange(rows * self.kv_heads)
        at = position.repeat_interleave(self.kv_heads)
        self.value_slots = row_head * self.length + at
        line = (row_head * self.chunks + at // CACHE_CHUNK) * self.head_dim
        dims = torch.arange(self.head_dim)
        # Where the new key's numbers go: one per line of its chunk, at the position's column.
        self.key_slots = ((line[:, None] + dims) * CACHE_CHUNK + (at % CACHE_CHUNK)[:, None]).view(-1)
        self.beyond = _beyond(position, positions)
        row_head = row_head.repeat_interleave(self.heads // self.kv_heads)
        self.used = used
        self.value_rows = ((row_head * self.length)[:, None] + torch.arange(used)).view(-1)
        self.value_starts = torch.arange(0, len(self.value_rows) + 1, used)
        shape = (rows, -(-used // CACHE_CHUNK))
        if shape != self.shape:  # the key rows stay the same for up to CHUNK steps
            self.shape = shape
            lines = (row_head * self.chunks)[:, None] + torch.arange(shape[1])
            self.key_rows = (lines[..., None] * self.head_dim + dims).view(-1)
            self.key_starts = torch.arange(0, len(self.key_rows) + 1, self.head_dim)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.key_tables[layer], self.value_tables[layer]
        keys.view(-1).index_copy_(0, self.key_slots, k.reshape(-1))
        values.index_copy_(0, self.value_slots, v.reshape(-1, self.head_dim))
        rows, chunks = self.shape
        # One copy of the query per chunk is small compared with the chunk's keys.
        queries = q[:, :, None].expand(rows, self.heads, chunks, self.head_dim).reshape(-1)
        scores = weighted_sums(keys, self.key_rows, self.key_starts, queries)
        scores = scores.view(rows, self.heads, -1)[..., : self.used]
        if self.beyond is not None:
            scores.masked_fill_(self.beyond[:, None], float("-inf"))
        # fp32 softmax, rounded once, as in training.
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype).view(-1)
        return weighted_sums(values, self.value_rows, self.value_starts, weights).view(rows, -1)

    def move(self, source: int, target: int, used: int) -> None:
        chunks = -(-used // CACHE_CHUNK)
        self.keys[:, target, :, :chunks] = self.keys[:, source, :, :chunks]
        self.values[:, target, :, :used] = self.values[:, source, :, :used]


def _beyond(position: Int[Tensor, "rows"], positions: Sequence[int]) -> Tensor | None:
    """Which of the positions in use lie after each row's own, shape `[rows, used]`; None where none does."""
    used = max(positions) + 1
    if min(positions) + 1 == used:
        return None
    return torch.arange(used, device=position.device) > position[:, None]
