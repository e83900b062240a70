"""JSON-lines files (Dolma's format), compressed or not, read as a stream: a line, or a range of lines, at a time.

A line belongs to the byte range in which it begins. What cannot be decompressed ends the file; what came before is kept.
"""

import io
from collections.abc import Iterator
from functools import cache
from typing import Any

from tasks.data.documents.dolma_files import open_lines
from tasks.data.sources.intake import Intake, writable
from tasks.data.sources.listing import SourceFile

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
        stream = open_lines(raw, file.name.lower())
        first = _seek_line(stream, start) if start else 0
        intake.begin(first, cache(lambda: count_lines(file, first)))
        place = {"file": file.url, "line_number": 0}
        for number, (offset, line, problem) in enumerate(cut_lines(stream, first, end, limit, most_bytes(file)), 1):
            place["line_number"] = number
            if problem:
                intake.reject_problem(problem, line, **place)
            elif line.strip():
                row = intake.parse(line, **place)
                if row is not None:
                    row = row if fields == ("text", "id") else renamed(row, *fields)
                    intake.accept(row, **place, fallback_id=f"{name}:{offset}")
    intake.begin()


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


def renamed(row: object, text_field: str, id_field: str) -> object:
    """A row with its text and id under the schema's names; other columns that the schema lacks go into
    metadata."""
    if not isinstance(row, dict):
        return row
    known = {"source", "added", "created", "metadata"}
    rest = {key: value for key, value in row.items() if key not in {text_field, id_field, *known}}
    result = {key: row[key] for key in known if key in row}
    result |= {"text": row.get(text_field), "id": row.get(id_field)}
    if rest:
        metadata = row.get("metadata")
        result["metadata"] = rest | (metadata if isinstance(metadata, dict) else {})
    return result


def table_row(row: dict[str, Any], fields: tuple[str, str]) -> dict[str, Any]:
    """A row of a table under the schema's names, in values that JSON has; the text is left for the intake to repair."""
    named = renamed(row, *fields)
    assert isinstance(named, dict)
    text = named.pop("text")
    return {**writable(named), "text": text}
