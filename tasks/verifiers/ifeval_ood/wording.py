"""Constraints `words:` and `sentence:`: which letters, lengths, places and repetitions words may have (see the package)."""

import re
from collections import Counter
from itertools import pairwise
from string import ascii_lowercase, punctuation, whitespace

from tasks.verifiers.ifeval_ood.counting import MARKS, WITHOUT_PUNCTUATION
from tasks.verifiers.ifeval_ood.english import count_syllables, is_verb, sentences, spoken_words, word_tokens

_CLUSTER = re.compile(r"[bcdfghjklmnpqrstvwxyz]{2}")
PRIMES = frozenset((2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97))
"""Below 100; a longer word fails, whatever its length."""


def bare_words(text: str) -> list[str]:
    """Words by white space, without ASCII punctuation anywhere in them; marks alone are no words."""
    return text.translate(WITHOUT_PUNCTUATION).split()


def alphabet(text: str) -> bool:
    """Each word begins with the letter after the one before; a follows z. The first begins with any letter from a to z."""
    first = [word[0].lower() for word in bare_words(text)]
    if not first or first[0] not in ascii_lowercase:
        return False
    start = ascii_lowercase.index(first[0])
    return all(letter == ascii_lowercase[(start + place) % 26] for place, letter in enumerate(first))


def three_vowels(text: str) -> bool:
    """One line with at most three different vowels of a, e, i, o, u."""
    return "\n" not in text.strip() and len(set("aeiou").intersection(text.lower())) <= 3


def consonant_clusters(text: str) -> bool:
    """Every word by white space has two consonants in a row; y is a consonant."""
    return all(_CLUSTER.search(word) for word in text.lower().split())


def palindromes(text: str) -> bool:
    """At least 10 words of 5 letters or more that read the same backwards; the same one may be repeated."""
    return sum(len(word) >= 5 and word == word[::-1] for word in bare_words(text.lower())) >= 10


def prime_lengths(text: str) -> bool:
    """Every word's length is a prime below 100."""
    return all(len(word) in PRIMES for word in bare_words(text))


def starts_with_verb(text: str) -> bool:
    """The first word is a verb; a mark before it fails."""
    return is_verb(next(word_tokens(text), ""))


def repeats(text: str, small_n: float) -> bool:
    """No word more than so many times, in any case."""
    return max(Counter(bare_words(text.lower())).values(), default=0) <= small_n


def odd_even_syllables(text: str) -> bool:
    """Words with odd and even numbers of syllables take turns."""
    odd = (count_syllables(word) % 2 for word in bare_words(text))
    return all(one != other for one, other in pairwise(odd))


def last_first(text: str) -> bool:
    """Each sentence begins with the last word of the one before, in any case. Marks at a sentence's ends are no part of words."""
    for one, other in pairwise(sentences(text)):
        before, after = one.rstrip(MARKS).split(), other.lstrip(MARKS).split()
        if not before or not after or before[-1].lower() != after[0].lower():
            return False
    return True


def paragraph_last_first(text: str) -> bool:
    """Each line with a word ends with the word it begins with, in any case; marks at the line's ends are no part of words."""
    lines = (line.strip().lower().strip(MARKS).split() for line in text.split("\n"))
    return all(words[0] == words[-1] for words in lines if words)


def no_consecutive(text: str) -> bool:
    """No two words in a row begin with the same letter."""
    return all(one[0] != other[0] for one, other in pairwise(bare_words(text.lower())))


def keyword_position(text: str, keyword: str, n: float, m: float) -> bool:
    """The m-th word of the n-th sentence is the keyword, in any case; "don't" is two words, marks are none."""
    found = sentences(text, int(n))
    words = spoken_words(found[int(n) - 1]) if len(found) >= n else []
    return len(words) >= m and words[int(m) - 1].lower() == keyword.strip().lower()


def second_words(text: str, keyword: str) -> bool:
    """The second word and the last but one are the keyword, in any case; marks are no words."""
    words = spoken_words(text)
    return len(words) >= 2 and words[1].lower() == words[-2].lower() == keyword.strip().lower()


def alliteration_increment(text: str) -> bool:
    """Each sentence has more words next to one with the same first letter than the sentence before.

    A run of k such words counts k, and all runs of a sentence count together. The first sentence may have none.
    """
    before = -1
    for sentence in sentences(text):
        first = [word.lstrip(MARKS)[:1] for word in sentence.lower().split()]
        same = [one == other for one, other in pairwise(letter for letter in first if letter)]
        # A run begins with two words, and each further pair adds one.
        count = sum(same) + sum(pair and not previous for previous, pair in pairwise([False, *same]))
        if count <= before:
            return False
        before = count
    return True


def sentence_keyword(text: str, word: str, N: float) -> bool:
    """The N-th sentence has the keyword, as a whole word in any case."""
    found = sentences(text, int(N))
    return len(found) >= N and re.search(rf"\b{re.escape(word)}\b", found[int(N) - 1], re.IGNORECASE) is not None


def sentence_increment(text: str, small_n: float) -> bool:
    """Each sentence has exactly so many words more than the one before."""
    counts = [len(bare_words(sentence)) for sentence in sentences(text)]
    return all(after == before + small_n for before, after in pairwise(counts))


def sentence_alphabet(text: str) -> bool:
    """26 sentences that begin with a to z in any case, marks before the first word aside."""
    found = sentences(text, 27)
    first = [sentence.lstrip(punctuation + whitespace)[:1].lower() for sentence in found]
    return first == list(ascii_lowercase)
