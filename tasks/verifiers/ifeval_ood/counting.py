"""Constraints `count:` and `ratio:`: how many words, names, numbers or marks, and what share of sentences (see the package)."""

import re
from string import punctuation

from tasks.verifiers.ifeval_ood.english import sentences, word_tokens
from tasks.verifiers.ifeval_ood.word_lists import CONJUNCTIONS, NAMES, NLTK_STOP_WORDS, PRONOUNS

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+")
_JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
"""Hiragana, katakana, and the characters shared with Chinese."""
OVERLAP_TOLERANCE = 2
"""Percentage points on either side."""
WITHOUT_PUNCTUATION = str.maketrans("", "", punctuation)
MARKS = f"{punctuation} "
"""What is taken off a word's ends."""


def words_in_range(text: str, min_words: float, max_words: float) -> bool:
    r"""Between so many words, both included; words are runs of `\w`."""
    return min_words <= len(_WORD.findall(text)) <= max_words


def unique_words(text: str, N: float) -> bool:
    """At least N different words in any case, punctuation at their ends aside. Marks that stand alone are together one word."""
    return len({word.strip(MARKS) for word in text.lower().split()}) >= N


def conjunctions(text: str, small_n: float) -> bool:
    """At least so many coordinating conjunctions. As published, "And", "and" and "and," are three different ones."""
    return len({word for word in text.split() if word.strip(MARKS).lower() in CONJUNCTIONS}) >= small_n


def person_names(text: str, N: float) -> bool:
    """At least N of the listed first names, as whole words in this case."""
    return len(NAMES.intersection(_WORD.findall(text))) >= N


def numbers(text: str, N: float) -> bool:
    """Exactly N numbers; "3.14" and "100,000" are one each, and so is "1-2"."""
    return len(_NUMBER.findall(text.translate(WITHOUT_PUNCTUATION))) == N


def punctuation_marks(text: str) -> bool:
    """All of . , ! ? ; : and besides a "?!", "!?" or interrobang, whose marks do not count for the others."""
    if not any(mark in text for mark in ("?!", "!?", "‽")):
        return False
    rest = text.replace("?!", "", 1)
    rest = text.replace("!?", "", 1) if rest == text else rest
    return all(mark in rest for mark in ".,!?;:")


def japanese_words(text: str, N: float) -> bool:
    """Every Nth word has a Japanese character; numbers and lone marks are let pass there."""
    step = int(N)
    if step < 1:
        raise ValueError(f"N={N} must be at least 1, since every Nth word is judged")
    stripped = (word.strip(MARKS) for word in text.split()[step - 1 :: step])
    return all(not word or word.isdigit() or _JAPANESE.search(word) for word in stripped)


def pronouns(text: str, N: float) -> bool:
    """At least N pronouns, repeated ones too; "she/her" is two."""
    wanted = N
    for token in word_tokens(text.replace("/", " ").lower()):
        # Counting ends early, for the sake of long answers.
        wanted -= token in PRONOUNS
        if wanted <= 0:
            return True
    return wanted <= 0


def keywords_multiple(text: str, keyword1: str, keyword2: str, keyword3: str, keyword4: str, keyword5: str) -> bool:
    """Five words occur exactly 1, 2, 3, 5 and 7 times, as whole words in any case."""
    wanted = {keyword1: 1, keyword2: 2, keyword3: 3, keyword4: 5, keyword5: 7}
    return all(
        len(re.findall(rf"\b{re.escape(keyword.strip())}\b", text, re.IGNORECASE)) == times
        for keyword, times in wanted.items()
    )


def stop_words(text: str, percentage: float) -> bool:
    r"""At most so many per cent of the words (runs of `\w`) are stop words; a text without words fails."""
    words = _WORD.findall(text.lower())
    return bool(words) and 100 * sum(word in NLTK_STOP_WORDS for word in words) / len(words) <= percentage


def sentence_ends(text: str) -> tuple[int, int, int]:
    """Sentences that end with . and ? and !; one that ends with a quotation mark or an emoji is none of them."""
    last = [sentence[-1:] for sentence in sentences(text)]
    return last.count("."), last.count("?"), last.count("!")


def sentence_types(text: str) -> bool:
    """Twice as many sentences end with . as with ? (as published, also none and none)."""
    declarative, interrogative, _ = sentence_ends(text)
    return declarative == 2 * interrogative


def sentence_balance(text: str) -> bool:
    """As many sentences end with . as with ? and with ! (as published, also none of each)."""
    return len(set(sentence_ends(text))) == 1


def overlap(text: str, reference_text: str, percentage: float) -> bool:
    """So many per cent of the text's different trigrams of words are in the reference, 2 points more or less.

    The check of the first release took trigrams of characters; this is the mended one.
    """
    own, reference = trigrams(text), trigrams(reference_text)
    return bool(own) and abs(100 * len(own & reference) / len(own) - percentage) <= OVERLAP_TOLERANCE


def trigrams(text: str) -> set[tuple[str, str, str]]:
    """Different runs of three tokens."""
    tokens = list(word_tokens(text))
    return set(zip(tokens, tokens[1:], tokens[2:], strict=False))


def sentence_words(text: str) -> bool:
    """Three sentences of the same length in characters, no word twice in all of them."""
    found = sentences(text, 4)
    if len(found) != 3 or len({len(sentence.strip()) for sentence in found}) != 1:
        return False
    words = text.lower().translate(WITHOUT_PUNCTUATION).split()
    return len(words) == len(set(words))
