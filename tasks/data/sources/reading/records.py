"""The records of a WARC or WET archive, framed strictly: a head, as many bytes as it says, and the next head.

FastWARC's own iterator looks for the next record where one is broken, so that records are missing without a word. Here an
archive whose framing breaks ends the stage by name (WARC 0.17 to 1.1, ISO 28500).
"""

import io
import re
from collections.abc import Iterator
from typing import NamedTuple

from tasks.data.sources.files.listing import BrokenFileError, SourceFile

MAX_RECORD_BYTES = 17 << 20
"""The body of a longer record is skipped and not held."""
_MAX_HEAD_BYTES = 1 << 20
_VERSION = re.compile(rb"WARC/\d{1,2}\.\d{1,2}\r?\n")
_LENGTH = re.compile(rb"^Content-Length:[ \t]*(\d{1,15})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_TYPE = re.compile(rb"^WARC-Type:[ \t]*([^\r\n]*?)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class ArchiveRecord(NamedTuple):
    """One record."""

    number: int
    """From 1."""
    head: bytes
    """From the version to the empty line."""
    body: bytes
    """Nothing where it is longer than MAX_RECORD_BYTES."""
    length: int
    """Bytes of the body."""

    @property
    def type(self) -> str:
        """`response`, `conversion`, `request`, ... in lower case; "" where the head says none."""
        found = _TYPE.search(self.head)
        return found[1].decode("ascii", errors="replace").lower() if found else ""

    def whole(self) -> bytes:
        """The record as it stands in an archive."""
        return self.head + self.body + b"\r\n\r\n"


def records_of(stream: io.BufferedReader, file: SourceFile, most: int) -> Iterator[ArchiveRecord]:
    """The records of a decompressed archive. BrokenFileError where its framing or its compression breaks."""
    number, size = 1, 0
    while (record := _checked(stream, file, number)) is not None:
        yield record
        number, size = number + 1, size + record.length
        if size > most:
            raise BrokenFileError(file.url, f"archive_bomb: more than {most:,} bytes", number)


def _checked(stream: io.BufferedReader, file: SourceFile, number: int) -> ArchiveRecord | None:
    """The next record; None at the end."""
    try:
        return _next(stream, number)
    except (OSError, ValueError) as error:
        raise BrokenFileError(file.url, str(error), number) from error


def _next(stream: io.BufferedReader, number: int) -> ArchiveRecord | None:
    """The next record; None at the end. ValueError where the framing breaks."""
    # Bounded: a broken archive may have no newline for gigabytes.
    line = stream.readline(100)
    while line in (b"\r\n", b"\n"):
        line = stream.readline(100)
    if not line:
        return None
    if not _VERSION.fullmatch(line):
        raise ValueError(f"a record should begin here, and {line[:40]!r} stands here")
    head = line + _rest_of_head(stream)
    lengths = _LENGTH.findall(head)
    # Two lengths, or none, leave the frame of the record unknown.
    if len(lengths) != 1:
        raise ValueError("the record's head says no length that makes sense")
    length = int(lengths[0])
    body = stream.read(length) if length <= MAX_RECORD_BYTES else b""
    missing = length - len(body) if length <= MAX_RECORD_BYTES else _skip(stream, length)
    if missing:
        raise ValueError(f"the record is cut off: {length - missing:,} of {length:,} bytes are there")
    return ArchiveRecord(number, head, body, length)


def _rest_of_head(stream: io.BufferedReader) -> bytes:
    held = bytearray()
    while len(held) <= _MAX_HEAD_BYTES:
        line = stream.readline(_MAX_HEAD_BYTES)
        held += line
        if line in (b"\r\n", b"\n"):
            return bytes(held)
        if not line.endswith(b"\n"):
            break
    raise ValueError("the record's head has no end")


def _skip(stream: io.BufferedReader, length: int) -> int:
    """Pass over a long body; returns the bytes that are missing."""
    while length > 0 and (block := stream.read(min(length, 1 << 20))):
        length -= len(block)
    return length
