"""The 25 constraints of the RLVR instruction-following data, by `func_name` (RECIPE H.4; open-instruct of December 2024).

Deviations: the placeholder check counts, where the published one returned a pair and so always paid. A text whose language
cannot be detected fails its language constraint instead of raising. Arguments are checked by name before use.
"""

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

from tasks.verifiers.text_units import count_spans, detect_language
from tasks.verifiers.verdict import Rules, Verdict, is_blank

_WORD = re.compile(r"\b\w+\b")
CAPITALS = re.compile(r"\b[A-Z]+\b")
SENTENCE_BREAK = re.compile(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?|!)\s")
"""The published splitter: white space after . ? or ! unless it follows an abbreviation like "e.g." or "Mr."."""


def _compare(count: int, quantifier: str, target: int, tolerance: int) -> bool:
    """Whether a count is at least, at most or around a target; an unknown quantifier is never met."""
    match quantifier:
        case "at least":
            return count >= target
        case "at most":
            return count <= target
        case "around":
            return abs(count - target) <= tolerance
    return False


def verify_keywords(text: str, keyword_list: list[str]) -> bool:
    """All keywords occur, as substrings in any case."""
    return all(keyword.lower() in text.lower() for keyword in keyword_list)


def verify_keyword_frequency(text: str, word: str, N: int) -> bool:
    """The word occurs exactly N times as a whole word, in any case."""
    return _WORD.findall(text.lower()).count(word.lower()) == N


def validate_forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    """None occurs, not even inside another word."""
    return not any(word.lower() in text.lower() for word in forbidden_words)


def verify_letter_frequency(text: str, letter: str, N: int) -> bool:
    """The letter occurs exactly N times, in this case."""
    if len(letter) != 1:
        # A longer text would be counted as a substring, which no row means.
        raise ValueError(f"letter={letter!r} must be a single character")
    return text.count(letter) == N


def validate_response_language(text: str, language: str) -> bool:
    """langdetect names this language code."""
    return detect_language(text) == language


def verify_paragraph_count(text: str, N: int) -> bool:
    """Exactly N paragraphs between `* * *` dividers, none empty."""
    paragraphs = text.split("* * *")
    return len(paragraphs) == N and all(paragraph.strip() for paragraph in paragraphs)


def validate_word_constraint(text: str, N: int, quantifier: str) -> bool:
    """Words by white space; around is within a tenth, at least 1."""
    return _compare(len(text.split()), quantifier, N, max(1, round(N * 0.1)))


def verify_sentence_constraint(text: str, N: int, quantifier: str) -> bool:
    """Sentences by the published splitter; around is within 1."""
    return _compare(len(SENTENCE_BREAK.split(text)), quantifier, N, 1)


def validate_paragraphs(text: str, N: int, first_word: str, i: int) -> bool:
    """N blocks between blank lines, the i-th (from 1) beginning with a word."""
    blocks = text.split("\n\n")
    return len(blocks) == N and 1 <= i <= N and blocks[i - 1].strip().startswith(first_word)


def verify_postscript(text: str, postscript_marker: str) -> bool:
    """The marker occurs and something follows its first occurrence."""
    _, found, rest = text.partition(postscript_marker)
    return bool(found) and bool(rest.strip())


def validate_placeholders(text: str, N: int) -> bool:
    """At least N square-bracket placeholders on one line each."""
    return count_spans(text, "[", "]") >= N


def verify_bullet_points(text: str, N: int) -> bool:
    """Exactly N lines beginning with * or -."""
    return sum(line.strip().startswith(("*", "-")) for line in text.split("\n")) == N


def validate_title(text: str) -> bool:
    """A title in double angle brackets on one line."""
    return count_spans(text, "<<", ">>") > 0


def validate_choice(text: str, options: list[str]) -> bool:
    """The answer is part of one of the options (as published; today's code asks the reverse)."""
    return any(text in option for option in options)


