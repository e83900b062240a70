"""The repetition rules of Gopher's MassiveText (Rae et al. 2021, appendix A.1.1, table A1).

Lines and paragraphs are what newlines and blank lines separate. Shares of repeated n-grams count characters of words, each word
once. N-grams are compared as 64-bit hashes, shorter ones first: only where an n-gram occurs twice can a longer one do so.
Deviation: of a text with more than MOST_WORDS words or MOST_LINES lines, the first so many are measured.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt64
from pydantic import Field

from model.config import Config
from tasks.data.filters.attributes import DocumentScores, Limit
from tasks.data.filters.batch import TextBatch, cut_to
from tasks.data.filters.ngrams import WORD_BASE, scramble

MOST_WORDS = 7 << 19
"""Some 21 MB of English; what is measured takes some 200 MB then."""
MOST_LINES = 1 << 19
_NO_PART = 255
_SAMPLE, _MANY = 4096, 256
"""N-grams looked at to find those that make a large share of all, and how many of them are many."""
_PIECE_NGRAMS = 1 << 19
"""N-grams worked on at once; batches of ordinary documents have fewer."""
_BLANK_LINES = re.compile(r"\n\s*\n")


class GopherRepetitionScorer(Config):
    """Measures repeated lines, paragraphs and n-grams."""

    kind: Literal["gopher_repetition"] = "gopher_repetition"
    top_ngrams: tuple[int, ...] = (2, 3, 4)
    """Lengths of which the most frequent n-gram is measured."""
    duplicate_ngrams: tuple[int, ...] = (5, 6, 7, 8, 9, 10)
    """Lengths of which all repeated n-grams are measured."""
    counted: Literal["repeats", "copies"] = "repeats"
    """What counts of lines, paragraphs and n-grams that occur more than once: those that occurred before (Gopher, datatrove), or
    every copy, the first included (DCLM)."""


class GopherRepetitionRule(Config):
    """Drops texts that say the same again and again."""

    kind: Literal["gopher_repetition"] = "gopher_repetition"
    scorer: GopherRepetitionScorer = GopherRepetitionScorer()
    """What is measured."""
    max_duplicate_lines: float = 0.30
    """Largest share of lines that occurred before."""
    max_duplicate_paragraphs: float = 0.30
    """Largest share of paragraphs that occurred before."""
    max_duplicate_line_characters: float = 0.20
    """Largest share of characters in such lines."""
    max_duplicate_paragraph_characters: float = 0.20
    """Largest share of characters in such paragraphs."""
    max_top_ngram: dict[int, float] = Field(default_factory=lambda: {2: 0.20, 3: 0.18, 4: 0.16})
    """n -> largest share of characters in the most frequent n-gram; every n must be among the scorer's."""
    max_duplicate_ngrams: dict[int, float] = Field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )
    """n -> largest share of characters in n-grams that occur more than once; every n must be among the scorer's."""

    def model_post_init(self, _: object) -> None:
        unmeasured = {*self.max_top_ngram} - {*self.scorer.top_ngrams}
        unmeasured |= {*self.max_duplicate_ngrams} - {*self.scorer.duplicate_ngrams}
        if unmeasured:
            raise ValueError(
                f"there are limits for n-grams of {', '.join(map(str, sorted(unmeasured)))} words, which are not measured; add "
                "them to scorer.top_ngrams or scorer.duplicate_ngrams"
            )

    def limits(self) -> tuple[Limit, ...]:
        """All limits, in the order of the paper's table."""
        return (
            Limit("duplicate_lines", 0.0, self.max_duplicate_lines, "share"),
            Limit("duplicate_paragraphs", 0.0, self.max_duplicate_paragraphs, "share"),
            Limit("duplicate_lines_characters", 0.0, self.max_duplicate_line_characters, "share"),
            Limit("duplicate_paragraphs_characters", 0.0, self.max_duplicate_paragraph_characters, "share"),
            *(Limit(f"top_{n}gram", 0.0, most, "share") for n, most in self.max_top_ngram.items()),
            *(Limit(f"duplicate_{n}grams", 0.0, most, "share") for n, most in self.max_duplicate_ngrams.items()),
        )


class Repeats(NamedTuple):
    """Where n-grams stand that occur more than once in their text; parallel arrays, by first word."""

    start: Int[np.ndarray, " repeats"]
    """First word."""
    group: Int[np.ndarray, " repeats"]
    """Number of the n-gram."""
    again: Bool[np.ndarray, " repeats"]
    """Whether it stood before."""


