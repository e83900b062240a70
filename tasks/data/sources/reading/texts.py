"""Plain-text files: one document each, or cut at a separator while they are read.

A file that breaks is one unusable document without a separator; with one it ends the stage, because nobody knows how many it
still holds.
"""

import io
from collections.abc import Iterator

from tasks.data.documents.dolma_files import open_lines
from tasks.data.sources.files.listing import BrokenFileError, SourceFile
from tasks.data.sources.intake import Intake
from tasks.data.sources.reading.lines import ENDS, most_bytes

_BLOCK_BYTES = 1 << 20


def read_text(intake: Intake, file: SourceFile, name: str, separator: str) -> None:
    """The documents of a file; without a separator the file is one."""
    limit = intake.config.max_document_bytes
    with file.open() as raw:
        stream = open_lines(raw, file.name)
        parts = cut_parts(stream, separator.encode(), limit, most_bytes(file))
        for index, (line, data, problem) in enumerate(parts):
            if intake.full:
                return
            if problem.startswith(ENDS) and separator:
                raise BrokenFileError(file.url, problem, index + 1)
            if problem:
                broke = problem.startswith(ENDS)
                intake.reject_problem(problem, data, file=file.url, line_number=line, broke=broke)
                continue
            try:
                # utf-8-sig for the first part only: a byte order mark stands at a file's beginning.
                text = data.decode("utf-8-sig" if index == 0 else "utf-8")
            except UnicodeDecodeError as error:
                # The line of the first bad byte, not of the document's beginning.
                line += data.count(b"\n", 0, error.start)
                intake.reject("not_utf8", str(error), data[error.start :], file=file.url, line_number=line)
                continue
            if text.strip():
                id = f"{name}:{index}" if separator else name
                intake.accept({"text": text}, file=file.url, line_number=line, fallback_id=id)


def cut_parts(stream: io.BufferedReader, separator: bytes, limit: int, most: int) -> Iterator[tuple[int, bytes, str]]:
    """(first line, bytes, problem) of the parts between separators, an empty separator giving one part.

    A part over `limit` bytes is a problem of its own and is not held; the last problem ends the stream.
    """
    held, line, total, skipping = bytearray(), 1, 0, False
    searched = 0
    try:
        while block := stream.read(_BLOCK_BYTES):
            total += len(block)
            held += block
            start = 0
            # What was searched before is not searched again, or a part without separators takes quadratic time.
            while separator and (cut := held.find(separator, max(start, searched))) >= 0:
                if not skipping:
                    yield line, *_bounded(held, start, cut, limit)
                line += held.count(b"\n", start, cut + len(separator))
                start, skipping = cut + len(separator), False
            del held[:start]
            if not skipping and len(held) > limit:
                yield line, *_bounded(held, 0, len(held), limit)
                skipping = True
            # The end of what is held may be the beginning of a separator; the rest of what is skipped is let go.
            searched = max(0, len(held) - len(separator) + 1) if separator else len(held)
            if skipping:
                line += held.count(b"\n", 0, searched)
                del held[:searched]
                searched = 0
            if total > most:
                yield line, b"", f"archive_bomb: more than {most:,} bytes"
                return
    except OSError as error:
        yield line, b"", f"unreadable: {error}"
        return
    if not skipping:
        yield line, bytes(held), ""


def _bounded(held: bytearray, start: int, end: int, limit: int) -> tuple[bytes, str]:
    """A part and the problem with it."""
    if end - start > limit:
        return bytes(held[start : start + 2000]), f"too_long: over {limit:,} bytes"
    return bytes(held[start:end]), ""
