"""Documents from files, local or in an object store: Dolma JSON lines, Parquet, plain text (RECIPE C.1).

Work is cut into items by bytes: a long uncompressed JSON-lines file by byte ranges (a line belongs to the
range in which it begins), Parquet by row groups, a compressed file as one stream, short files several to an
item. Every file is read as a stream; what is in memory at once is one document, and that is bounded.
"""

import io
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from infra.workspace import Workspace
from tasks.data.dolma import open_lines
from tasks.data.sources.intake import Intake, SourceConfig
from tasks.data.sources.listing import SourceFile, find_files

LINE_SUFFIXES = (".jsonl", ".json", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
COMPRESSIONS = ("", ".gz", ".zst", ".bz2")
SUFFIXES = (
    *(suffix + compression for suffix in (*LINE_SUFFIXES, *TEXT_SUFFIXES) for compression in COMPRESSIONS),
    ".parquet",
)

EXPECTED_EXPANSION = 4
"""Text bytes per compressed byte, only to put short files together into items of about `shard_bytes`."""
MAX_EXPANSION = 1000
"""A compressed file that grows beyond this factor (and 64 MiB) is an archive bomb: reading stops there."""
MAX_EXPANSION_FROM = 64 << 20
_PARQUET_BATCH = 256

Piece = dict[str, Any]


class LocalSource(SourceConfig):
    """Files of JSON lines (`.gz`, `.zst` and `.bz2` too), Parquet or plain text."""

    kind: Literal["local"] = "local"
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, folders, globs (`**` for any folders) or URLs of them."""
    text_field: str = "text"
    """Field or column that holds the text."""
    id_field: str = "id"
    """Field or column that holds the id; documents without one are named after file and position."""
    text_separator: str = ""
    """What separates the documents of a plain-text file; empty: each file is one document."""
    max_document_bytes: int = Field(default=256_000_000, gt=0)
    """A longer line or text file is kept aside as unusable: it bounds the memory of a worker."""
    files: tuple[SourceFile, ...] = ()
    """The files that `paths` stand for, pinned by content; `resolve` fills them in, so that the identity
    covers them."""


def resolve_local(config: LocalSource) -> LocalSource:
    """The config with its files listed and fingerprinted. Raises ValueError if one is missing, none is found
    or one is of no known kind."""
    files = find_files(config.paths, SUFFIXES)
    for file in files:
        _format(file.name)
    return config.model_copy(update={"files": files})


def _format(name: str) -> str:
    lower = name.lower()
    bare = next((lower[: -len(end)] for end in COMPRESSIONS[1:] if lower.endswith(end)), lower)
    if bare.endswith(LINE_SUFFIXES):
        return "lines"
    if bare.endswith(TEXT_SUFFIXES):
        return "text"
    if lower.endswith(".parquet"):
        return "parquet"
    raise ValueError(f"{name}: no known document format; files must end in one of {', '.join(SUFFIXES)}")


def local_items(config: LocalSource) -> list[dict[str, Any]]:
    """Items of about `shard_bytes` each. Raises ValueError if the config was not resolved."""
    if not config.files:
        raise ValueError(
            f"source {config.name!r} has no `files`; call tasks.data.collect.resolve on it, so that the "
            "artifact's identity covers what is read"
        )
    items: list[list[Piece]] = []
    room = 0
    for index, file in enumerate(config.files):
        for weight, piece in _pieces(file, config.shard_bytes):
            if not items or weight > room:
                items.append([])
                room = config.shard_bytes
            items[-1].append({"file": index, **piece})
            room -= weight
    return [{"item": number, "pieces": pieces} for number, pieces in enumerate(items)]


def _pieces(file: SourceFile, shard_bytes: int) -> Iterator[tuple[int, Piece]]:
    """(text bytes expected, piece) of one file."""
    form = _format(file.name)
    if form == "parquet":
        groups = _row_groups(file)
        for group, size in groups:
            yield size, {"group": group}
    elif form == "lines" and file.name.lower().endswith(LINE_SUFFIXES) and file.size > shard_bytes:
        for start in range(0, file.size, shard_bytes):
            end = min(file.size, start + shard_bytes)
            yield end - start, {"start": start, "end": end}
    else:
        compressed = file.name.lower().endswith(COMPRESSIONS[1:])
        yield file.size * (EXPECTED_EXPANSION if compressed else 1), {}


def _row_groups(file: SourceFile) -> list[tuple[int | None, int]]:
    """(number, bytes) of the row groups; one unnumbered group when the file's metadata cannot be read."""
    try:
        with file.open() as stream:
            metadata = pq.ParquetFile(stream).metadata
            return [(i, metadata.row_group(i).total_byte_size) for i in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError):
        return [(None, file.size)]


def collect_local(ws: Workspace, item: dict[str, Any]) -> dict[str, Any]:
    """Shard function: read the item's pieces."""
    config = LocalSource.model_validate(item["config"])
    intake = Intake(ws, item["item"], config.name, config.shard_bytes)
    for piece in item["pieces"]:
        file = config.files[piece["file"]]
        form = _format(file.name)
        if form == "parquet":
            _read_parquet(intake, config, file, piece["group"])
        elif form == "text":
            _read_text(intake, config, file)
        else:
            _read_lines(intake, config, file, piece.get("start", 0), piece.get("end"))
    return intake.finish()


def _read_lines(intake: Intake, config: LocalSource, file: SourceFile, start: int, end: int | None) -> None:
    """Rows whose lines begin in bytes [start, end) of the decompressed file."""
    limit = config.max_document_bytes
    bad_before = len(intake.bad_rows)
    rename = (config.text_field, config.id_field) != ("text", "id")
    with file.open() as raw:
        stream = open_lines(raw, file.name.lower())
        number = 0
        position = _seek_line(stream, start) if start else 0
        first = position
        try:
            while end is None or position < end:
                line = stream.readline(limit + 1)
                if not line:
                    break
                number += 1
                offset, position = position, position + len(line)
                if len(line) > limit:
                    intake.reject("too_long", f"over {limit:,} bytes", line, file=file.url, line_number=number)
                    position += _skip_line(stream)
                elif line.strip():
                    row = intake.parse(line, file=file.url, line_number=number)
                    if rename:
                        row = renamed(row, config.text_field, config.id_field)
                    if row is not None:
                        id = f"{file.name}:{offset}"
                        intake.accept(row, file=file.url, line_number=number, fallback_id=id)
                if end is None and position > max(MAX_EXPANSION_FROM, MAX_EXPANSION * file.size):
                    detail = f"{position:,} bytes from {file.size:,}"
                    intake.reject("archive_bomb", detail, b"", file=file.url, line_number=number)
                    break
        except OSError as error:
            # Truncated or corrupt compression: what came before it is kept.
            intake.reject("unreadable", str(error), b"", file=file.url, line_number=number + 1)
    if first and len(intake.bad_rows) > bad_before:
        intake.shift_lines(bad_before, _count_lines(file, first))


def _seek_line(stream: io.BufferedReader, start: int) -> int:
    """Move to the first line that begins at or after `start`; returns its offset."""
    stream.seek(start - 1)
    return start - 1 + _skip_line(stream)


def _skip_line(stream: io.BufferedReader) -> int:
    """Read to the end of the current line without keeping it; returns the bytes read."""
    skipped = 0
    while chunk := stream.readline(1 << 20):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


def _count_lines(file: SourceFile, end: int) -> int:
    """Newlines in the first `end` bytes: only read when a bad line must be named."""
    count = 0
    with file.open() as stream:
        while end > 0 and (chunk := stream.read(min(end, 1 << 22))):
            count += chunk.count(b"\n")
            end -= len(chunk)
    return count


def _read_parquet(intake: Intake, config: LocalSource, file: SourceFile, group: int | None) -> None:
    number = 0
    try:
        with file.open() as stream:
            groups = None if group is None else [group]
            for batch in pq.ParquetFile(stream).iter_batches(_PARQUET_BATCH, row_groups=groups):
                for row in batch.to_pylist():
                    number += 1
                    row = renamed(row, config.text_field, config.id_field)
                    id = f"{file.name}:{group}:{number}"
                    intake.accept(row, file=file.url, line_number=number, fallback_id=id)
    except (pa.ArrowException, OSError) as error:
        intake.reject("unreadable", str(error), b"", file=file.url, line_number=number + 1)


def _read_text(intake: Intake, config: LocalSource, file: SourceFile) -> None:
    """A plain-text file, whole or cut at the separator."""
    limit = config.max_document_bytes
    try:
        with file.open() as raw:
            data = open_lines(raw, file.name.lower()).read(limit + 1)
        text = data.decode("utf-8-sig") if len(data) <= limit else ""
    except OSError as error:
        intake.reject("unreadable", str(error), b"", file=file.url, line_number=1)
        return
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        intake.reject("not_utf8", str(error), error.object[error.start :], file=file.url, line_number=line)
        return
    if len(data) > limit:
        intake.reject("too_long", f"over {limit:,} bytes", data, file=file.url, line_number=1)
        return
    parts = text.split(config.text_separator) if config.text_separator else [text]
    for index, part in enumerate(parts):
        if part.strip():
            id = f"{file.name}:{index}" if config.text_separator else file.name
            intake.accept({"text": part}, file=file.url, line_number=1, fallback_id=id)


def renamed(row: Any, text_field: str, id_field: str) -> Any:
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
