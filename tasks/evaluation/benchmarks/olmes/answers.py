"""Exact match and F1 of generated answers (RECIPE I.3)."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from itertools import permutations

from tasks.verifiers.gsm8k import extract_number, same_number

ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)
GSM8K_IGNORED = (re.compile(r","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


def gsm8k_match(text: str, truth: str) -> tuple[bool, str]:
    """Whether the last number equals the truth after deleting commas, dollars, all up to "#### " and a final full stop.

    Numbers are compared as numbers, so that "-5", "$29.00" and "1,029" are read as written.
    """
    extracted = extract_number(text)
    given, wanted = extracted, truth
    for pattern in GSM8K_IGNORED:
        # Both sides lose the same marks, so that "$1,029." equals 1029.
        given, wanted = pattern.sub("", given), pattern.sub("", wanted)
    return same_number(given, wanted), extracted


def before_stops(text: str, stops: Sequence[str]) -> str:
    """An answer up to the first of the task's stop texts, whoever generated it."""
    # Servers stop at other places than local decoding, so the text is cut here for both.
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def squad_words(text: str) -> list[str]:
    """Lower-cased words without punctuation and articles."""
    text = "".join(letter for letter in text.lower() if letter not in _PUNCTUATION)
    return ARTICLES.sub(" ", text).split()


def squad_match(text: str, references: Sequence[str]) -> float:
    """1 when the normalised words equal those of a reference."""
    return float(any(squad_words(text) == squad_words(reference) for reference in references))


def squad_f1(text: str, references: Sequence[str]) -> float:
    """Token-multiset F1, the best over the references (SQuAD, CoQA, TriviaQA, Jeopardy)."""
    return max((bag_f1(squad_words(text), squad_words(reference)) for reference in references), default=0.0)


def bag_f1(given: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of two multisets; two empty ones are equal."""
    if not given or not wanted:
        # A multiset without words equals only another one without words.
        return float(list(given) == list(wanted))
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def as_number(word: str) -> float | None:
    """The number a word writes, or None."""
    try:
        return float(word)
    except ValueError:
        return None


def drop_word(word: str) -> str:
    """A word of DROP's normal form: numbers as floats, others without punctuation and articles."""
    word = word.lower()
    # A number keeps its point and sign; other words lose their punctuation.
    if as_number(word) is None:
        word = "".join(letter for letter in word if letter not in _PUNCTUATION)
    word = " ".join(ARTICLES.sub(" ", word).split())
    number = as_number(word)
    return word if number is None else str(number)


def drop_bag(span: str) -> frozenset[str]:
    """The set of DROP words of one span."""
    words = (drop_word(word) for word in re.split(r"[ \-]", span))
    return frozenset(word for word in words if word)


def drop_pair(given: frozenset[str], wanted: frozenset[str]) -> float:
    """F1 of two spans as sets; 0 unless they share a number when the gold has one."""
    numbers = {word for word in wanted if as_number(word) is not None}
    # DROP's rule: an answer with the wrong number is wrong, whatever words it shares.
    if numbers and not numbers & given:
        return 0.0
    if not given or not wanted:
        return float(given == wanted)
    return 2 * len(given & wanted) / (len(given) + len(wanted))


MAX_ALIGNED_SPANS = 8
"""DROP answers have at most a handful of spans; beyond this the alignment is greedy."""


def drop_f1(text: str | Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """DROP and Natural Questions F1: spans aligned one to one for the best total, over the larger number of spans;
    two decimals; best over the references, each a list of spans."""
    given = [drop_bag(span) for span in ([text] if isinstance(text, str) else text)]
    best = 0.0
    for reference in references:
        wanted = [drop_bag(span) for span in reference]
        most = max(len(given), len(wanted))
        if most:
            best = max(best, round(best_alignment(given, wanted) / most, 2))
    return best


def best_alignment(given: Sequence[frozenset[str]], wanted: Sequence[frozenset[str]]) -> float:
    """Largest total of pair scores over one-to-one alignments."""
    # The shorter side chooses among the longer one, so every permutation is a full alignment.
    if len(given) > len(wanted):
        scores = [[drop_pair(g, w) for g in given] for w in wanted]
    else:
        scores = [[drop_pair(g, w) for w in wanted] for g in given]
    if not scores:
        return 0.0
    columns = range(len(scores[0]))
    if len(columns) <= MAX_ALIGNED_SPANS:
        return max(
            sum(row[column] for row, column in zip(scores, order, strict=True))
            for order in permutations(columns, len(scores))
        )
    # Beyond eight spans the permutations are too many: the best pairs first, each span once.
    pairs = sorted(((s, r, c) for r, row in enumerate(scores) for c, s in enumerate(row)), reverse=True)
    rows_left, columns_left, total = set(range(len(scores))), set(columns), 0.0
    for score, row, column in pairs:
        if row in rows_left and column in columns_left:
            total += score
            rows_left.remove(row)
            columns_left.remove(column)
    return total


def drop_exact(text: str | Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """1 when the given spans, normalised, are the same set as a reference's."""
    given = {drop_bag(span) for span in ([text] if isinstance(text, str) else text)}
    return float(any(given == {drop_bag(span) for span in reference} for reference in references))
