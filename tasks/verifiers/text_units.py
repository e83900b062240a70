"""Sentences, words and languages of a text, as the instruction checks count them.

Deviation: IFEval counts sentences with NLTK's Punkt model and words with NLTK's tokeniser, which need a download. Here a
sentence ends at . ! or ? (with closing quotes or brackets) before a space and something that begins a sentence, unless a
known abbreviation or an initial precedes. Words for capitalisation are runs of letters, digits, hyphens and apostrophes.
"""

import re

from langdetect import DetectorFactory, detect
from langdetect.lang_detect_exception import LangDetectException

DetectorFactory.seed = 0  # langdetect draws random samples; a verdict must not change from run to run

ABBREVIATIONS = frozenset({
    *("mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "e.g", "i.e", "fig", "no", "vol", "inc", "ltd"),
    *("co", "corp", "gen", "col", "sgt", "capt", "lt", "rev", "hon", "u.s", "u.k", "p.s", "p.p.s", "a.m", "p.m"),
    *("approx", "dept", "est"),
})  # fmt: skip
"""Words whose full stop does not end a sentence."""

MARKS = re.compile(r"[.!?]+")
CLOSING = re.compile(r"""["'”’)\]]*""")
BLANKS = re.compile(r"\s*")
OPENING = re.compile(r"""["'“‘(\[]*""")
BEGINS = re.compile(r"[A-Z0-9*#\-•]")
"""What a sentence begins with."""
LONGEST_WORD = 16
"""Letters looked at before a full stop: longer words are no abbreviations."""
LANGUAGE_CHARACTERS = 10_000
"""langdetect judges by no more."""
_WORD = re.compile(r"\w+")
CASED_WORD = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")


def count_sentences(text: str) -> int:
    """Sentences of a text; line breaks do not end one. 0 for a blank text."""
    text = text.strip()
    if not text:
        return 0
    count = 1
    for marks in MARKS.finditer(text):
        # Each scan goes on where the last one ended, so that the time is linear in the length.
        place = CLOSING.match(text, marks.end()).end()  # type: ignore[union-attr] # matches nothing at least
        begin = BLANKS.match(text, place).end()  # type: ignore[union-attr]
        follows = OPENING.match(text, begin).end()  # type: ignore[union-attr]
        if begin > place and BEGINS.match(text, follows) and not _abbreviates(text, marks):
            count += 1
    return count


def _abbreviates(text: str, marks: re.Match[str]) -> bool:
    """Whether the marks are the full stop of an abbreviation or an initial."""
    before = text[max(0, marks.start() - LONGEST_WORD) : marks.start()]
    word = "" if not before or before[-1].isspace() else before.split()[-1].lstrip("\"'“‘([").lower()
    # A lone letter is an initial, but "I" ends sentences: "So did I."
    return marks[0] == "." and (word in ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word != "i"))


def count_spans(text: str, opening: str, closing: str) -> int:
    """Stretches from an opening to the next closing text on the same line; they do not overlap."""
    return sum(_spans(line, opening, closing) for line in text.split("\n"))


def _spans(line: str, opening: str, closing: str) -> int:
    count = end = 0
    while (start := line.find(opening, end)) >= 0 and (end := line.find(closing, start + len(opening))) >= 0:
        count, end = count + 1, end + len(closing)
    return count


def count_words(text: str) -> int:
    r"""Runs of `\w`, as IFEval counts words."""
    return len(_WORD.findall(text))


def count_capital_words(text: str) -> int:
    """Words without lower-case letters and with at least one upper-case letter."""
    return sum(word.isupper() for word in CASED_WORD.findall(text))


def detect_language(text: str) -> str | None:
    """ISO 639-1 code by langdetect with a fixed seed; None when the text has no features to judge by."""
    try:
        return detect(text[:LANGUAGE_CHARACTERS])
    except LangDetectException:
        return None
