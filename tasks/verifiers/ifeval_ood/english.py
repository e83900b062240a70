"""English units that the constraints count: sentences, words as NLTK's tokenizer cuts them, stop words, syllables, verbs, emoji.

Sentences are NLTK's (see punkt_sentences), stop words are NLTK's English list, emoji are those of Unicode's property, which the
official checks read from the package `emoji`. Three units are approximations, because their models are not packaged:

* *Words*: NLTK's rules for punctuation and contractions ("don't" is "do" and "n't"), but for rare ones: an apostrophe before a
  single letter stays with it, and opening and closing double quotes are the same token.
* *Syllables*: groups of vowels by rules of spelling; the official checks look most words up (syllapy).
* *Verbs*: a word is one by a list of common verbs and their forms; the official check tags the text (NLTK's perceptron).
  So a noun that is also a verb ("Plan B failed.") counts, and a rare verb does not.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

import regex

from tasks.verifiers.ifeval_ood.word_lists import IRREGULAR_VERB_FORMS, VERBS
from tasks.verifiers.punkt_sentences import split_sentences

LONGEST_ANSWER = 40_000
"""Characters that are cut into sentences and words. An answer of 2,048 tokens has about 10,000; runaway ones shall end soon."""

_TOKEN = re.compile(
    r"""
    \.{2,} | -- | `` | ''                                   # several marks that are one token
    | [;@\#$%&?!*()\[\]{}<>"“”‘’„«»]                        # marks that always stand alone
    | [:,](?!\d)                                            # but not within a number
    | \.(?=[\])}>"'»”’ ]*\s*$)                              # the full stop of the sentence
    | (?: [^\s;@\#$%&?!*()\[\]{}<>"“”‘’„«».:,`'-]           # a word, with what may stand inside one
        | [:,](?=\d) | \.(?!\.|[\])}>"'»”’ ]*\s*$) | -(?!-) | `(?!`) | '(?!') )+
    """,
    re.VERBOSE,
)
_CONTRACTION = re.compile(r"(?<=[^'])(?:n't|'(?:s|m|d|ll|re|ve)?)$", re.IGNORECASE)
LONGEST_CONTRACTION = 4
_WHOLE = {"cannot": 3, "gimme": 3, "gonna": 3, "gotta": 3, "lemme": 3, "wanna": 3, "'tis": 2, "'twas": 2}
"""Words that are two, by the length of the first."""
_EMOJI = regex.compile(r"[\p{Emoji}--[0-9#*\U0001F1E6-\U0001F1FF]]", regex.VERSION1)
"""Digits and letters of flags have the property because longer emoji are made of them; alone they are none."""
_VOWELS = re.compile(r"[aeiouy]+")
_SEPARATE = re.compile(r"[^aeiouyct]ia|[aeiou]ing$|eo$|[^gq]ua[lt]|[^tsxcg]io(?!u)|iu|^scien|[qd]uiet|diet|ism$")
"""Neighbouring vowels that are two syllables, in most words: "giant", "being", "video", "actual", "radio", "stadium"."""


def sentences(text: str, most: int | None = None) -> list[str]:
    """The sentences of a text; the first `most`, where it is given."""
    return list(split_sentences(text[:LONGEST_ANSWER], most))


def word_tokens(text: str) -> Iterator[str]:
    """Words and punctuation marks of a text, sentence by sentence."""
    for sentence in split_sentences(text[:LONGEST_ANSWER]):
        for piece in _TOKEN.findall(sentence):
            if len(piece) > 2:
                yield from _halves(piece)
            else:
                yield piece


def _halves(piece: str) -> tuple[str, ...]:
    """A word cut before its contraction, or the piece itself."""
    if "'" not in piece and piece.lower() not in _WHOLE:
        return (piece,)
    place = _WHOLE.get(piece.lower())
    if place is None:
        # Only the end is looked at, so a runaway "word" costs nothing.
        found = _CONTRACTION.search(piece, max(1, len(piece) - LONGEST_CONTRACTION))
        place = found.start() if found else len(piece)
    return tuple(half for half in (piece[:place], piece[place:]) if half)


def spoken_words(text: str) -> list[str]:
    """Tokens with at least one letter or digit."""
    return [token for token in word_tokens(text) if any(letter.isalnum() for letter in token)]


@lru_cache(maxsize=1 << 14)
def count_syllables(word: str) -> int:
    """Syllables of a word by its spelling; 0 for one without Latin letters. A wordless run such as "brr" is one syllable."""
    word = "".join(letter for letter in word.lower() if "a" <= letter <= "z")
    if not word:
        return 0
    count = len(_VOWELS.findall(word)) + len(_SEPARATE.findall(word))
    # A final e is silent but in "little", where it carries the l.
    silent = word.endswith("e") and not re.search(r"[^aeiouy]le$|[aeiouy]e$", word)
    silent = silent or bool(re.search(r"[^aeiouytd]ed$|[^aeiouyszxcgh]es$", word))
    return max(1, count - silent)


def is_verb(word: str) -> bool:
    """Whether a word is a form of a common verb: "make", "makes", "making", "made". Modal verbs are none, as for the tagger."""
    word = word.lower()
    return word in VERBS or word in IRREGULAR_VERB_FORMS or any(stem in VERBS for stem in _stems(word))


def _stems(word: str) -> Iterator[str]:
    """What a regular form may be made of: "tries" of "try", "planned" of "plan", "making" of "make"."""
    for ending in ("ing", "ed", "es", "s"):
        stem = word.removesuffix(ending)
        # "Bed" is no form of "be".
        if stem != word and len(stem) > 1:
            yield stem
            if ending != "s":
                yield f"{stem}e"
                yield f"{stem[:-1]}y" if stem.endswith("i") else stem
                yield stem[:-1] if stem[-1:] == stem[-2:-1] else stem


def is_emoji(letter: str) -> bool:
    """Whether a single character is an emoji."""
    return _EMOJI.fullmatch(letter) is not None
