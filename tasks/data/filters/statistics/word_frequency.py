"""The rule for code: one or two words make up too much of a file (RECIPE C.3; paper section 2.4.1).

"Word" is undefined in the paper; here it is what stands between white space, and the limits are exceeded
strictly.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from model.config import Config
from tasks.data.filters.attributes import DocumentScores, Limit
from tasks.data.filters.batch import TextBatch


class WordFrequencyScorer(Config):
    """Counts the most frequent words."""

    kind: Literal["word_frequency"] = "word_frequency"


class WordFrequencyRule(Config):
    """Drops documents dominated by one or two words."""

    kind: Literal["word_frequency"] = "word_frequency"
    scorer: WordFrequencyScorer = WordFrequencyScorer()
    """What is measured."""
    max_top_fraction: float = Field(default=0.30, gt=0, le=1)
    """Largest share of the most frequent word (paper section 2.4.1)."""
    max_top_two_fraction: float = Field(default=0.50, gt=0, le=1)
    """Largest share of the two most frequent words together (paper section 2.4.1)."""

    def limits(self) -> tuple[Limit, ...]:
        """The two shares."""
        return (
            Limit("top", 0.0, self.max_top_fraction, "share"),
            Limit("top_two", 0.0, self.max_top_two_fraction, "share"),
        )


def score_word_frequency(batch: TextBatch) -> DocumentScores:
    """`top` and `top_two`: shares of the most frequent word and of the two most frequent; 0 for a text without words."""
    first = np.zeros(len(batch))
    second = np.zeros(len(batch))
    if len(batch.words.text):
        # Sorted by text, then by what is left of the hash: 48 bits or more in batches of up to 65,536 texts.
        bits = max(1, (len(batch) - 1).bit_length())
        # The upper bits make room for the text's number, so one sort serves all texts.
        keys = batch.word_hashes >> np.uint64(bits)
        if len(batch) > 1:
            keys |= batch.words.text.astype(np.uint64) << np.uint64(64 - bits)
        keys.sort()
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        counts = np.diff(starts, append=len(keys))
        text = (keys[starts] >> np.uint64(64 - bits)).astype(np.int64)
        begins = np.flatnonzero(np.concatenate([[True], text[1:] != text[:-1]]))
        owners = text[begins]
        first[owners] = np.maximum.reduceat(counts, begins)
        # Without one of the most frequent, the next is the second.
        best = np.flatnonzero(counts == first[text])
        # The most frequent word is taken out, once per text, and the next maximum is the second.
        counts[best[np.unique(text[best], return_index=True)[1]]] = 0
        second[owners] = np.maximum.reduceat(counts, begins)
    total = np.maximum(batch.word_counts, 1)
    return DocumentScores({"top": first / total, "top_two": (first + second) / total})
