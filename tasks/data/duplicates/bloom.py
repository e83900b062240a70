"""A Bloom filter over 64-bit hashes keeps the bits of one hash in one word (Putze, Sanders and Singler 2007). So a look
costs one access of memory, and a few passes of NumPy look up many hashes.

The filter is made of independent ones, one per bucket of hashes, each sized by how many hashes that bucket will get. So its
answer about a hash does not depend on which other buckets it holds.
"""

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int, UInt64

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_WORD = 64


class BloomFilter:
    """Filters of consecutive buckets; the first bits of a hash name its bucket."""

    def __init__(self, counts: Int[np.ndarray, " buckets"], first_bucket: int, bucket_bits: int, rate: float):
        bits, self._probes = shape(rate)
        # Rounded up to whole words of 64 bits, at least one.
        self._sizes = np.maximum(1, -(-counts.astype(np.int64) * bits // _WORD)).astype(np.uint64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)]).astype(np.uint64)
        self._first = first_bucket
        self._bucket_bits = np.uint64(bucket_bits)
        self.words = np.zeros(int(self._starts[-1]), dtype=np.uint64)

    def find(self, hashes: UInt64[np.ndarray, " hashes"]) -> Bool[np.ndarray, " hashes"]:
        """Which hashes were added, up to false positives."""
        masks = self._masks(hashes)
        return (self.words[self._places(hashes)] & masks) == masks

    def add(self, hashes: UInt64[np.ndarray, " hashes"]) -> None:
        """Add hashes, which are sorted: their words are then sorted too."""
        if not len(hashes):
            return
        places = self._places(hashes)
        starts = np.flatnonzero(np.concatenate([[True], places[1:] != places[:-1]]))
        self.words[places[starts]] |= np.bitwise_or.reduceat(self._masks(hashes), starts)

    def _places(self, hashes: UInt64[np.ndarray, " hashes"]) -> UInt64[np.ndarray, " hashes"]:
        bucket = (hashes >> (np.uint64(64) - self._bucket_bits)).astype(np.int64) - self._first
        # Multiplication and shift instead of a modulo: the next 32 bits choose a word evenly.
        fraction = (hashes << self._bucket_bits) >> np.uint64(32)
        return self._starts[bucket] + ((fraction * self._sizes[bucket]) >> np.uint64(32))

    def _masks(self, hashes: UInt64[np.ndarray, " hashes"]) -> UInt64[np.ndarray, " hashes"]:
        # Overflow of 64 bits is what the hash wants.
        with np.errstate(over="ignore"):
            spread = hashes * _SPREAD
            spread ^= spread >> np.uint64(32)
            spread *= _SPREAD
        masks = np.zeros(len(hashes), dtype=np.uint64)
        for probe in range(self._probes):
            # Six bits choose one of the 64 bits of the word; eight probes fit into the hash.
            masks |= np.uint64(1) << ((spread >> np.uint64(58 - 6 * probe)) & np.uint64(63))
        return masks


@lru_cache
def shape(rate: float) -> tuple[int, int]:
    """(bits per hash, bits set for each) of the smallest filter with at most this rate of false positives."""
    for bits in range(4, 129):
        probes = min(range(1, 9), key=lambda probes: expected_rate(bits, probes))
        if expected_rate(bits, probes) <= rate:
            return bits, probes
    raise ValueError(f"false_positive_rate={rate} needs more than 128 bits per n-gram; use 0.00002 or more")


def expected_rate(bits: int, probes: int) -> float:
    """Rate of false positives of a full filter: the hashes of a word are Poisson distributed, its set bits are not."""
    load = _WORD / bits
    total, chance = 0.0, math.exp(-load)
    for hashes in range(1, 200):
        # Chance that a word got this many hashes, by recursion, since factorials would overflow.
        chance *= load / hashes
        total += chance * (1 - (1 - 1 / _WORD) ** (probes * hashes)) ** probes
    return total
