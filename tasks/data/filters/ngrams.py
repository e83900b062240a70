"""Word n-grams of many texts at once, as 64-bit hashes (RECIPE C.6).

Words are lower-cased runs of letters, digits and non-ASCII characters; everything else, general Unicode
punctuation included, separates them. A text with fewer than n words has one n-gram, made of all of them: so a
short item and a short document are equal exactly when their words are. A word's hash is a polynomial over its
bytes modulo 2^64, taken from prefix sums, so that a megabyte takes a few passes of NumPy instead of a Python
step per word. Two different n-grams have the same hash with a chance of about 1 in 10^19 per pair.
"""

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt64

_PUNCTUATION = re.compile("[\u00a0-\u00bf\u2000-\u206f\u3000-\u303f\uff00-\uff0f]")
_UNSEEN = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10), *range(0x180B, 0x1810)}
"""Not in Unicode's category of format characters, and not drawn either (Default_Ignorable_Code_Point)."""
_WORD_BYTES = np.zeros(256, dtype=bool)
_WORD_BYTES[[*b"abcdefghijklmnopqrstuvwxyz0123456789"]] = True
_WORD_BYTES[128:] = True

# Odd constants without structure: fractional parts of square roots of small primes.
_BYTE_BASE = 0x6A09E667F3BCC909
WORD_BASE = 0xBB67AE8584CAA73B
_PIECE_CODES = 1 << 16
_MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))


class NGrams(NamedTuple):
    """The n-grams of a batch of texts, in text order; parallel arrays."""

    hashes: UInt64[np.ndarray, " ngrams"]
    text: Int[np.ndarray, " ngrams"]
    """Index of the text."""
    start: Int[np.ndarray, " ngrams"]
    """First byte of the n-gram in `normalised`."""
    end: Int[np.ndarray, " ngrams"]
    """Byte after its last one."""
    normalised: bytes
    """All texts, lower-cased, for showing an n-gram."""

    def show(self, index: int) -> str:
        """The words of one n-gram as they stand in the text."""
        return self.normalised[self.start[index] : self.end[index]].decode("utf-8", errors="replace")


def word_ngrams(texts: Sequence[str], n: int, *, fold: bool = False) -> NGrams:
    """All n-grams of `n` words of each text, repeated ones repeated.

    With `fold`, spellings that look alike are alike: `folded` first.
    """
    # Texts are joined, so that the passes of NumPy run once over the batch.
    data = b"\n".join(_normalise(folded(text) if fold else text) for text in texts) if texts else b""
    starts, ends = _words(data)
    count = len(starts)
    if count == 0:
        none = np.zeros(0, dtype=np.int64)
        return NGrams(none.astype(np.uint64), none, none, none, data)
    # Texts are joined by newlines; those inside a text were replaced.
    borders = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n"))
    text = np.searchsorted(borders, starts)
    words = span_hashes(np.frombuffer(data, dtype=np.uint8), starts, ends)
    hashes = np.zeros(count, dtype=np.uint64)
    last = np.arange(count)
    # Overflow is wanted: hashes are modulo 2^64.
    with np.errstate(over="ignore"):
        factor = np.uint64(1)
        for offset in range(min(n, count)):
            same = np.zeros(count, dtype=bool)
            # True where the n-gram's word belongs to the same text as its first one.
            same[: count - offset] = text[offset:] == text[: count - offset]
            # A word beyond its text adds nothing, so the n-gram of a short text has fewer words.
            hashes[: count - offset] += np.where(same[: count - offset], words[offset:] * factor, np.uint64(0))
            last[same] += offset > 0
            factor *= np.uint64(WORD_BASE)
        hashes = scramble(hashes)
    first_of_text = np.concatenate([[True], text[1:] != text[:-1]])
    # Valid are n-grams of n words, and the first of each text, which stands for a shorter one.
    valid = (last - np.arange(count) == n - 1) | first_of_text
    return NGrams(hashes[valid], text[valid], starts[valid], ends[last[valid]], data)


def folded(text: str) -> str:
    """The text in NFKC and without case, invisible characters and punctuation outside ASCII, which `_WORD_BYTES` has."""
    if text.isascii():
        return text
    invisible, separating = _character_classes()
    visible = invisible.sub("", unicodedata.normalize("NFKC", text))
    # Case folding may leave what composes again.
    return separating.sub(" ", unicodedata.normalize("NFKC", visible.casefold()))


