"""The rule for code: one or two words make up too much of a file (RECIPE C.3; paper section 2.4.1).

"Word" is undefined in the paper; here it is what stands between white space, and the limits are exceeded
strictly.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from model.config import Config
from tasks.data.filters.judgement import Judgement, document_score


class WordFrequencyRule(Config):
    """Drops documents dominated by one or two words."""

    kind: Literal["word_frequency"] = "word_frequency"
    max_top_fraction: float = Field(default=0.30, gt=0, le=1)
    """Largest share of the most frequent word (paper section 2.4.1)."""
    max_top_two_fraction: float = Field(default=0.50, gt=0, le=1)
    """Largest share of the two most frequent words together (paper section 2.4.1)."""


def top_fractions(text: str) -> tuple[float, float]:
    """Shares of the most frequent word and of the two most frequent; 0 for a text without words."""
    words = text.split()
    if not words:
        return 0.0, 0.0
    counts = [count for _, count in Counter(words).most_common(2)]
    return counts[0] / len(words), sum(counts) / len(words)


def judge_word_frequency(texts: Sequence[str], rule: WordFrequencyRule) -> list[Judgement]:
    """A judgement of each text."""
    judgements = []
    for text in texts:
        top, two = top_fractions(text)
        detail = ""
        if top > rule.max_top_fraction:
            detail = f"the most frequent word is {top:.3f} of all, limit {rule.max_top_fraction}"
        elif two > rule.max_top_two_fraction:
            detail = f"the two most frequent words are {two:.3f} of all, limit {rule.max_top_two_fraction}"
        judgements.append(Judgement({"top": document_score(text, top), "top_two": document_score(text, two)}, detail))
    return judgements