def score_gopher_repetition(batch: TextBatch, scorer: GopherRepetitionScorer) -> DocumentScores:
    """The measured values, by the names of the limits."""
    values: dict[str, list[float]] = {}
    # Bounded: measuring a book of 100 MB whole would take a gigabyte.
    batch = cut_to(batch, MOST_WORDS, MOST_LINES)
    first_too = scorer.counted == "copies"
    parts = [_repeated_parts(text, first_too) for text in batch.texts]
    names = ("lines", "lines_characters", "paragraphs", "paragraphs_characters")
    for number, name in enumerate(names):
        values[f"duplicate_{name}"] = [part[number] for part in parts]
    # Characters of all words before each one, so any run of words is a difference of two sums.
    characters = np.zeros(len(batch.words.start) + 1, dtype=np.int32)
    np.cumsum(batch.words.lengths, dtype=np.int32, out=characters[1:])
    total = np.maximum(batch.sum_by_text(batch.words.lengths), 1)
    for n, repeats in repeated_ngrams(batch, {*scorer.top_ngrams, *scorer.duplicate_ngrams}):
        if n in scorer.top_ngrams:
            values[f"top_{n}gram"] = (_top_characters(batch, repeats, n, characters) / total).tolist()
        if n in scorer.duplicate_ngrams:
            start = repeats.start if first_too else repeats.start[repeats.again]
            values[f"duplicate_{n}grams"] = (_covered_characters(batch, start, n, characters) / total).tolist()
            del start
        del repeats
    return DocumentScores(values)


def _repeated_parts(text: str, first_too: bool) -> tuple[float, float, float, float]:
    """Shares of lines, of their characters, of paragraphs and of theirs that occurred before, or of all that occur again."""
    all_lines = text.splitlines()
    lines = [line for line in map(str.strip, all_lines) if line]
    # Without a repeated line nothing else needs to be counted, which holds for most texts.
    if len(set(lines)) == len(lines):
        # A paragraph that occurs again has lines that do.
        return 0.0, 0.0, 0.0, 0.0
    paragraphs = [text.strip()]
    if len(lines) < len(all_lines):
        paragraphs = [part for part in map(str.strip, _BLANK_LINES.split(text)) if part]
    return *_repeated_shares(lines, first_too), *_repeated_shares(paragraphs, first_too)


def _repeated_shares(parts: list[str], first_too: bool) -> tuple[float, float]:
    # The first copy counts only where the scorer says so.
    repeats = [(times - 1 + first_too, len(part)) for part, times in Counter(parts).items() if times > 1]
    share = sum(times for times, _ in repeats) / max(1, len(parts))
    return share, sum(times * length for times, length in repeats) / max(1, sum(map(len, parts)))


def repeated_ngrams(batch: TextBatch, lengths: set[int]) -> Iterator[tuple[int, Repeats]]:
    """(n, places of the n-grams of n words that occur more than once in their text), one length after another."""
    if not lengths:
        return
    text, words = batch.words.text, batch.word_hashes
    start = np.arange(len(text), dtype=np.int32)
    with np.errstate(over="ignore"):
        # One text needs no salt to be kept apart from others.
        sums = words + batch.salts if len(batch) > 1 else words.copy()
        factor = np.uint64(1)
        for n in range(1, max(lengths) + 1):
            if n > 1:
                factor *= np.uint64(WORD_BASE)
                # Places ascend, so those that no longer fit are the last.
                count = int(np.searchsorted(start, len(text) - (n - 1)))
                start, sums = start[:count], sums[:count]
                if len(batch) > 1:
                    fits = text[start + (n - 1)] == text[start]
                    start, sums = start[fits], sums[fits]
                _add_word(sums, words, start, n - 1, factor)
            if n < min(lengths):
                continue
            start, sums, group, again = _repeated(start, sums)
            if n in lengths:
                yield n, Repeats(start, group, again)
            # Those of one length at a time are held.
            del group, again


def _add_word(
    sums: UInt64[np.ndarray, " ngrams"],
    words: UInt64[np.ndarray, " words"],
    start: Int[np.ndarray, " ngrams"],
    offset: int,
    factor: np.uint64,
) -> None:
    """Add one more word to each of the sums, piece by piece."""
    for begin in range(0, len(sums), _PIECE_NGRAMS):
        piece = slice(begin, begin + _PIECE_NGRAMS)
        sums[piece] += words[start[piece] + offset] * factor


