"""The one reader of documents: any file of a known format, wherever it is, cut into pieces and read into an intake.

Work is cut into items by bytes. A long uncompressed JSON-lines file is cut into byte ranges; a line belongs to the range in
which it begins. A long Parquet file is cut by the row groups that begin in a range. A compressed file is one stream, and
short files share an item. An item carries its own pieces and nothing of the others, and nothing is opened to make it. Files
are read as streams row by row; what is in memory at once is one document or a small batch, and that is bounded. No schema of
one file, or of the beginning of one, is asked of the next rows.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypedDict

from infra.workspace import ShardItem, Workspace
from tasks.data.sources.files.listing import SourceFile
from tasks.data.sources.intake import Intake, IntakeCounts, SourceConfig
from tasks.data.sources.reading.formats import format_of, is_compressed
from tasks.data.sources.reading.lines import read_lines
from tasks.data.sources.reading.pages import read_archive, read_page
from tasks.data.sources.reading.tables import block_ranges, read_table
from tasks.data.sources.reading.texts import read_text

EXPECTED_EXPANSION = 4
"""Text bytes per compressed byte, only to put short files together into items of about `shard_bytes`."""
MOST_FILES = 1000
"""Of an item, so that thousands of empty or tiny files are no single task."""


class ByteSpan(TypedDict):
    """A byte range of a file; without an end it goes to the file's."""

    start: int
    end: int | None


class FilePiece(ByteSpan):
    """What an item reads of one file."""

    file: dict[str, object]
    """A SourceFile."""
    name: str
    """What documents without an id are named after."""
    limit: int | None
    """Rows that are wanted; None for all."""


def file_items(files: Sequence[SourceFile], shard_bytes: int, limits: Sequence[int | None] = ()) -> list[ShardItem]:
    """Items of about `shard_bytes` each; `limits` are the rows wanted of each file (0: it is not read)."""
    items: list[list[FilePiece]] = []
    room = 0
    named = Counter(file.name for file in files)
    for index, file in enumerate(files):
        limit = limits[index] if limits else None
        # A limit dealt to many files gives some of them nothing.
        if limit == 0:
            continue
        # Files of several folders may share a name; documents are named after it.
        name = file.name if named[file.name] == 1 else f"{index}/{file.name}"
        plain = file.model_dump(mode="json")
        for weight, span in _spans(file, shard_bytes, limit):
            # A new item where this piece does not fit, or where an item of tiny files is long enough.
            if not items or weight > room or len(items[-1]) >= MOST_FILES:
                items.append([])
                room = shard_bytes
            items[-1].append({"file": plain, "name": name, "limit": limit, **span})
            room -= weight
    return [{"item": number, "pieces": pieces} for number, pieces in enumerate(items)]


def listed_bytes(items: Sequence[ShardItem]) -> list[int] | None:
    """Bytes of the files that each item reads, as they were listed; None for items of another kind, or where nobody knows."""
    sizes = [
        sum((piece["end"] or piece["file"]["size"]) - piece["start"] for piece in item.get("pieces", ()))
        for item in items
    ]
    return sizes if sum(sizes) else None


def _spans(file: SourceFile, shard_bytes: int, limit: int | None) -> Iterator[tuple[int, ByteSpan]]:
    """(text bytes expected, byte range) of one file's pieces; a file of which only some rows are wanted is one piece."""
    form = format_of(file.name)
    # A Parquet file's pages are compressed by themselves.
    packed = is_compressed(file.name) or form == "parquet"
    if limit is None and form == "parquet":
        for start, end in block_ranges(file.size, shard_bytes // EXPECTED_EXPANSION):
            yield EXPECTED_EXPANSION * ((end or file.size) - start), {"start": start, "end": end}
    elif limit is None and form == "lines" and not packed and file.size > shard_bytes:
        # Ranges are cut without looking: a line belongs to the range in which it begins.
        for start in range(0, file.size, shard_bytes):
            end = min(file.size, start + shard_bytes)
            yield end - start, {"start": start, "end": end}
    else:
        yield file.size * (EXPECTED_EXPANSION if packed else 1), {"start": 0, "end": None}


def collect_pieces(
    ws: Workspace, item: ShardItem, config: SourceConfig, fields: tuple[str, str], separator: str
) -> IntakeCounts:
    """Read an item's pieces; `fields` are those of text and id, `separator` cuts plain text. Returns the intake's counts."""
    intake = Intake(ws, item["item"], config)
    for piece in item["pieces"]:
        file = SourceFile.model_validate(piece["file"])
        intake.reading(file, piece["limit"])
        read_piece(intake, file, piece["name"], piece["start"], piece["end"], fields, separator)
    return intake.finish()


def read_piece(
    intake: Intake,
    file: SourceFile,
    name: str,
    start: int,
    end: int | None,
    fields: tuple[str, str],
    separator: str,
) -> None:
    """Read a byte range of a file by its format."""
    form = format_of(file.name)
    if form == "text":
        read_text(intake, file, name, separator)
    elif form == "page":
        read_page(intake, file, name)
    elif form == "archive":
        read_archive(intake, file, name)
    elif form == "lines":
        read_lines(intake, file, name, start, end, fields)
    else:
        read_table(intake, file, name, start, end, fields)
