"""What one line of a JSON-lines file holds: rows, or how many rows its damage made unusable.

Two rows whose line feed was lost are two, one row that a stray line feed cut is one. Files of old systems end their rows with a
carriage return alone, which JSON knows nowhere inside a row. Where nobody can say how many rows a line held (a broken list, a
hole of zeros where a write was lost, rows that are together too long), the stage ends with the file's name.
"""

import io
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import orjson

from infra.json_values import JsonObject
from tasks.data.sources.files.listing import BrokenFileError, SourceFile
from tasks.data.sources.intake import is_rounded, parse_line

_GLUED = re.compile(rb"\}(?:\xef\xbb\xbf|[^,\[\]:\"{}])?\{\"[^\"\\]*\"\s*:")
"""The end of an object and the beginning of another with at most one byte between that is no separator of JSON, or a byte order
mark: two rows."""
_LIST = re.compile(rb"\s*\[\s*\{")
_HOLE = bytes(8)
"""More zeros at a place than damage of a byte makes."""
_BACK_BYTES = 16 << 20
"""Before a byte range, how far the beginning of a row is looked for that a stray line feed cut."""


class Found(NamedTuple):
    """A row of a line, or the problem with it."""

    value: Any
    problem: str
    """`reason: detail`, or ""."""
    rows: int = 1
    """How many rows the problem makes unusable; none for a line that goes on with a row that is counted already."""
    suffix: str = ""
    """What tells a row from the others of its line."""
    repaired: bool = False


class Damage:
    """How many rows were lost in lines that are no JSON."""

    def __init__(self, open_before: Callable[[], bool] = lambda: False) -> None:
        self._open: bool | None = None
        """Whether the line before was broken within a row, so that this one may go on with it; None for the first line."""
        self._open_before = open_before

    def close(self) -> None:
        """A whole line was read."""
        self._open = False

    def is_open(self) -> bool:
        """Whether the line before was broken within a row. What stands before the first line is only looked at when asked."""
        if self._open is None:
            self._open = self._open_before()
        return self._open

    def rows(self, line: bytes) -> int:
        """The rows that begin in a broken line."""
        line = line.strip()
        goes_on = not line.startswith(b"{") and self.is_open()
        # Open where the line begins an object, or goes on with one, and does not end it.
        self._open = (goes_on or line.startswith(b"{")) and not line.endswith(b"}")
        # A line that goes on with an earlier row begins none itself.
        return 1 - goes_on + len(_GLUED.findall(line))


def whole_row(line: bytes) -> JsonObject | None:
    """The row of a line that is one object and nothing else, as nearly all lines are; None for all others."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and not is_rounded(value) else None


def line_values(line: bytes, problem: str, damage: Damage, url: str, number: int) -> Iterator[Found]:
    """What a line holds; nothing for a blank one. `problem` is that of a line that is too long, of which `line` is the beginning.

    Raises BrokenFileError where the number of its rows cannot be told.
    """
    if problem:
        _check_long(line, problem, url, number)
        yield Found(None, problem)
        return
    if not line.strip():
        return
    value, problem, repaired = parse_line(line)
    # Whole again: what was broken before ends here.
    if not problem:
        damage.close()
        yield from _rows(value, repaired)
        return
    # Files of old systems end rows with a carriage return alone.
    parts = [part for part in line.split(b"\r") if part.strip()]
    if len(parts) == 1:
        yield _broken(line, problem, damage, url, number)
        return
    for index, part in enumerate(parts):
        # Only the last part can be cut off; the others were ended by their carriage return.
        last = index == len(parts) - 1 and not line.endswith((b"\n", b"\r"))
        found = line_values(part if last else part + b"\n", "", damage, url, number)
        yield from (one._replace(suffix=f":{index}{one.suffix}") for one in found)


def _broken(line: bytes, problem: str, damage: Damage, url: str, number: int) -> Found:
    """A line that is no JSON."""
    if is_cut_off(line):
        raise BrokenFileError(url, f"its last line is cut off, {problem}", number)
    if _HOLE in line or not line.strip(b"\x00\r\n "):
        raise BrokenFileError(url, "zeros stand where rows were: what was written there is lost", number)
    if line.strip() == b"{":
        raise BrokenFileError(url, "a row stands over several lines; write one object a line", number)
    if _LIST.match(line) and not damage.is_open():
        raise BrokenFileError(url, f"a list of rows cannot be read, {problem}", number)
    return Found(None, problem, damage.rows(line))


def _check_long(beginning: bytes, problem: str, url: str, number: int) -> None:
    """BrokenFileError for a line that is too long to be held and is more than one row."""
    if _LIST.match(beginning) or _GLUED.search(beginning):
        raise BrokenFileError(
            url, f"{problem}, and the line holds several rows; write one object a line, each with a line feed", number
        )


def is_cut_off(line: bytes) -> bool:
    """Whether a line that is no JSON is the last one of a file that lacks its end."""
    return not line.endswith(b"\n") and line.lstrip().startswith(b"{") and not line.rstrip().endswith(b"}")


def _rows(value: Any, repaired: bool) -> Iterator[Found]:
    """The rows of a line that was read: a list with an object in it holds several."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield from (Found(item, "", 1, f":{index}", repaired and not index) for index, item in enumerate(value))
    else:
        yield Found(value, "", 1, "", repaired)


def open_before(file: SourceFile, end: int) -> bool:
    """Whether the line that ends at a byte was broken within a row."""
    start = max(0, end - _BACK_BYTES)
    with file.open() as stream:
        stream.seek(start)
        before = stream.read(end - start)
    lines = list(io.BytesIO(before))
    # From the last line back: the nearest one that begins an object.
    first = next((place for place in range(len(lines) - 1, -1, -1) if lines[place].lstrip().startswith(b"{")), None)
    damage = Damage()
    if first is None:
        return False
    for line in lines[first:]:
        if parse_line(line)[1]:
            damage.rows(line)
        else:
            damage.close()
    return damage.is_open()
