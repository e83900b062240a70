"""JSON-lines files (Dolma's format), compressed or not, read as a stream: a line, or a range of lines, at a time.

A line belongs to the byte range in which it begins. A file that cannot be decompressed to its end, or whose last line is cut
off, ends the stage by name: how many rows it lacks is unknown. What a line holds is told by `line_values.py`.
"""

import codecs
import io
from collections.abc import Iterator
from functools import cache
from typing import Any

from tasks.data.documents.dolma_files import Row, open_lines
from tasks.data.sources.files.listing import BrokenFileError, SourceFile
from tasks.data.sources.intake import Intake, RowPlace
from tasks.data.sources.reading.line_values import Damage, line_values, open_before, whole_row

MAX_EXPANSION = 1000
"""A compressed file that grows beyond this factor (and 64 MiB) is an archive bomb: reading stops there."""
MAX_EXPANSION_FROM = 64 << 20


def most_bytes(file: SourceFile) -> int:
    """How many bytes a file may decompress to."""
    return max(MAX_EXPANSION_FROM, MAX_EXPANSION * file.size)


def read_lines(
    intake: Intake, file: SourceFile, name: str, start: int, end: int | None, fields: tuple[str, str]
) -> None:
    """Rows whose lines begin in bytes [start, end) of the decompressed file; `fields` are those of text and id."""
    limit = intake.config.max_document_bytes
    with file.open() as raw:
        stream = open_lines(raw, file.name)
        first = _seek_line(stream, start) if start else 0
        # Counted only when a line must be named, since it reads all that comes before.
        intake.begin(first, cache(lambda: count_lines(file, first)))
        damage = Damage(lambda: open_before(file, first) if first else False)
        place: RowPlace = {"file": file.url, "line_number": 0}
        for number, (offset, line, problem) in enumerate(cut_lines(stream, first, end, limit, most_bytes(file)), 1):
            place["line_number"] = number
            if offset == 0:
                line = _beginning(line, file)
            if problem.startswith(ENDS):
                raise BrokenFileError(file.url, problem, number)
            row = None if problem else whole_row(line)
            if row is not None:
                damage.close()
                intake.accept(renamed(row, *fields), **place, fallback_id=f"{name}:{offset}")
                if intake.full:
                    break
                continue
            for found in line_values(line, problem, damage, file.url, number):
                intake.repaired += found.repaired
                if found.problem:
                    intake.reject_problem(found.problem, line, **place, rows=found.rows)
                else:
                    row_id = f"{name}:{offset}{found.suffix}"
                    intake.accept(renamed(found.value, *fields), **place, fallback_id=row_id)
            if intake.full:
                break
    intake.begin()


def line_rows(file: SourceFile, limit: int) -> Iterator[tuple[int, Row | None]]:
    """(line, row) of a file of JSON lines; None for each row that is unusable. BrokenFileError as `read_lines`."""
    damage = Damage()
    with file.open() as raw:
        stream = open_lines(raw, file.name)
        for number, (offset, line, problem) in enumerate(cut_lines(stream, 0, None, limit, most_bytes(file)), 1):
            if offset == 0:
                line = _beginning(line, file)
            if problem.startswith(ENDS):
                raise BrokenFileError(file.url, problem, number)
            for found in line_values(line, problem, damage, file.url, number):
                # A broken line may stand for several rows, and each is given as unusable.
                for _ in range(found.rows):
                    yield number, found.value if not found.problem and isinstance(found.value, dict) else None


ENDS = ("unreadable", "archive_bomb")
"""Problems after which a stream gives nothing more."""
_PACKED = {
    b"\x1f\x8b": "gzip (.gz)",
    b"\x28\xb5\x2f\xfd": "Zstandard (.zst)",
    b"\xfd7zXZ\x00": "xz (.xz)",
    b"BZh": "bzip2 (.bz2)",
    b"PAR1": "Parquet (.parquet)",
    b"ARROW1": "Arrow (.arrow)",
}
"""How files of other formats begin."""


def _beginning(line: bytes, file: SourceFile) -> bytes:
    """A file's first line without its byte order mark. BrokenFileError for files that are no JSON lines in UTF-8 at all."""
    packed = next((name for magic, name in _PACKED.items() if line.startswith(magic)), "")
    if packed:
        raise BrokenFileError(file.url, f"it is a {packed} file, and its name does not end so; rename it", 1)
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (
        b"\x00" in line[:4] and line.strip(b"\x00\r\n ")
    ):
        raise BrokenFileError(file.url, "its text is UTF-16 or UTF-32, and JSON lines are UTF-8; convert it", 1)
    line = line.removeprefix(codecs.BOM_UTF8)
    if line.strip() == b"[":
        raise BrokenFileError(file.url, "it is one JSON list over several lines; write one object a line", 1)
    return line


def cut_lines(
    stream: io.BufferedReader, position: int, end: int | None, limit: int, most: int
) -> Iterator[tuple[int, bytes, str]]:
    """(offset, line, problem) of each line; a problem is `reason: detail`, and the last one ends the stream.

    Only reading happens under the handler here: a failure of whoever takes the lines is not one of the input.
    """
    try:
        while end is None or position < end:
            line = stream.readline(limit + 1)
            if not line:
                return
            offset, position = position, position + len(line)
            if len(line) > limit:
                # The rest of a line that is too long is read and not held.
                position += _skip_line(stream, most - position) if not line.endswith(b"\n") else 0
                yield offset, line, f"too_long: over {limit:,} bytes"
            else:
                yield offset, line, ""
            if end is None and position > most:
                yield position, b"", f"archive_bomb: more than {most:,} bytes"
                return
    except OSError as error:
        yield position, b"", f"unreadable: {error}"


def _seek_line(stream: io.BufferedReader, start: int) -> int:
    """Move to the first line that begins at or after `start`; returns its offset."""
    # One byte back: if it is a newline, a line begins exactly at `start`.
    stream.seek(start - 1)
    return start - 1 + _skip_line(stream, None)


def _skip_line(stream: io.BufferedReader, most: int | None) -> int:
    """Read to the end of the current line without keeping it, or a little over `most` bytes; returns the bytes read."""
    skipped = 0
    while (most is None or skipped <= most) and (chunk := stream.readline(1 << 20)):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


def count_lines(file: SourceFile, end: int) -> int:
    """Newlines in the first `end` bytes: only read when a line must be named."""
    count = 0
    if end:
        with file.open() as stream:
            while end > 0 and (chunk := stream.read(min(end, 1 << 22))):
                count += chunk.count(b"\n")
                end -= len(chunk)
    return count


def renamed(row: Any, text_field: str, id_field: str) -> Any:
    """A row with its text and id under the schema's names; other fields keep theirs, for the metadata."""
    if not isinstance(row, dict) or (text_field, id_field) == ("text", "id"):
        return row
    result = {key: value for key, value in row.items() if key not in {text_field, id_field}}
    # A field of the row that has a name of the schema, but is not what the recipe says, keeps its word in the metadata.
    spare = {f"original_{key}": result.pop(key) for key in ("text", "id") if key in result}
    return spare | result | {"text": row.get(text_field), "id": row.get(id_field)}
