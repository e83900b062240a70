"""IFEval's 25 instruction checks and their loose variants (RECIPE I.5; Zhou et al. 2023).

`check(id, kwargs, prompt, text)` judges one instruction, `judge(ids, kwargs, prompt, text)` a whole prompt. Sentences are
NLTK's (see punkt_sentences). Deviation: words in capitals are counted without NLTK (see text_units).
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from tasks.verifiers.punkt_sentences import count_sentences
from tasks.verifiers.text_units import (
    count_capital_words,
    count_spans,
    count_words,
    detect_language,
)
from tasks.verifiers.verdict import is_blank

FIXED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
POSTSCRIPTS = {
    "P.P.S": r"p\.\s?p\.\s?s",
    "P.S.": r"p\.\s?s\.",
}
Arguments = dict[str, Any]


def related(count: int, relation: str, target: int) -> bool:
    """IFEval's two relations."""
    if relation == "less than":
        return count < target
    if relation == "at least":
        return count >= target
    raise ValueError(f"relation {relation!r} is neither 'less than' nor 'at least'")


def pattern(word: str, border: str = "") -> re.Pattern[str]:
    """A keyword as a regular expression, as the official checks read it; one that is none ("(c") stands for itself."""
    try:
        return re.compile(border + word + border, re.IGNORECASE)
    except re.error:
        # The official checks take keywords as patterns; one that is none stands for itself.
        return re.compile(border + re.escape(word) + border, re.IGNORECASE)


def in_language(text: str, code: str) -> bool:
    """By langdetect; a text without detectable language passes."""
    # As published: a text without a detectable language passes.
    return detect_language(text) in (code, None)


def has_paragraphs(text: str, count: int) -> bool:
    """Exactly `count` between `***` dividers; only the first and the last may be empty, and then do not count."""
    paragraphs = re.split(r"\s?\*\*\*\s?", text)
    inner = paragraphs[1:-1]
    if any(not paragraph.strip() for paragraph in inner):
        return False
    return sum(bool(paragraph.strip()) for paragraph in paragraphs) == count


def nth_paragraph_begins(text: str, count: int, nth: int, first_word: str) -> bool:
    """`count` non-empty blocks between blank lines, the nth beginning with a word, punctuation and quotes aside."""
    paragraphs = re.split(r"\n\n", text)
    filled = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if filled != count or not 1 <= nth <= len(paragraphs):
        return False
    words = paragraphs[nth - 1].strip().split()
    if not words:
        return False
    word = words[0].lstrip("'").lstrip('"')
    cut = next((place for place, letter in enumerate(word) if letter in ".,?!'\""), len(word))
    return word[:cut].lower() == first_word.lower()


def has_postscript(text: str, marker: str) -> bool:
    """The marker occurs, with optional spaces inside P.S. and P.P.S."""
    return re.search(POSTSCRIPTS.get(marker, re.escape(marker.lower())), text.lower()) is not None


def count_highlights(text: str) -> int:
    """Non-empty `*…*` and `**…**`."""
    single = sum(bool(found.strip("*").strip()) for found in re.findall(r"\*[^\n\*]*\*", text))
    double = re.findall(r"\*\*[^\n\*]*\*\*", text)
    return single + sum(bool(found.removeprefix("**").removesuffix("**").strip()) for found in double)


def is_json(text: str) -> bool:
    """JSON after removing a code fence."""
    text = text.strip()
    # Longest first, or the fence without a language would leave "json" behind.
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def has_two_responses(text: str) -> bool:
    """Two different non-empty parts between `******`; only the first and the last piece may be empty."""
    pieces = text.split("******")
    if any(not piece.strip() for piece in pieces[1:-1]):
        return False
    filled = [piece.strip() for piece in pieces if piece.strip()]
    return len(filled) == 2 and filled[0] != filled[1]


