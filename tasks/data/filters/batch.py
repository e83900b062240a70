"""Texts that are measured together, and what several rules need of them: words, as positions and as hashes.

Words stand between white space, as `str.split` has it. A batch is one array of code points (texts joined by newlines). So
words, their lengths and their hashes take a few passes of NumPy over a megabyte instead of a Python step per word. They are
computed once, for whichever rule asks first.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt64

from tasks.data.filters.ngrams import span_hashes

_LAST_SPACE = 0x3000
_SPACE = np.array([chr(code).isspace() for code in range(_LAST_SPACE + 2)])
_SALT = 0x9E3779B97F4A7C15
_PIECE = 1 << 22
"""Characters worked on at once, so that a long text takes the memory of its words and not that of its temporaries."""
_LINES_AT_ONCE = 1 << 20
"""Characters that are split into lines at once."""
_NATIVE_UTF16 = "utf-16-le" if sys.byteorder == "little" else "utf-16-be"
_NATIVE_UTF32 = "utf-32-le" if sys.byteorder == "little" else "utf-32-be"


class Words(NamedTuple):
    """The words of a batch in text order; parallel arrays."""

    start: Int[np.ndarray, " words"]
    """First character, in the joined texts."""
    end: Int[np.ndarray, " words"]
    """Character after the last."""
    text: Int[np.ndarray, " words"]
    """Index of the text."""

    @property
    def lengths(self) -> Int[np.ndarray, " words"]:
        """Characters of each word."""
        return self.end - self.start


class TextBatch:
    """Some texts; immutable, what is computed from them is kept."""

    def __init__(self, texts: Sequence[str]):
        self.texts = list(texts)

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def codes(self) -> np.ndarray:
        """Code points of the texts, joined by newlines."""
        joined = "\n".join(self.texts) if len(self.texts) != 1 else self.texts[0]
        # ASCII needs one byte a character, a quarter of the general form.
        if joined.isascii():
            return np.frombuffer(joined.encode("ascii"), dtype=np.uint8)
        if len(joined) > _PIECE:
            narrow = joined.encode(_NATIVE_UTF16, errors="surrogatepass")
            if len(narrow) == 2 * len(joined):
                # No character needs a pair: half the memory of a long text.
                return np.frombuffer(narrow, dtype=np.uint16)
            del narrow
        return np.frombuffer(joined.encode(_NATIVE_UTF32, errors="surrogatepass"), dtype=np.uint32)

    @cached_property
    def starts(self) -> Int[np.ndarray, " texts"]:
        """First character of each text in `codes`."""
        # One more for the newline that joins the texts.
        lengths = np.array([len(text) + 1 for text in self.texts], dtype=np.int64)
        return np.cumsum(lengths) - lengths

    @cached_property
    def words(self) -> Words:
        """All words."""
        codes = self.codes
        starts, ends = [], []
        before = False
        for begin in range(0, len(codes), _PIECE):
            inside = ~_is_space(codes[begin : begin + _PIECE])
            # A step up is the first character of a word, a step down the character after its last.
            steps = np.diff(inside.view(np.int8), prepend=np.int8(before))
            # 32 bits hold every place: a text of 2 billion characters is refused before.
            starts.append((np.flatnonzero(steps == 1) + begin).astype(np.int32))
            ends.append((np.flatnonzero(steps == -1) + begin).astype(np.int32))
            before = bool(inside[-1])
        if before:
            ends.append(np.array([len(codes)], dtype=np.int32))
        none = np.zeros(0, dtype=np.int32)
        start, end = np.concatenate([none, *starts]), np.concatenate([none, *ends])
        # The first word of each text: words are in text order, so bisection finds it.
        first = np.searchsorted(start, self.starts)
        counts = np.diff([*first.tolist(), len(start)])
        if len(self) == 1:
            # One text may have ten million words; that all are its words takes no memory.
            return Words(start, end, np.broadcast_to(np.int32(0), len(start)))
        return Words(start, end, np.repeat(np.arange(len(self), dtype=np.int32), counts))

    @cached_property
    def word_counts(self) -> Int[np.ndarray, " texts"]:
        """Words of each text."""
        return self.sum_by_text(np.broadcast_to(np.int64(1), len(self.words.start))).astype(np.int64)

    @cached_property
    def word_hashes(self) -> UInt64[np.ndarray, " words"]:
        """A hash of each word; equal words of different texts have equal ones."""
        return span_hashes(self.codes, self.words.start, self.words.end)

    @cached_property
    def salts(self) -> UInt64[np.ndarray, " words"]:
        """A number per word that differs between texts: added to hashes, it keeps texts apart."""
        with np.errstate(over="ignore"):
            return self.words.text.astype(np.uint64) * np.uint64(_SALT)

    def sum_by_text(self, values: np.ndarray) -> np.ndarray:
        """Sum over the words of each text of a value per word."""
        # bincount would copy the index of every word to 64 bits; a single text needs none.
        if len(self) == 1:
            # Numbers are whole, so the sum is the same in any order.
            return np.array([values.sum(dtype=np.int64)], dtype=np.float64)
        return np.bincount(self.words.text, weights=values, minlength=len(self))


def cut_to(batch: TextBatch, most_words: int, most_lines: int) -> TextBatch:
    """The texts as far as so many words and lines: what is measured of a text that has more, so that memory is bounded."""
    texts = [_cut_lines(_cut_words(text, most_words), most_lines) for text in batch.texts]
    return batch if all(cut is text for cut, text in zip(texts, batch.texts, strict=True)) else TextBatch(texts)


def _cut_words(text: str, most: int) -> str:
    # Each word needs two characters, so a short text cannot have too many.
    if len(text) < 2 * most:
        return text
    count, before = 0, False
    for begin in range(0, len(text), _PIECE):
        inside = ~_is_space(TextBatch([text[begin : begin + _PIECE]]).codes)
        starts = np.flatnonzero(np.diff(inside.view(np.int8), prepend=np.int8(before)) == 1)
        if count + len(starts) > most:
            return text[: begin + int(starts[most - count])]
        count, before = count + len(starts), bool(inside[-1])
    return text


def _cut_lines(text: str, most: int) -> str:
    # Counting newlines is far quicker than splitting, and nearly every text is within the bound.
    if len(text) <= most or text.count("\n") <= most:
        return text
    return text[: _nth_newline(text, most)]


def _nth_newline(text: str, count: int) -> int:
    place = -1
    for _ in range(count):
        place = text.index("\n", place + 1)
    return place


def lines_of(text: str) -> Iterator[str]:
    """The lines of `str.splitlines`, without the memory of all of them at once."""
    start = 0
    while start < len(text):
        # A piece ends after a newline, so no line is cut in two.
        end = text.find("\n", start + _LINES_AT_ONCE) + 1 or len(text)
        yield from text[start:end].splitlines()
        start = end


def _is_space(codes: np.ndarray) -> Bool[np.ndarray, " characters"]:
    if codes.dtype == np.uint8:
        return _SPACE[:256][codes]
    # Beyond the last white space of Unicode nothing separates words, so one entry stands for all.
    return _SPACE[np.minimum(codes, _LAST_SPACE + 1)]
