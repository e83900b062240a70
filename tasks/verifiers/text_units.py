"""Sentences, words and languages of a text, as the instruction checks count them.

Deviation: IFEval counts sentences with NLTK's Punkt model and words with NLTK's tokeniser, which need a download. Here a
sentence ends at . ! or ? (with closing quotes or brackets) before a space and something that begins a sentence, unless a
known abbreviation or an initial precedes; words for capitalisation are runs of letters, digits, hyphens and apostrophes.
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

SENTENCE_END = re.compile(r"""(?P<word>\S*?)(?P<mark>[.!?]+)["'”’)\]]*\s+(?=["'“‘(\[]*[A-Z0-9*#\-•])""")
WORD = re.compile(r"\w+")
CASED_WORD = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")


def count_sentences(text: str) -> int:
    """Sentences of a text; line breaks do not end one. 0 for a blank text."""
    text = text.strip()
    if not text:
        return 0
    count = 1
    for match in SENTENCE_END.finditer(text):
        word = match["word"].lstrip("\"'“‘([").lower()
        initial = len(word) == 1 and word.isalpha() and word != "i"
        if match["mark"] != "." or not (word in ABBREVIATIONS or initial):
            count += 1
    return count


def count_words(text: str) -> int:
    r"""Runs of `\w`, as IFEval counts words."""
    return len(WORD.findall(text))


def count_capital_words(text: str) -> int:
    """Words without lower-case letters and with at least one upper-case letter."""
    return sum(word.isupper() for word in CASED_WORD.findall(text))


def detect_language(text: str) -> str | None:
    """ISO 639-1 code by langdetect with a fixed seed; None when the text has no features to judge by."""
    try:
        return detect(text)
    except LangDetectException:
        return None
