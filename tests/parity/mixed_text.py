"""Text of every kind for comparing tokenizers, the same on every call with the same installed packages.

Real: Python sources of the standard library, C and C++ headers of NumPy and PyTorch, the n-gram tables of 55 languages that
langdetect carries. Generated from a seed, because no package brings that much of it: letters of one script in words, CJK
without spaces, emoji with modifiers and joiners, combining marks, control characters, any assigned character of Unicode,
white space of all kinds in runs, and the texts of added tokens, whole, cut and nested. Every fourth piece is a shuffle of
lines from all of these.
"""

import importlib.metadata
import random
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

from model.tokens.dolma2 import ADDED_TOKENS

PIECE_CHARS = 6_000
SEED = 20_241_231
SCRIPTS = {
    "CJK": [(0x4E00, 0x9FFF), (0x3000, 0x303F)], "kana": [(0x3040, 0x30FF)], "hangul": [(0xAC00, 0xD7A3)],
    "rare CJK": [(0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0xF900, 0xFAFF)], "Cyrillic": [(0x400, 0x4FF)],
    "Greek": [(0x370, 0x3FF)], "Arabic": [(0x600, 0x6FF)], "Hebrew": [(0x590, 0x5FF)], "Devanagari": [(0x900, 0x97F)],
    "Thai": [(0xE00, 0xE7F)], "Latin": [(0xC0, 0x24F), (0x1E00, 0x1EFF)], "mathematics": [(0x2200, 0x22FF), (0x1D400, 0x1D7FF)],
}  # fmt: skip
EMOJI = [(0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x2600, 0x27BF)]
MODIFIERS = ["", "", "\ufe0f", "\u200d", "\U0001f3fb", "\U0001f3ff", "\u20e3"]
SPACES = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
ASSIGNED = [chr(point) for point in range(0x110000) if unicodedata.category(chr(point)) not in ("Cs", "Cn", "Co")]


def sources() -> Iterator[str]:
    """Files of code, in the order of their names, again and again."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    for package in ("numpy", "torch"):
        files = importlib.metadata.files(package) or []
        paths += [Path(str(file.locate())) for file in sorted(files, key=str) if file.suffix == ".h"][:1500]
    yield from cycle(pieces(path.read_text("utf-8", errors="replace") for path in paths if path.is_file()))


def languages() -> Iterator[str]:
    """Letters and n-grams of 55 languages, as JSON with the characters themselves."""
    files = importlib.metadata.files("langdetect") or []
    tables = sorted((file for file in files if "profiles" in file.parts), key=str)
    yield from cycle(pieces(Path(str(file.locate())).read_text("utf-8") for file in tables))


def pieces(texts: Iterator[str]) -> list[str]:
    return [text[start : start + PIECE_CHARS] for text in texts for start in range(0, len(text), PIECE_CHARS)]


def letters(chance: random.Random) -> str:
    """Words of one script, digits and punctuation between them; Chinese and its neighbours without spaces."""
    name, ranges = chance.choice(list(SCRIPTS.items()))
    joint = (
        ["", "", "，", "。\n"]
        if name in ("CJK", "kana", "rare CJK", "Thai")
        else [" ", " ", ", ", "-", "'", "\n", " 1234 "]
    )
    words = []
    for _ in range(PIECE_CHARS // 6):
        low, high = chance.choice(ranges)
        words.append(
            "".join(chr(chance.randint(low, high)) for _ in range(chance.randint(1, 9))) + chance.choice(joint)
        )
    return "".join(words)


def emoji(chance: random.Random) -> str:
    return "".join(
        chr(chance.randint(*chance.choice(EMOJI))) + chance.choice(MODIFIERS) + chance.choice(["", "", " ", "a", "\n"])
        for _ in range(PIECE_CHARS // 3)
    )


def anything(chance: random.Random) -> str:
    """Any assigned characters, control characters among them, with runs of white space and contractions."""
    parts = []
    while len(parts) < PIECE_CHARS // 8:
        parts.append("".join(chance.choices(ASSIGNED, k=chance.randint(1, 6))))
        parts.append("".join(chance.choices(SPACES, k=chance.randint(0, 5))))
        parts.append(chance.choice(["", "'LL", "'s ", "12345", "\x00\x07\x1b", "e\u0301\u0323", " ", "\r\n\r\n", "  "]))
    return "".join(parts)


def markers(chance: random.Random) -> str:
    """Texts of added tokens between words: whole, without their last character, and one in another."""
    names = [text for text, _ in ADDED_TOKENS]
    parts = []
    for _ in range(PIECE_CHARS // 20):
        name = chance.choice(names)
        half = len(name) // 2
        parts.append(chance.choice([name, name[:-1], name[:half] + chance.choice(names) + name[half:]]))
        parts.append(chance.choice(["", " ", "\n", "word", "|", "<", " the "]))
    return "".join(parts)


def mixed_texts(megabytes: float) -> Iterator[str]:
    """Pieces of all kinds in turn, so many million bytes of UTF-8."""
    chance = random.Random(SEED)
    code, tables = sources(), languages()
    kinds: list[Callable[[], str]] = [
        lambda: next(code), lambda: letters(chance), lambda: next(code), lambda: shuffled(chance, code, tables),
        lambda: next(tables), lambda: emoji(chance), lambda: anything(chance), lambda: shuffled(chance, code, tables),
        lambda: next(code), lambda: letters(chance), lambda: markers(chance), lambda: shuffled(chance, code, tables),
    ]  # fmt: skip
    size = 0.0
    for kind in cycle(kinds):
        text = kind()
        yield text
        size += len(text.encode()) / 1e6
        if size >= megabytes:
            return


def shuffled(chance: random.Random, code: Iterator[str], tables: Iterator[str]) -> str:
    lines = [
        line for text in (next(code), next(tables), letters(chance), anything(chance)) for line in text.splitlines(True)
    ]
    chance.shuffle(lines)
    return "".join(lines)[:PIECE_CHARS]