def validate_highlighted_sections(text: str, N: int) -> bool:
    """At least N stretches between asterisks on one line each."""
    return len(re.findall(r"\*.*?\*", text)) >= N


def validate_sections(text: str, N: int, section_splitter: str) -> bool:
    """The splitter starts exactly N sections; what precedes the first is not one unless it holds text."""
    sections = text.split(section_splitter)
    # What precedes the first splitter is a section only where it holds text.
    if not sections[0].strip():
        sections = sections[1:]
    return len(sections) == N


def validate_json_format(text: str) -> bool:
    """The whole text is JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def validate_repeat_prompt(text: str, original_prompt: str) -> bool:
    """Begins with the prompt, unchanged."""
    return text.startswith(original_prompt)


def validate_two_responses(text: str) -> bool:
    """Exactly one `******` between two different answers."""
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and parts[0] != parts[1]


def validate_uppercase(text: str) -> bool:
    """No lower-case letter."""
    return text == text.upper()


def validate_lowercase(text: str) -> bool:
    """No upper-case letter."""
    return text == text.lower()


def validate_frequency_capital_words(text: str, N: int, quantifier: str) -> bool:
    """Words of ASCII capitals; around means exactly."""
    return _compare(len(CAPITALS.findall(text)), quantifier, N, 0)


def validate_end(text: str, end_phrase: str) -> bool:
    """Ends with the phrase."""
    return text.endswith(end_phrase)


def validate_quotation(text: str) -> bool:
    """Wrapped in double quotation marks."""
    return text.startswith('"') and text.endswith('"')


def validate_no_commas(text: str) -> bool:
    """No comma."""
    return "," not in text


CONSTRAINTS: dict[str, Callable[..., bool]] = {
    function.__name__: function
    for function in (
        verify_keywords,
        verify_keyword_frequency,
        validate_forbidden_words,
        verify_letter_frequency,
        validate_response_language,
        verify_paragraph_count,
        validate_word_constraint,
        verify_sentence_constraint,
        validate_paragraphs,
        verify_postscript,
        validate_placeholders,
        verify_bullet_points,
        validate_title,
        validate_choice,
        validate_highlighted_sections,
        validate_sections,
        validate_json_format,
        validate_repeat_prompt,
        validate_two_responses,
        validate_uppercase,
        validate_lowercase,
        validate_frequency_capital_words,
        validate_end,
        validate_quotation,
        validate_no_commas,
    )
}


def verify_constraint(text: str, ground_truth: str | dict[str, Any], rules: Rules = "correct") -> Verdict:
    """Judge a text by `{"func_name": …, argument: value, …}`, given as JSON or as a dict; None arguments are dropped.

    Arguments which the named function does not have are ignored, because the published rows carry those of all functions.
    An empty answer meets nothing; under the published rules it meets 8 of the 25. Raises ValueError for an unknown function
    or a missing argument.
    """
    truth = json.loads(ground_truth) if isinstance(ground_truth, str) else ground_truth
    name = truth.get("func_name")
    if name not in CONSTRAINTS:
        raise ValueError(f"func_name={name!r} is not a constraint; known are {', '.join(CONSTRAINTS)}")
    # [1:] leaves out the text itself.
    wanted = list(inspect.signature(CONSTRAINTS[name]).parameters)[1:]
    # Published rows carry the arguments of all constraints, most of them None.
    arguments = {key: truth[key] for key in wanted if truth.get(key) is not None}
    missing = [key for key in wanted if key not in arguments]
    if missing:
        raise ValueError(f"constraint {name} lacks {', '.join(missing)}; its row gives {sorted(truth)}")
    # An empty answer would meet every constraint that forbids something.
    if rules == "correct" and is_blank(text):
        return Verdict(False, "", f"{name}: the answer is empty")
    text = text.strip()
    return Verdict(CONSTRAINTS[name](text, **arguments), text, f"{name} {arguments}")
