"""Near-duplicates by MinHash and locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive
Datasets, ch. 3).

A text's signature is, for each of b·r seeded permutations of hash space, the smallest hash among its word
n-grams; two texts agree in a place with a chance equal to the Jaccard similarity of their n-gram sets. Texts
that agree in all r places of any of b bands are candidates, and candidates are joined into connected
components. With 14 bands of 8 a pair at similarity 0.8 is found with a chance of 0.92, at 0.5 with 0.05.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt64
from pydantic import Field

from model.config import Config
from tasks.data.filters.ngrams import word_ngrams

_CHUNK = 1 << 16


class MinHashConfig(Config):
    """Shape of the signatures."""

    ngram: int = Field(default=5, ge=1)
    """Words per n-gram."""
    bands: int = Field(default=14, ge=1)
    """Bands; more find less similar pairs."""
    rows: int = Field(default=8, ge=1)
    """Places per band; more need more similar pairs."""
    seed: int = 1
    """Seed of the permutations."""


class Clusters(NamedTuple):
    """Connected components of near-duplicates."""

    kept: Int[np.ndarray, " texts"]
    """For each text the first one of its component; itself where it is the first or alone."""
    sizes: dict[int, int]
    """First text -> size, for components of two and more."""


def signatures(texts: Sequence[str], config: MinHashConfig) -> UInt64[np.ndarray, "texts places"]:
    """MinHash signatures; a text without words has the largest hash in every place."""
    grams = word_ngrams(texts, config.ngram)
    multipliers, offsets = _permutations(config)
    result = np.full((len(texts), len(multipliers)), np.iinfo(np.uint64).max, dtype=np.uint64)
    if not grams.hashes.size:
        return result
    for start in range(0, len(grams.hashes), _CHUNK):
        hashes, text = grams.hashes[start : start + _CHUNK], grams.text[start : start + _CHUNK]
        firsts = np.flatnonzero(np.concatenate([[True], text[1:] != text[:-1]]))
        for place, (multiplier, offset) in enumerate(zip(multipliers, offsets, strict=True)):
            with np.errstate(over="ignore"):
                # Odd multiplication permutes 64-bit numbers; the upper bits depend on all lower ones, so they lead.
                values = hashes * multiplier + offset
                values ^= values >> np.uint64(29)
            least = np.minimum.reduceat(values, firsts)
            result[text[firsts], place] = np.minimum(result[text[firsts], place], least)
    return result


def _permutations(
    config: MinHashConfig,
) -> tuple[UInt64[np.ndarray, " places"], UInt64[np.ndarray, " places"]]:
    count = config.bands * config.rows
    numbers = np.random.default_rng(config.seed).integers(0, 1 << 64, size=(2, count), dtype=np.uint64)
    return numbers[0] | np.uint64(1), numbers[1]


def band_keys(places: UInt64[np.ndarray, "texts places"], config: MinHashConfig) -> UInt64[np.ndarray, "texts bands"]:
    """One key per band: equal keys mean equal places in all of the band's rows (up to 64-bit collisions).

    A text without words has the key 0, which is like no other.
    """
    shaped = places.reshape(len(places), config.bands, config.rows)
    keys = np.zeros(shaped.shape[:2], dtype=np.uint64)
    with np.errstate(over="ignore"):
        for row in range(config.rows):
            keys = (keys ^ shaped[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(32)
    keys[(places == np.iinfo(np.uint64).max).all(axis=1)] = 0
    return keys


def cluster(keys: UInt64[np.ndarray, "texts bands"]) -> Clusters:
    """Components of texts that share a key other than 0 in some band."""
    parents = np.arange(len(keys))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = int(parents[index])
        return index

    for band in range(keys.shape[1]):
        order = np.argsort(keys[:, band], kind="stable")
        sorted_keys = keys[order, band]
        same = np.flatnonzero((sorted_keys[1:] == sorted_keys[:-1]) & (sorted_keys[1:] != 0))
        for place in same.tolist():
            one, two = root(int(order[place])), root(int(order[place + 1]))
            parents[max(one, two)] = min(one, two)
    kept = np.array([root(index) for index in range(len(keys))], dtype=np.int64)
    firsts, counts = np.unique(kept, return_counts=True)
    return Clusters(kept, {int(first): int(count) for first, count in zip(firsts, counts, strict=True) if count > 1})
