"""The order of training instances is a permutation that is computed, not stored.

Source: RECIPE C.9 (global shuffle per epoch). Deviation: the published runs shuffle an array of all indices (`published` and
`published_core`, whose epochs are seeded from 0 and from 1). The default is a Feistel network with cycle walking. It gives
any element of any epoch's permutation, and its inverse, in constant memory, so a trillion tokens are as addressable as a
thousand.
"""

from typing import Literal

import numpy as np
from jaxtyping import Int

from model.data.splitmix import splitmix64

OrderKind = Literal["feistel", "published", "published_core"]
_ROUNDS = 8


class Shuffle:
    """A permutation of range(count), chosen by seed and epoch. `at` maps places to items, `place_of` items to
    places.
    """

    def __init__(self, count: int, seed: int, epoch: int) -> None:
        if count < 1:
            raise ValueError(f"count={count}: there is nothing to shuffle; give at least one instance")
        self.count = count
        # A Feistel network permutes 2^(2 * half) values: two halves of at least one bit each, and less than four times
        # `count`.
        self.half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
        self.mask = np.uint64((1 << int(self.half)) - 1)
        # Seed and epoch are hashed together, so neighbouring seeds and epochs get unrelated keys.
        words = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)
        self.keys = [np.uint64(word) for word in words]

    def at(self, places: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Items at the given places, int64."""
        return self._walk(places, self._forward)

    def place_of(self, items: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Places of the given items, int64: the inverse of `at`."""
        return self._walk(items, self._backward)

    def _walk(self, values, network) -> np.ndarray:
        """Apply the network until each value is inside the range again (at most four times as large, so few
        turns).
        """
        array = np.asarray(values, dtype=np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.count):
            raise ValueError(f"indices span {array.min()}..{array.max()}; they must lie in 0..{self.count - 1}")
        result = network(array.astype(np.uint64))
        # Cycle walking: a value outside is sent on along its cycle, which leads back into the range, so this stays a
        # permutation.
        while (outside := result >= np.uint64(self.count)).any():
            result[outside] = network(result[outside])
        return result.astype(np.int64)

    def _forward(self, values: np.ndarray) -> np.ndarray:
        # Unsigned 64-bit words: the products in splitmix64 wrap around, which is meant.
        left, right = values >> self.half, values & self.mask
        for key in self.keys:
            left, right = right, left ^ (splitmix64(right ^ key) & self.mask)
        return (left << self.half) | right

    def _backward(self, values: np.ndarray) -> np.ndarray:
        # Keys in reverse undo the rounds, since a Feistel round is its own inverse up to the swap.
        left, right = values >> self.half, values & self.mask
        for key in reversed(self.keys):
            left, right = right ^ (splitmix64(left ^ key) & self.mask), left
        return (left << self.half) | right


class PublishedShuffle:
    """NumPy's in-place shuffle of all indices by PCG64(seed + epoch), as the OLMo trainers do; holds `count`
    integers. Raises ValueError where an index would not fit into their 32 bits.
    """

    def __init__(self, count: int, seed: int, epoch: int) -> None:
        if count > 1 << 32:
            raise ValueError(f"count={count:,}: the published order has 32-bit indices; use order: feistel")
        self.items = np.arange(count, dtype=np.uint32)
        # 32-bit as in the published trainers: half the memory of int64, 4 GB for a billion instances.
        np.random.Generator(np.random.PCG64(seed + epoch)).shuffle(self.items)

    def at(self, places: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Items at the given places, int64."""
        return self.items[places].astype(np.int64)

    def place_of(self, items: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Places of the given items, int64."""
        places = np.empty(len(self.items), dtype=np.int64)
        places[self.items] = np.arange(len(self.items))
        return places[items]


class GroupedShuffle:
    """A shuffle of groups of `size` neighbours, each in its own order, as OLMo-core's loader does for windows that a longer
    training will read as one. Items after the last whole group keep their places.
    """

    def __init__(self, groups: PublishedShuffle, size: int) -> None:
        self.groups = groups
        self.size = size
        self.whole = len(groups.items) * size

    def at(self, places: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Items at the given places, int64."""
        return self._within(places, self.groups.at)

    def place_of(self, items: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Places of the given items, int64."""
        return self._within(items, self.groups.place_of)

    def _within(self, values, permute) -> np.ndarray:
        result = np.asarray(values, dtype=np.int64).copy()
        # Items after the last whole group keep their places; permuting them would mix part groups into whole ones.
        grouped = result < self.whole
        result[grouped] = permute(result[grouped] // self.size) * self.size + result[grouped] % self.size
        return result


AnyShuffle = Shuffle | PublishedShuffle | GroupedShuffle


def shuffle(kind: OrderKind, count: int, seed: int, epoch: int, group: int = 1) -> AnyShuffle:
    """The named permutation of range(count); epochs count from 0. `published_core` keeps `group` neighbours together."""
    match kind:
        case "feistel":
            return Shuffle(count, seed, epoch)
        case "published":
            return PublishedShuffle(count, seed, epoch)
        case "published_core":
            # OLMo-core counts epochs from 1.
            if group == 1:
                return PublishedShuffle(count, seed, epoch + 1)
            return GroupedShuffle(PublishedShuffle(count // group, seed, epoch + 1), group)
