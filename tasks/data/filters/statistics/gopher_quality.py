"""The quality rules of Gopher's MassiveText (Rae et al. 2021, appendix A.1.1).

DCLM-baseline, OLMo 2's web source, was filtered with them before its classifier. Words stand between white space, lines are what
line breaks separate. Stop words are found where white space or one of .,;:!?"'() stands around them.
"""

from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Bool
from pydantic import Field

from model.config import Config
from tasks.data.filters.attributes import DocumentScores, Limit
from tasks.data.filters.batch import TextBatch, Words, lines_of

_WORDS_AT_ONCE = 1 << 20

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
Bullets = Literal["all", "datatrove", "dolma", "nemo_curator"]
BULLETS: dict[Bullets, frozenset[str]] = {
    "all": frozenset("•‣▶◀◦●○■□▪▫–-*"),
    "datatrove": frozenset("•-"),
    "dolma": frozenset("*-"),
    "nemo_curator": frozenset("•‣⁃⁌⁍∙○●◘◦⦾⦿"),
}
"""What begins a line of a list. Gopher's authors do not say; the peers' are those of their packages on PyPI."""

_AROUND_WORDS = b" \t\n\r\x0b\x0c.,;:!?\"'()"
_UPPER = bytes(range(ord("A"), ord("Z") + 1))
_PLAIN = bytes.maketrans(_AROUND_WORDS + _UPPER, b" " * len(_AROUND_WORDS) + _UPPER.lower())
_STOP_BYTES = tuple(f" {word} ".encode() for word in STOP_WORDS)


class GopherQualityScorer(Config):
    """Measures what tells prose from other text."""

    kind: Literal["gopher_quality"] = "gopher_quality"
    bullets: Bullets = "all"
    """Signs that count as bullets: all that are in use, or those of datatrove, Dolma or NeMo Curator."""


class GopherQualityRule(Config):
    """Drops texts that do not look like prose."""

    kind: Literal["gopher_quality"] = "gopher_quality"
    scorer: GopherQualityScorer = GopherQualityScorer()
    """What is measured."""
    min_words: int = Field(default=50, ge=0)
    """Fewest words."""
    max_words: int = Field(default=100_000, ge=1)
    """Most words."""
    min_mean_word_length: float = 3.0
    """Characters."""
    max_mean_word_length: float = 10.0
    """Characters."""
    max_symbol_ratio: float = 0.1
    """Most hash signs, or ellipses, per word."""
    max_bullet_lines: float = 0.9
    """Largest share of lines that begin with a bullet."""
    max_ellipsis_lines: float = 0.3
    """Largest share of lines that end with an ellipsis."""
    min_alphabetic_words: float = 0.8
    """Smallest share of words with a letter."""
    min_stop_words: int = 2
    """Fewest different words of the, be, to, of, and, that, have, with."""

    def limits(self) -> tuple[Limit, ...]:
        """All limits, in the order of the paper's table."""
        return (
            Limit("words", self.min_words, self.max_words, "count"),
            Limit("mean_word_length", self.min_mean_word_length, self.max_mean_word_length, "count"),
            Limit("hash_ratio", 0.0, self.max_symbol_ratio, "share"),
            Limit("ellipsis_ratio", 0.0, self.max_symbol_ratio, "share"),
            Limit("bullet_lines", 0.0, self.max_bullet_lines, "share"),
            Limit("ellipsis_lines", 0.0, self.max_ellipsis_lines, "share"),
            Limit("alphabetic_words", self.min_alphabetic_words, 1.0, "share"),
            Limit("stop_words", self.min_stop_words, len(STOP_WORDS), "count"),
        )


def score_gopher_quality(batch: TextBatch, scorer: GopherQualityScorer) -> DocumentScores:
    """The measured values, by the names of the limits."""
    signs = BULLETS[scorer.bullets]
    words, texts = batch.words, batch.texts
    # A text without words has ratios of 0 here; the limit on words decides about it.
    count = np.maximum(batch.word_counts, 1)
    ellipses = np.array([text.count("...") + text.count("…") for text in texts], dtype=np.int64)
    lines = np.array([_count_lines(text, signs) for text in texts], dtype=np.int64).reshape(-1, 3)
    line_count = np.maximum(lines[:, 0], 1)
    return DocumentScores(
        {
            "words": batch.word_counts.tolist(),
            "mean_word_length": batch.sum_by_text(words.lengths) / count,
            "hash_ratio": np.array([text.count("#") for text in texts]) / count,
            "ellipsis_ratio": ellipses / count,
            "bullet_lines": lines[:, 1] / line_count,
            "ellipsis_lines": lines[:, 2] / line_count,
            # One pass over the batch's code points instead of one per word.
            "alphabetic_words": batch.sum_by_text(_with_letters(batch.codes, words)) / count,
            "stop_words": [_stop_words(text) for text in texts],
        }
    )


def _count_lines(text: str, signs: frozenset[str]) -> tuple[int, int, int]:
    """Lines that are not blank, those that begin with a bullet, those that end in an ellipsis."""
    count, bullets, trailing = 0, 0, 0
    for line in filter(None, map(str.strip, lines_of(text))):
        count += 1
        bullets += line[0] in signs
        trailing += line.endswith(("...", "…"))
    return count, bullets, trailing


def _with_letters(codes: np.ndarray, words: Words) -> Bool[np.ndarray, " words"]:
    """Which words have a letter, so many words at a time."""
    found = np.zeros(len(words.start), dtype=bool)
    for begin in range(0, len(found), _WORDS_AT_ONCE):
        start, end = words.start[begin : begin + _WORDS_AT_ONCE], words.end[begin : begin + _WORDS_AT_ONCE]
        # Prefix sums of letters: a word has one where the sum grows within it.
        before = np.zeros(int(end[-1] - start[0]) + 1, dtype=np.int32)
        np.cumsum(is_letter(codes[start[0] : end[-1]]), dtype=np.int32, out=before[1:])
        found[begin : begin + _WORDS_AT_ONCE] = before[end - start[0]] > before[start - start[0]]
    return found


def _stop_words(text: str) -> int:
    # Spaces at both ends, so that the first and the last word are found like all others.
    plain = b" %b " % text.encode("utf-8", errors="replace").translate(_PLAIN)
    return sum(word in plain for word in _STOP_BYTES)


@cache
def _letters() -> Bool[np.ndarray, " codes"]:
    """Which code points are letters."""
    # str.isalpha knows all scripts; one table makes it a lookup.
    return np.fromiter(map(str.isalpha, map(chr, range(0x110000))), dtype=bool, count=0x110000)


def is_letter(codes: np.ndarray) -> Bool[np.ndarray, " characters"]:
    """Which code points are letters, in any script."""
    if codes.dtype == np.uint8:
        return _ASCII_LETTERS[codes]
    return _letters()[codes]


# Bytes above 127 are no ASCII text, so their entries are never asked.
_ASCII_LETTERS = np.array([chr(code).isalpha() for code in range(128)] + [False] * 128)
