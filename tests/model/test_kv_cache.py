"""Oracle: attention written out, over every key and value that a row was given."""

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.decoding.kv_cache import CACHE_CHUNK, CACHE_SHARE, BagCache, DenseCache, rows_that_fit

ROWS, LENGTH = 4, 2 * CACHE_CHUNK + 10
CPU = torch.device("cpu")


def config(kv_heads: int) -> ModelConfig:
    return ModelConfig(
        d_model=32, n_layers=2, n_heads=4, n_kv_heads=kv_heads, head_dim=8, mlp_hidden=8, vocab_size=8,
        max_sequence_length=LENGTH,
    )  # fmt: skip


def attend(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """One row: q `[heads, hd]`; keys and values `[kv, hd]` each, by position."""
    group = q.shape[0] // keys[0].shape[0]
    k, v = (torch.stack(one).repeat_interleave(group, dim=1) for one in (keys, values))
    return torch.einsum("ht,thd->hd", torch.einsum("hd,thd->ht", q, k).softmax(-1), v).flatten()


@pytest.mark.parametrize("kind", [BagCache, DenseCache])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_attention_over_rows_of_different_lengths(kind, kv_heads, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    cache = kind(config(kv_heads), ROWS, LENGTH, dtype, CPU)
    lengths = [CACHE_CHUNK - 2, 3, CACHE_CHUNK + 1, 2 * CACHE_CHUNK - 1]
    longest = max(lengths)
    keys, values = random(ROWS, longest, kv_heads, 8), random(ROWS, longest, kv_heads, 8)
    for layer in range(2):
        cache.put(layer, 0, keys[:3], values[:3])
        cache.put(layer, 3, keys[3:], values[3:])
    known = [[list(one[row, : lengths[row]].float()) for one in (keys, values)] for row in range(ROWS)]
    # Right padding of the prompts is in the cache, beyond the rows' own positions.
    for step in range(6):
        if step == 3:  # row 0 ends; the last row takes its place
            cache.move(3, 0, len(known[3][0]))
            known = [known[3], *known[1:3]]
        rows = len(known)
        cache.begin([len(row[0]) for row in known])
        q, k, v = random(rows, 4, 8), random(rows, kv_heads, 8), random(rows, kv_heads, 8)
        for row in range(rows):
            known[row][0].append(k[row].float())
            known[row][1].append(v[row].float())
        for layer in range(2):
            mixed = cache.attend(layer, q, k, v).float()
            expected = torch.stack([attend(q[row].float(), *known[row]) for row in range(rows)])
            torch.testing.assert_close(mixed, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_as_many_as_fit_into_the_memory_that_is_free(dtype: torch.dtype) -> None:
    """Oracle: what a cache of the rows holds, and of one row more."""

    def held(rows: int) -> int:
        cache = DenseCache(config(2), rows, LENGTH, dtype, CPU)
        return cache.keys.nbytes + cache.values.nbytes

    for free in (held(1), held(7), held(7) + 1, 10 * held(7)):
        rows = rows_that_fit(config(2), 64, LENGTH, dtype, free)
        assert held(rows) <= CACHE_SHARE * free or rows == 1
        assert held(rows + 1) > CACHE_SHARE * free or rows == 64
    assert rows_that_fit(config(2), 64, LENGTH, dtype, 0) == 1
    assert rows_that_fit(config(2), 64, LENGTH, dtype, None) == 64
    seven_b = rows_that_fit(ModelConfig(), 64, 4096, torch.bfloat16, 40 * 2**30)
    assert seven_b == 16, "2 GiB a row: keys and values of 4,096 tokens in 32 layers of width 4,096"