def _repeated(
    start: Int[np.ndarray, " ngrams"], sums: UInt64[np.ndarray, " ngrams"]
) -> tuple[
    Int[np.ndarray, " repeats"],
    UInt64[np.ndarray, " repeats"],
    Int[np.ndarray, " repeats"],
    Bool[np.ndarray, " repeats"],
]:
    """As `_repeated_part`, for many n-grams, partitioned by their sum: equal ones share a partition, so memory is that of one."""
    # Parts are bounded by the values of a byte, of which one marks n-grams that are done.
    parts = min(len(sums) // _PIECE_NGRAMS + 1, _NO_PART)
    if parts == 1:
        return _repeated_part(start, sums)
    part = np.empty(len(sums), dtype=np.uint8)
    for begin in range(0, len(sums), _PIECE_NGRAMS):
        piece = slice(begin, begin + _PIECE_NGRAMS)
        # Scrambled, so that the parts are of like size.
        part[piece] = (scramble(sums[piece]) >> np.uint64(40)) % np.uint64(parts)
    # Written to their places in the text's order, as a single part has them.
    repeated = np.zeros(len(sums), dtype=bool)
    again = np.zeros(len(sums), dtype=bool)
    group = np.zeros(len(sums), dtype=np.int32)
    groups = 0
    for value in _frequent(sums):
        # Equal ones are in one part, which would be as large as all of them.
        same = sums == value
        part[same] = _NO_PART
        again |= same
        # argmax finds the first copy, which is no repeat.
        again[same.argmax()] = False
        repeated |= same
        group[same] = groups
        groups += 1
    for number in range(parts):
        places = np.flatnonzero(part == number).astype(np.int32)
        found, _, numbers, second = _repeated_part(places, sums[places])
        if len(found):
            repeated[found] = True
            again[found], group[found] = second, numbers + groups
            groups += int(numbers.max()) + 1
    return start[repeated], sums[repeated], group[repeated], again[repeated]


def _frequent(sums: UInt64[np.ndarray, " ngrams"]) -> UInt64[np.ndarray, " frequent"]:
    """Sums of which a sample has many, and which therefore occur more than once."""
    # A fixed seed: the sample, and with it the time, is the same in every run.
    sample = sums[np.random.default_rng(0).integers(0, len(sums), _SAMPLE)]
    values, counts = np.unique(sample, return_counts=True)
    values = values[counts > _MANY]
    # A sample draws with replacement, so a single n-gram could be drawn many times.
    return values[[np.count_nonzero(sums == value) > 1 for value in values]] if len(values) else values


def _repeated_part(
    start: Int[np.ndarray, " ngrams"], sums: UInt64[np.ndarray, " ngrams"]
) -> tuple[
    Int[np.ndarray, " repeats"],
    UInt64[np.ndarray, " repeats"],
    Int[np.ndarray, " repeats"],
    Bool[np.ndarray, " repeats"],
]:
    """The n-grams whose sum occurs more than once, with their groups and whether each is not the first of its group."""
    # Most n-grams are alone in their slot of a table and need not be sorted.
    slots = 1 << max(10, (2 * len(sums)).bit_length())
    slot = (scramble(sums) & np.uint64(slots - 1)).view(np.int64)
    # Crowded slots hold all repeats, and a few n-grams that share one by chance.
    crowded = np.bincount(slot, minlength=slots)[slot] > 1
    start, sums = start[crowded], sums[crowded]
    if not len(sums):
        return start, sums, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
    # The default sort is several times faster than the stable one; the smallest place of a group is its first.
    order = np.argsort(sums)
    ordered = sums[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    number = np.cumsum(new) - 1
    first = np.minimum.reduceat(order, np.flatnonzero(new))
    group = np.empty(len(order), dtype=np.int64)
    group[order] = number
    repeated = np.bincount(number)[group] > 1
    again = np.arange(len(order)) != first[group]
    return start[repeated], sums[repeated], group[repeated], again[repeated]


def _top_characters(
    batch: TextBatch, repeats: Repeats, n: int, characters: Int[np.ndarray, " words_and_one"]
) -> np.ndarray:
    """Characters of each text's most frequent n-gram in all its places; of equally frequent ones the first counts.
    `characters` are those of all words before each one."""
    top = np.zeros(len(batch))
    if not len(repeats.start):
        return top
    # One entry per repeated n-gram: its first place.
    first = repeats.start[~repeats.again]
    times = np.bincount(repeats.group)[repeats.group[~repeats.again]]
    text = batch.words.text[first]
    most = np.zeros(len(batch), dtype=np.int64)
    np.maximum.at(most, text, times)
    best = np.flatnonzero(times == most[text])
    # Places ascend, so the first of a text's best comes first.
    best = best[np.unique(text[best], return_index=True)[1]]
    # Characters of one copy, times its copies.
    top[text[best]] = (characters[first[best] + n] - characters[first[best]]) * times[best]
    return top


def _covered_characters(
    batch: TextBatch, start: Int[np.ndarray, " places"], n: int, characters: Int[np.ndarray, " words_and_one"]
) -> np.ndarray:
    """Characters of the words of each text that stand in an n-gram which begins at one of the words `start`."""
    # Places ascend and all are n words long, so each newly covers what lies behind the end of the one before.
    begin = start.copy()
    begin[1:] = np.maximum(start[1:], start[:-1] + n)
    covered = characters[start + n] - characters[begin]
    if len(batch) == 1:
        return np.array([covered.sum(dtype=np.int64)], dtype=np.float64)
    return np.bincount(batch.words.text[start], weights=covered, minlength=len(batch))
