"""Counts words, bracketed stretches and languages of a text as the instruction checks do; sentences: `punkt_sentences`.

Deviation: IFEval finds words in capitals with NLTK's word tokenizer. Here they are runs of letters, digits, hyphens and
apostrophes.
"""

import re

from langdetect import DetectorFactory, detect
from langdetect.lang_detect_exception import LangDetectException

DetectorFactory.seed = 0  # langdetect draws random samples; a verdict must not change from run to run

LANGUAGE_CHARACTERS = 10_000
"""langdetect judges by no more."""
_WORD = re.compile(r"\w+")
CASED_WORD = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")


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
