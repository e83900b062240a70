"""Reads once what prompts share that begin alike: few-shot examples, the several answers of one prompt.

`Admission` orders the prompts so that those which begin alike take rows together. `PrefixReader` reads what they share, keeps
its KV cache for the next prompts, copies it to every row, and reads the rest of all prompts in one prefill.

Example: 32 problems with eight worked examples have 717 tokens each, of which 670 are the same. 2,174 tokens are read
instead of 22,944.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.decoding import prefix_tree
from model.decoding.decoder import Decoder
from model.decoding.prefix_tree import Node
from model.decoding.prepared_weights import Attend
from model.decoding.tree_attention import Layout, PrefixKeys, TreeAttention

LEAST_SHARED = 16
"""Tokens that prompts must share at least to be read together: copying keys and values has its price too."""
LEAST_SAVED = 0.25
"""Of all prompts' tokens, what sharing must save; else prompts are taken in the order given, and read whole."""
LEAST_KEPT = 0.75
"""Of what the first two prompts share, what all of those read together must share."""


class Admission:
    """The order in which prompts take free rows."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self.prompts = prompts
        # Sorted by their ids, prompts that begin alike stand next to each other.
        order = sorted(range(len(prompts)), key=lambda index: tuple(prompts[index]))
        arrays = [np.asarray(prompts[index]) for index in order]
        links = [0, *(common_tokens(a, b) for a, b in pairwise(arrays)), 0]
        saved = sum(link for link in links if link >= LEAST_SHARED)
        # Sorting changes who decodes with whom, so it has to save enough to be worth it.
        shares = saved >= LEAST_SAVED * sum(map(len, arrays))
        self.order = order if shares else list(range(len(prompts)))
        self.links = links if shares else [0] * len(links)
        """What each prompt of the order shares with the one before it."""
        self.next = 0

    @property
    def waiting(self) -> int:
        """Prompts that have no row yet."""
        return len(self.order) - self.next

    def take(self, free: int, most: int) -> tuple[list[int], int]:
        """Indices of the next prompts, at most `free`, and how many tokens they share: 0 where they are read whole, all of them
        where they are one prompt that has little in common with those before and after it.

        `most` bounds prompts x the longest of what is not shared, unless it is a single prompt.
        """
        start, links = self.next, self.links
        together = links[start + 1] >= LEAST_SHARED
        shared = links[start + 1] if together else 0
        # A prompt that shares much less than the first two do would shorten what all of them share.
        least = max(LEAST_SHARED, LEAST_KEPT * shared) if together else 0
        longest = len(self.prompts[self.order[start]])
        end = start + 1
        while end < len(self.order) and end - start < free:
            common = min(shared, links[end])
            alone = max(links[end], links[end + 1]) < LEAST_SHARED
            longest = max(longest, len(self.prompts[self.order[end]]))
            if (common < least if together else not alone) or (longest - common) * (end + 1 - start) > most:
                break
            shared, end = common, end + 1
        self.next = end
        indices = self.order[start:end]
        if len(indices) == 1:  # what the one before it shares may still be kept
            shared = links[start] if links[start] >= LEAST_SHARED else 0
        shortest = min(len(self.prompts[index]) for index in indices)
        # Copies: the logits of the first choose the first token of all. Where the prompts next to them begin alike, as after the
        # same examples, what they share stays for those.
        if len(indices) > 1 and shared == longest and 2 * max(links[start], links[end]) < shared:
            return indices, shared
        # At least one token of each prompt is read, since its logits choose the first answer token.
        return indices, min(shared, shortest - 1)


class PrefixReader:
    """Reads prompts into the rows of a decoder; the last shared beginning stays for the next prompts."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.prepared = decoder, decoder.prepared
        self.ids: list[int] = []
        self.kept: PrefixKeys = []

    def prefill(self, first_row: int, prompts: Sequence[Sequence[int]], shared: int) -> Float[Tensor, "prompts vocab"]:
        """Prefill prompts whose first `shared` tokens are the same, into rows `first_row`, `first_row + 1`, ...

        Returns the logits after each prompt's last token.
        """
        if not shared:
            return self.decoder.prefill(first_row, prompts)
        if shared == len(prompts[0]):
            logits = self.decoder.prefill(first_row, prompts[:1])
            self.decoder.cache.spread(first_row, len(prompts), shared)
            return logits.repeat(len(prompts), 1)
        past, cache = self._read(prompts[0][:shared]), self.decoder.cache
        for layer, (keys, values) in enumerate(past):
            cache.put(layer, first_row, keys.transpose(0, 1)[None], values.transpose(0, 1)[None])
        cache.spread(first_row, len(prompts), shared)
        ends = [Node(prompt[shared:], shared, None, targets={len(prompt) - shared - 1: {}}) for prompt in prompts]
        layout = Layout([[end] for end in ends])
        attention = TreeAttention(self.prepared, layout, past, keeps=False)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.put(layer, first_row, attention.pad(k), attention.pad(v), shared)
            return attention(layer, q, k, v)

        return self.prepared.logits(self._feed(layout, attend))

    def _read(self, ids: Sequence[int]) -> PrefixKeys:
        """Keys and values of the given tokens; what the kept ones share with them is not read again."""
        common = common_tokens(np.asarray(self.ids), np.asarray(ids))
        kept = [(keys[:, :common], values[:, :common]) for keys, values in self.kept]
        for start in range(common, len(ids), prefix_tree.MAX_ROW_TOKENS):
            layout = Layout([[Node(ids[start : start + prefix_tree.MAX_ROW_TOKENS], start, None)]])
            attention = TreeAttention(self.prepared, layout, kept if start else None, keeps=True)
            self._feed(layout, attention)
            kept = attention.kept
        self.ids, self.kept = list(ids), kept
        return kept

    def _feed(self, layout: Layout, attend: Attend) -> Tensor:
        device = self.prepared.device
        ids, positions, wanted = (torch.from_numpy(x).to(device) for x in (layout.ids, layout.positions, layout.wanted))
        return self.prepared.blocks(ids, self.prepared.turns[positions], attend, wanted)


def common_tokens(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two prompts share from their beginning."""
    most = min(len(first), len(second))
    differs = first[:most] != second[:most]
    return int(differs.argmax()) if differs.any() else most
