"""Benchmark: initial weights of one worker's part of a sharded 7B.

Claim: a worker draws one of eight slices of the 7B's weights in less than 60 s on two cores, in the memory of that slice, because
each number comes from a counter; the usual way (`torch.nn.init.trunc_normal_` of whole matrices, of which the slice is kept)
draws everything. The peer is timed on one block and the embedding, and multiplied by how often they occur.

    python benchmarks/quality/initial_weights.py [--size 7B] [--shards 8] [--threads 2]

Limit: writing the slice's numbers once at the measured speed of `Tensor.fill_`.
"""

import argparse
import json
import resource
import time

import torch

from model.config import ModelConfig
from model.network.initial_weights import initial_rows
from model.network.sharded_tensors import rows_of_shard
from model.network.transformer import on_meta_device


def ours(config: ModelConfig, shards: int) -> tuple[float, float]:
    """Seconds, and bytes of the slice that was drawn."""
    start, held = time.perf_counter(), []
    for name, parameter in on_meta_device(config).named_parameters():
        held.append(initial_rows(config, 0, name, parameter.shape, *rows_of_shard(len(parameter), 1, shards)))
    return time.perf_counter() - start, sum(4.0 * part.numel() for part in held)


def peer(config: ModelConfig) -> float:
    """Seconds that whole matrices take: one block's and the embedding's, times their number."""
    spent = {}
    for name, parameter in on_meta_device(config.model_copy(update={"n_layers": 1})).named_parameters():
        if parameter.ndim > 1 and name != "head.weight":
            start = time.perf_counter()
            torch.nn.init.trunc_normal_(torch.empty(parameter.shape), std=0.02, a=-0.06, b=0.06)
            spent[name] = time.perf_counter() - start
    tables = 2 * spent.pop("embedding.weight")
    return tables + config.n_layers * sum(spent.values())


def fill_seconds(size: float) -> float:
    """Seconds to write so many bytes once."""
    part = torch.empty(64 * 1024 * 1024)
    part.fill_(1.0)
    start = time.perf_counter()
    part.fill_(2.0)
    return (time.perf_counter() - start) * size / (4 * len(part))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="7B")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = ModelConfig(size=options.size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds, size = ours(config, options.shards)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    usual, least = peer(config), fill_seconds(size)
    print(f"{options.size}, 1 of {options.shards} slices, {size / 1e9:.2f} GB, {options.threads} threads")
    print(
        f"ours {seconds:.1f} s, {peak / 1e9:.2f} GB above the start; whole matrices {usual:.0f} s; filling {least:.2f} s"
    )
    found = {"seconds": seconds, "peer_seconds": usual, "ratio": usual / seconds, "memory_ratio": peak / size}
    print(
        json.dumps({name: round(value, 3) for name, value in found.items()} | {"of_limit": round(least / seconds, 4)})
    )


if __name__ == "__main__":
    main()