def has_title(text: str) -> bool:
    """`<<…>>` with something inside, on one line."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        # `end - 2`: the two brackets of the opening must not be those of the closing.
        if 0 <= start < end - 2 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def count_bullets(text: str) -> int:
    """Lines beginning with `* ` (not `**`) or with `-`."""
    lines = [line.lstrip() for line in text.split("\n")]
    stars, place = 0, 0
    while place < len(lines):
        line = lines[place]
        # A lone star takes the line after it: the official pattern lets a line break stand where no second star may.
        lone = line == "*" and place + 1 < len(lines)
        stars += lone or (line[:1] == "*" and line[1:2] not in ("", "*"))
        place += 2 if lone else 1
    return stars + sum(line.startswith("-") for line in lines)


def letter_count_related(text: str, arguments: Arguments) -> bool:
    """Count in any case."""
    letter = arguments["letter"].lower()
    return related(text.lower().count(letter), arguments["let_relation"], arguments["let_frequency"])


def has_no_forbidden(text: str, words: Sequence[str]) -> bool:
    """None as a whole word, in any case."""
    return not any(pattern(word, r"\b").search(text) for word in words)


CHECKS: dict[str, Callable[[str, Arguments], bool]] = {
    "keywords:existence": lambda text, a: all(pattern(word).search(text) for word in a["keywords"]),
    "keywords:frequency": lambda text, a: related(
        len(pattern(a["keyword"]).findall(text)), a["relation"], a["frequency"]
    ),
    "keywords:forbidden_words": lambda text, a: has_no_forbidden(text, a["forbidden_words"]),
    "keywords:letter_frequency": letter_count_related,
    "language:response_language": lambda text, a: in_language(text, a["language"]),
    "length_constraints:number_sentences": lambda text, a: related(
        count_sentences(text, most=max(0, ceil(a["num_sentences"]))), a["relation"], a["num_sentences"]
    ),
    "length_constraints:number_paragraphs": lambda text, a: has_paragraphs(text, a["num_paragraphs"]),
    "length_constraints:number_words": lambda text, a: related(count_words(text), a["relation"], a["num_words"]),
    "length_constraints:nth_paragraph_first_word": lambda text, a: nth_paragraph_begins(
        text, a["num_paragraphs"], a["nth_paragraph"], a["first_word"]
    ),
    "detectable_content:number_placeholders": lambda text, a: count_spans(text, "[", "]") >= a["num_placeholders"],
    "detectable_content:postscript": lambda text, a: has_postscript(text, a["postscript_marker"]),
    "detectable_format:number_bullet_lists": lambda text, a: count_bullets(text) == a["num_bullets"],
    "detectable_format:constrained_response": lambda text, a: any(answer in text.strip() for answer in FIXED_ANSWERS),
    "detectable_format:number_highlighted_sections": lambda text, a: count_highlights(text) >= a["num_highlights"],
    "detectable_format:multiple_sections": lambda text, a: (
        len(re.findall(r"\s?" + re.escape(a["section_spliter"]) + r"\s?\d+\s?", text)) >= a["num_sections"]
    ),
    "detectable_format:json_format": lambda text, a: is_json(text),
    "detectable_format:title": lambda text, a: has_title(text),
    "combination:two_responses": lambda text, a: has_two_responses(text),
    "combination:repeat_prompt": lambda text, a: text.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()),
    "startend:end_checker": lambda text, a: text.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower()),
    "startend:quotation": lambda text, a: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    "change_case:capital_word_frequency": lambda text, a: related(
        count_capital_words(text), a["capital_relation"], a["capital_frequency"]
    ),
    "change_case:english_capital": lambda text, a: text.isupper() and in_language(text, "en"),
    "change_case:english_lowercase": lambda text, a: text.islower() and in_language(text, "en"),
    "punctuation:no_comma": lambda text, a: "," not in text,
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """Per instruction, strict and loose."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]

    @property
    def prompt_strict(self) -> bool:
        return all(self.strict)

    @property
    def prompt_loose(self) -> bool:
        """IFEval's primary metric in OLMES."""
        return all(self.loose)


def check_instruction(instruction: str, arguments: Arguments, text: str) -> bool:
    """One instruction. A blank text fails everything; arguments that are None or empty are dropped, 0 is a number."""
    if instruction not in CHECKS:
        raise ValueError(f"instruction {instruction!r} is unknown; known are {', '.join(CHECKS)}")
    # 0 is an argument, whereas None and empty values were left out of the row.
    given = {key: value for key, value in arguments.items() if value not in (None, "", [], {})}
    try:
        return not is_blank(text) and CHECKS[instruction](text, given)
    except KeyError as missing:
        raise ValueError(f"instruction {instruction} lacks argument {missing}; it was given {sorted(given)}") from None


def loose_variants(text: str) -> list[str]:
    """The eight texts of loose checking: with and without asterisks; whole, without first, last, or both lines."""
    lines = text.split("\n")
    whole = [
        text,
        "\n".join(lines[1:]).strip(),
        "\n".join(lines[:-1]).strip(),
        "\n".join(lines[1:-1]).strip(),
    ]
    return whole + [variant.replace("*", "") for variant in whole]


def judge_instructions(
    instructions: Sequence[str],
    arguments: Sequence[Arguments],
    text: str,
    check: Callable[[str, Arguments, str], bool] = check_instruction,
) -> Judgement:
    """All instructions of a prompt, strictly and loosely (any of the eight variants passes).

    `check(id, arguments, text)` judges one of them; IFEval-OOD has its own.
    """
    # Of a text of one line without asterisks all variants but the text itself are blank; each distinct one is judged once.
    others = [variant for variant in dict.fromkeys(loose_variants(text)) if variant != text and not is_blank(variant)]
    pairs = list(zip(instructions, arguments, strict=True))
    strict = tuple(check(name, kwargs, text) for name, kwargs in pairs)
    loose = tuple(
        passed or any(check(name, kwargs, variant) for variant in others)
        for passed, (name, kwargs) in zip(strict, pairs, strict=True)
    )
    return Judgement(strict, loose)
