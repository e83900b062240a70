"""The quality and repetition rules of Gopher's MassiveText (Rae et al. 2021, appendix A.1.1, table A1).

DCLM-baseline, OLMo 2's web source, was filtered with them before its classifier. Words stand between white
space; lines and paragraphs are what newlines and blank lines separate. Shares of repeated n-grams count
characters of words, each word once.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from model.config import Config
from tasks.data.filters.judgement import Judgement, document_score

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("•", "‣", "▶", "◀", "◦", "■", "□", "▪", "▫", "–", "-", "*")
_LETTER = re.compile(r"[^\W\d_]")


class GopherQualityRule(Config):
    """Drops texts that do not look like prose."""

    kind: Literal["gopher_quality"] = "gopher_quality"
    min_words: int = Field(default=50, ge=0)
    """Fewest words."""
    max_words: int = Field(default=100_000, ge=1)
    """Most words."""
    min_mean_word_length: float = 3.0
    """Characters."""
    max_mean_word_length: float = 10.0
    """Characters."""
    max_symbol_ratio: float = 0.1
    """Most hash signs, or ellipses, per word."""
    max_bullet_lines: float = 0.9
    """Largest share of lines that begin with a bullet."""
    max_ellipsis_lines: float = 0.3
    """Largest share of lines that end with an ellipsis."""
    min_alphabetic_words: float = 0.8
    """Smallest share of words with a letter."""
    min_stop_words: int = 2
    """Fewest different words of the, be, to, of, and, that, have, with."""


class GopherRepetitionRule(Config):
    """Drops texts that say the same again and again."""

    kind: Literal["gopher_repetition"] = "gopher_repetition"
    max_duplicate_lines: float = 0.30
    """Largest share of lines that occurred before."""
    max_duplicate_paragraphs: float = 0.30
    """Largest share of paragraphs that occurred before."""
    max_duplicate_line_characters: float = 0.20
    """Largest share of characters in such lines."""
    max_duplicate_paragraph_characters: float = 0.20
    """Largest share of characters in such paragraphs."""
    max_top_ngram: dict[int, float] = Field(default_factory=lambda: {2: 0.20, 3: 0.18, 4: 0.16})
    """n -> largest share of characters in the most frequent n-gram."""
    max_duplicate_ngrams: dict[int, float] = Field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )
    """n -> largest share of characters in n-grams that occur more than once."""


def quality_values(text: str) -> dict[str, float]:
    """The measured values of the quality rules, by name."""
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    count, line_count = max(1, len(words)), max(1, len(lines))
    return {
        "words": float(len(words)),
        "mean_word_length": sum(map(len, words)) / count,
        "hash_ratio": text.count("#") / count,
        "ellipsis_ratio": (text.count("...") + text.count("…")) / count,
        "bullet_lines": sum(line.startswith(BULLETS) for line in lines) / line_count,
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines) / line_count,
        "alphabetic_words": sum(_LETTER.search(word) is not None for word in words) / count,
        "stop_words": float(len(STOP_WORDS.intersection(word.lower().strip(".,;:!?\"'()") for word in words))),
    }


def judge_gopher_quality(texts: Sequence[str], rule: GopherQualityRule) -> list[Judgement]:
    """A judgement of each text; the detail names the first limit that it breaks."""
    limits = {
        "words": (rule.min_words, rule.max_words),
        "mean_word_length": (rule.min_mean_word_length, rule.max_mean_word_length),
        "hash_ratio": (0.0, rule.max_symbol_ratio),
        "ellipsis_ratio": (0.0, rule.max_symbol_ratio),
        "bullet_lines": (0.0, rule.max_bullet_lines),
        "ellipsis_lines": (0.0, rule.max_ellipsis_lines),
        "alphabetic_words": (rule.min_alphabetic_words, 1.0),
        "stop_words": (rule.min_stop_words, float(len(STOP_WORDS))),
    }
    return [_judge(text, quality_values(text), limits) for text in texts]


def repetition_values(text: str, rule: GopherRepetitionRule) -> dict[str, float]:
    """The measured values of the repetition rules, by name."""
    values: dict[str, float] = {}
    for name, parts in (("lines", text.splitlines()), ("paragraphs", re.split(r"\n\s*\n", text))):
        kept = [part.strip() for part in parts if part.strip()]
        repeats = [part for part, times in Counter(kept).items() for _ in range(times - 1)]
        values[f"duplicate_{name}"] = len(repeats) / max(1, len(kept))
        values[f"duplicate_{name}_characters"] = sum(map(len, repeats)) / max(1, sum(map(len, kept)))
    words = text.split()
    characters = max(1, sum(map(len, words)))
    for n in rule.max_top_ngram:
        top = Counter(_ngrams(words, n)).most_common(1)
        times = top[0][1] if top else 0
        values[f"top_{n}gram"] = sum(map(len, top[0][0])) * times / characters if times > 1 else 0.0
    for n in rule.max_duplicate_ngrams:
        values[f"duplicate_{n}grams"] = _repeated_characters(words, n) / characters
    return values


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[offset:] for offset in range(n)), strict=False))


def _repeated_characters(words: list[str], n: int) -> int:
    """Characters of words that stand in an n-gram which occurred before, each word once."""
    seen: set[tuple[str, ...]] = set()
    characters, covered = 0, 0
    for start, gram in enumerate(_ngrams(words, n)):
        if gram in seen:
            characters += sum(len(word) for word in words[max(covered, start) : start + n])
            covered = start + n
        seen.add(gram)
    return characters


def judge_gopher_repetition(texts: Sequence[str], rule: GopherRepetitionRule) -> list[Judgement]:
    """A judgement of each text; the detail names the first limit that it breaks."""
    limits = {
        "duplicate_lines": (0.0, rule.max_duplicate_lines),
        "duplicate_paragraphs": (0.0, rule.max_duplicate_paragraphs),
        "duplicate_lines_characters": (0.0, rule.max_duplicate_line_characters),
        "duplicate_paragraphs_characters": (0.0, rule.max_duplicate_paragraph_characters),
        **{f"top_{n}gram": (0.0, limit) for n, limit in rule.max_top_ngram.items()},
        **{f"duplicate_{n}grams": (0.0, limit) for n, limit in rule.max_duplicate_ngrams.items()},
    }
    return [_judge(text, repetition_values(text, rule), limits) for text in texts]


def _judge(text: str, values: dict[str, float], limits: dict[str, tuple[float, float]]) -> Judgement:
    broken = [name for name, (least, most) in limits.items() if not least <= values[name] <= most]
    detail = ""
    if broken:
        least, most = limits[broken[0]]
        detail = f"{broken[0]} is {values[broken[0]]:.3f}, wanted {least:g} to {most:g}"
    return Judgement({name: document_score(text, round(value, 6)) for name, value in values.items()}, detail)
