"""Word lists: documents with listed words or phrases (C4, Raffel et al. 2020, section 2.2, removed every page with one).

Lists are files of one entry per line, given in the recipe and pinned by their hash. Entries are compared in lower case with
whole words of the text; an entry may hold several words.
"""

import re
from typing import Literal, Self

from pydantic import Field

from model.config import Config
from tasks.data.filters.attributes import DocumentScores, Limit
from tasks.data.filters.batch import TextBatch
from tasks.data.filters.pinned import PinnedFile, list_entries

_WORDS = re.compile(r"\w+(?:\+\+|#(?!\w))?")
"""C# and C++ are words of their own."""


class WordListScorer(Config):
    """Counts listed words."""

    kind: Literal["word_list"] = "word_list"
    lists: tuple[PinnedFile, ...] = Field(min_length=1)
    """The lists."""

    def pinned(self) -> Self:
        """The scorer with its lists pinned by their hashes."""
        return self.model_copy(update={"lists": tuple(file.pinned() for file in self.lists)})


class WordListRule(Config):
    """Drops documents with listed words."""

    kind: Literal["word_list"] = "word_list"
    scorer: WordListScorer
    """The lists."""
    max_words: int = Field(default=0, ge=0)
    """Most listed words (C4: none)."""
    max_fraction: float = Field(default=1.0, ge=0, le=1)
    """Largest share of all words."""

    def limits(self) -> tuple[Limit, ...]:
        """Number and share."""
        return (Limit("count", 0, self.max_words, "count"), Limit("share", 0.0, self.max_fraction, "share"))


Phrases = dict[str, frozenset[tuple[str, ...]]]
"""First word -> the entries that begin with it."""


def load_phrases(scorer: WordListScorer) -> Phrases:
    """The lists' entries. Raises ValueError for a file that changed."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for line in list_entries(scorer.lists):
        entry = tuple(_WORDS.findall(line.lower()))
        if entry:
            found.setdefault(entry[0], set()).add(entry)
    return {first: frozenset(entries) for first, entries in found.items()}


def count_listed(words: list[str], phrases: Phrases) -> int:
    """How many places of the text begin a listed entry."""
    # Most texts have no listed word at all, which the set tells without a loop.
    if phrases.keys().isdisjoint(words):
        return 0
    return sum(
        any(tuple(words[place : place + len(entry)]) == entry for entry in phrases[word])
        for place, word in enumerate(words)
        if word in phrases
    )


def score_word_list(batch: TextBatch, phrases: Phrases) -> DocumentScores:
    """`count`: listed words and phrases; `share`: their share of all words."""
    counts, shares = [], []
    for text in batch.texts:
        words = _WORDS.findall(text.lower())
        counts.append(count_listed(words, phrases))
        # A phrase counts once per place, so overlapping entries could exceed the number of words.
        shares.append(min(1.0, counts[-1] / max(1, len(words))))
    return DocumentScores({"count": counts, "share": shares})
