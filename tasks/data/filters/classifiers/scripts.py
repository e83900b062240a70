"""In which script a text is written: what tells languages apart before any model is asked.

Identifiers guess one of the languages they know for a text in any script; a page in a script that they do not know, with a
menu in English, is English to them. Ranges are those of Unicode's blocks. A language that is not listed has Latin letters.
"""

import numpy as np

from tasks.data.filters.batch import TextBatch
from tasks.data.filters.statistics.gopher_quality import is_letter

_RANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": ((0x41, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x400, 0x52F),),
    "Armenian": ((0x530, 0x58F),),
    "Hebrew": ((0x590, 0x5FF),),
    "Arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)),
    "Devanagari": ((0x900, 0x97F),),
    "Bengali": ((0x980, 0x9FF),),
    "Gurmukhi": ((0xA00, 0xA7F),),
    "Gujarati": ((0xA80, 0xAFF),),
    "Tamil": ((0xB80, 0xBFF),),
    "Telugu": ((0xC00, 0xC7F),),
    "Kannada": ((0xC80, 0xCFF),),
    "Malayalam": ((0xD00, 0xD7F),),
    "Thai": ((0xE00, 0xE7F),),
    "Georgian": ((0x10A0, 0x10FF),),
    "Hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)),
    "Japanese": ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF)),
    "Han": ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x20000, 0x323AF)),
}
_NO_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())
_LANGUAGES = {
    "Greek": "el",
    "Cyrillic": "be bg kk ky mk mn ru sr tg tt uk",
    "Armenian": "hy",
    "Hebrew": "he yi",
    "Arabic": "ar fa ps sd ug ur",
    "Devanagari": "hi mr ne sa",
    "Bengali": "as bn",
    "Gurmukhi": "pa",
    "Gujarati": "gu",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Thai": "th",
    "Georgian": "ka",
    "Hangul": "ko",
    "Japanese": "ja",
    "Han": "zh",
}


def script_of(language: str) -> str:
    """The script of a language by its code, such as `Han` for `zh-cn`."""
    code = language.split("-")[0]
    # Languages that are not listed are written in Latin letters.
    return next((script for script, codes in _LANGUAGES.items() if code in codes.split()), "Latin")


def is_in_script(text: str, script: str, share: float) -> bool:
    """Whether so large a share of a text's letters is of a script; True for a text without letters."""
    if text.isascii():
        return script == "Latin" or not _ascii_letters(text)
    if script == "Latin":
        # Most texts have few characters outside ASCII: too few, even if all of them are letters.
        latin = _ascii_letters(text)
        others = len(text) - len(text.encode("ascii", errors="ignore"))
        if latin >= share * (latin + others):
            return True
    codes = TextBatch([text]).codes
    letters = is_letter(codes)
    inside = np.zeros(len(codes), dtype=bool)
    # Blocks of one script may lie far apart, so each range is tested.
    for first, last in _RANGES[script]:
        inside |= (codes >= first) & (codes <= last)
    return bool(np.count_nonzero(inside & letters) >= share * np.count_nonzero(letters))


def _ascii_letters(text: str) -> int:
    return len(text.encode("ascii", errors="ignore").translate(None, _NO_LETTERS))