@lru_cache(maxsize=1)
def _character_classes() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Characters that are not seen (format characters, variation selectors, fillers), and those that separate words."""
    invisible, separating = [], []
    for code in range(128, sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        # Format characters (Cf) are drawn by nobody, so they must not hide an item.
        if category == "Cf" or code in _UNSEEN:
            invisible.append(code)
        elif category[0] in "PSZ" or category == "Cc":
            separating.append(code)
    return _class_of(invisible), _class_of(separating)


def _class_of(codes: list[int]) -> re.Pattern[str]:
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return re.compile("[" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges) + "]+")


def _normalise(text: str) -> bytes:
    lowered = text.lower()
    if not lowered.isascii():
        lowered = _PUNCTUATION.sub(" ", lowered)
    # Newlines inside a text would be taken for borders between texts.
    return lowered.encode("utf-8", errors="replace").replace(b"\n", b" ")


def _words(data: bytes) -> tuple[Int[np.ndarray, " words"], Int[np.ndarray, " words"]]:
    """First byte and byte after the last of every word."""
    inside = np.zeros(len(data) + 2, dtype=np.int8)
    inside[1:-1] = _WORD_BYTES[np.frombuffer(data, dtype=np.uint8)]
    # A step up begins a word, a step down ends it, as at the frame of zeros.
    steps = np.diff(inside)
    return np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)


def span_hashes(
    codes: np.ndarray, starts: Int[np.ndarray, " spans"], ends: Int[np.ndarray, " spans"]
) -> UInt64[np.ndarray, " spans"]:
    """A hash of what stands in each span [start, end) of an array of bytes or code points; spans ascend without overlap.

    Taken piece by piece, so that the memory for a long text is that of its positions.
    """
    hashes = np.empty(len(starts), dtype=np.uint64)
    # Spans by the piece in which they begin, found by bisection.
    borders = np.searchsorted(starts, np.arange(0, len(codes) + _PIECE_CODES, _PIECE_CODES))
    for first, last in pairwise(borders.tolist()):
        if first < last and ends[last - 1] - starts[last - 1] > _PIECE_CODES:
            # The last span of a piece may go on for a whole text.
            last -= 1
            hashes[last] = _long_hash(codes[int(starts[last]) : int(ends[last])])
        if first < last:
            begin = int(starts[first])
            piece = codes[begin : int(ends[last - 1])]
            hashes[first:last] = _piece_hashes(piece, starts[first:last] - begin, ends[first:last] - begin)
    return hashes


def _long_hash(codes: np.ndarray) -> int:
    """The hash of a span that is too long for powers of its places."""
    digest = blake2b(digest_size=8)
    for begin in range(0, len(codes), _PIECE_CODES):
        digest.update(codes[begin : begin + _PIECE_CODES].astype("<u4").tobytes())
    return int.from_bytes(digest.digest(), "little")


def _piece_hashes(
    codes: np.ndarray, starts: Int[np.ndarray, " spans"], ends: Int[np.ndarray, " spans"]
) -> UInt64[np.ndarray, " spans"]:
    # A span's hash does not depend on where it stands: the power of its place is divided out.
    powers, inverses = _powers(1 << max(16, len(codes).bit_length()))
    with np.errstate(over="ignore"):
        terms = codes.astype(np.uint64)
        # Plus one: a code of 0 would leave the hash as it is, however many there are.
        terms += np.uint64(1)
        terms *= powers[: len(codes)]
        sums = np.zeros(len(codes) + 1, dtype=np.uint64)
        np.cumsum(terms, out=sums[1:])
        return scramble((sums[ends] - sums[starts]) * inverses[starts])


@lru_cache(maxsize=2)
def _powers(count: int) -> tuple[UInt64[np.ndarray, " powers"], UInt64[np.ndarray, " powers"]]:
    """Powers of the base and of its inverse modulo 2^64."""
    # An odd base has an inverse modulo 2^64, so a place's power can be divided out.
    inverse = pow(_BYTE_BASE, -1, 1 << 64)
    with np.errstate(over="ignore"):
        up, down = (np.full(count, base, dtype=np.uint64) for base in (_BYTE_BASE, inverse))
        up[0] = down[0] = 1
        return np.cumprod(up, dtype=np.uint64), np.cumprod(down, dtype=np.uint64)


def scramble(values: UInt64[np.ndarray, " values"]) -> UInt64[np.ndarray, " values"]:
    """Spreads every bit over all bits (the finaliser of MurmurHash3, public domain)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(33))) * _MIX[0]
        values = (values ^ (values >> np.uint64(33))) * _MIX[1]
        return values ^ (values >> np.uint64(33))


class NGramSet:
    """A set of n-gram hashes with a fast first look: most n-grams of ordinary text are refused by one table
    access."""

    def __init__(self, hashes: UInt64[np.ndarray, " ngrams"]):
        self.sorted = np.unique(hashes)
        # At least 16 slots per entry, up to 2^28: fewer than 1 in 16 foreign n-grams pass the first look.
        bits = max(16, int(self.sorted.size * 16).bit_length())
        self._mask = np.uint64((1 << min(bits, 28)) - 1)
        self._table = np.zeros(int(self._mask) + 1, dtype=bool)
        self._table[(self.sorted & self._mask).astype(np.int64)] = True

    def find(self, hashes: UInt64[np.ndarray, " ngrams"]) -> Int[np.ndarray, " found"]:
        """Positions in `hashes` of those that are in the set."""
        candidates = np.flatnonzero(self._table[(hashes & self._mask).astype(np.int64)])
        if not candidates.size or not self.sorted.size:
            return np.zeros(0, dtype=np.int64)
        wanted = hashes[candidates]
        # searchsorted may answer one past the end, which is no place.
        places = np.minimum(np.searchsorted(self.sorted, wanted), self.sorted.size - 1)
        return candidates[self.sorted[places] == wanted]
