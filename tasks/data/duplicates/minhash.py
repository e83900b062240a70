"""Near-duplicates by MinHash and locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive
Datasets, ch. 3).

A text's signature is, for each of b·r seeded permutations of hash space, the smallest hash among its word n-grams. Two texts
agree in a place with a chance equal to the Jaccard similarity of their n-gram sets. Texts that agree in all r places of any
of b bands are candidates; candidates are joined into connected components (tasks/data/duplicates/near.py). With 14 bands of
8 a pair at similarity 0.8 is found with a chance of 0.92, at 0.5 with 0.05.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt64
from pydantic import Field

from model.config import Config
from tasks.data.filters.ngrams import word_ngrams
from tasks.data.filters.windows import window_batches

_SHIFT = np.uint64(29)
_CHUNK = 1 << 15
"""N-grams worked on at once: their hashes stay in the processor's cache for all permutations."""


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


def signatures(texts: Sequence[str], config: MinHashConfig) -> UInt64[np.ndarray, "texts places"]:
    """MinHash signatures; a text without words has the largest hash in every place."""
    multipliers, offsets = _permutations(config)
    # The largest hash everywhere: any n-gram lowers it.
    result = np.full((len(texts), len(multipliers)), np.iinfo(np.uint64).max, dtype=np.uint64)
    for windows, owners in window_batches(texts, config.ngram):
        grams = word_ngrams(windows, config.ngram)
        text = np.array(owners)[grams.text]
        for start in range(0, len(grams.hashes), _CHUNK):
            _lower(result, grams.hashes[start : start + _CHUNK], text[start : start + _CHUNK], multipliers, offsets)
    return result


def _lower(
    result: UInt64[np.ndarray, "texts places"],
    hashes: UInt64[np.ndarray, " ngrams"],
    text: np.ndarray,
    multipliers: UInt64[np.ndarray, " places"],
    offsets: UInt64[np.ndarray, " places"],
) -> None:
    """Take n-grams, which stand in the order of their texts, into the signatures."""
    # Where each text's n-grams begin; reduceat takes the minimum between two of these.
    firsts = np.flatnonzero(np.concatenate([[True], text[1:] != text[:-1]]))
    values, shifted = np.empty_like(hashes), np.empty_like(hashes)
    least = np.empty((len(multipliers), len(firsts)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for place, (multiplier, offset) in enumerate(zip(multipliers, offsets, strict=True)):
            # Odd multiplication permutes 64-bit numbers; the upper bits depend on all lower ones, so they lead.
            np.multiply(hashes, multiplier, out=values)
            np.add(values, offset, out=values)
            np.right_shift(values, _SHIFT, out=shifted)
            np.bitwise_xor(values, shifted, out=values)
            np.minimum.reduceat(values, firsts, out=least[place])
    owners = text[firsts]
    # A long text comes in several windows, so its minimum is taken over all of them.
    result[owners] = np.minimum(result[owners], least.T)


def _permutations(
    config: MinHashConfig,
) -> tuple[UInt64[np.ndarray, " places"], UInt64[np.ndarray, " places"]]:
    count = config.bands * config.rows
    numbers = np.random.default_rng(config.seed).integers(0, 1 << 64, size=(2, count), dtype=np.uint64)
    # Odd multipliers have an inverse modulo 2^64, so they permute the hashes.
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
    # A text without words would equal all others without words.
    keys[(places == np.iinfo(np.uint64).max).all(axis=1)] = 0
    return keys
