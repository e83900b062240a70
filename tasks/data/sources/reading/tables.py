"""Parquet and Arrow files, read block by block (row groups, record batches) and within one by small batches of rows.

A block that breaks makes all its rows unusable; their number is the footer's. So the first row of a block is given when its
last one has been decoded; until then the columns wait in memory, and a long block in a file without a name. A file whose own
index of blocks is broken ends the stage by name. Columns may have any types: what JSON has no form for becomes text.
"""

import io
from collections.abc import Iterator, Sequence
from tempfile import SpooledTemporaryFile
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data.documents.dolma_files import Row
from tasks.data.sources.files.listing import BrokenFileError, SourceFile
from tasks.data.sources.intake import Intake, RowPlace, writable
from tasks.data.sources.reading.lines import most_bytes, renamed

_BATCH_BYTES = 8 << 20
"""Text of a batch on average, bytes."""
_BATCH_ROWS = 64
_HELD_BYTES = 32 << 20
"""Of a decoded block that wait in memory; more waits on the disk."""
_UNREADABLE = (pa.ArrowException, OSError, OverflowError, ValueError, MemoryError)
"""What pyarrow raises for content that it cannot read; a damaged length asks for more memory than there is."""
_NO_VALUE = (pa.ArrowException, ValueError, OverflowError, TypeError, KeyError)
"""What pyarrow raises for a value that Python has no form for: a date after the year 9999, an unknown time zone."""
_ARROW_FILE = b"ARROW1"
_ARROW_BETWEEN_BYTES = 64
"""Between the last batch and the footer: a sign of the end and padding."""
_PARQUET = b"PAR1"
"""How a Parquet file begins and ends."""
_BETWEEN_BYTES = 64 << 20
"""Indexes of pages that are searched for another file's end."""

_Found = tuple[int, int, Row, str, int]
"""Block, row in it from 1, the row, the problem or "", rows that the problem makes unusable."""


def read_table(
    intake: Intake, file: SourceFile, name: str, start: int, end: int | None, fields: tuple[str, str]
) -> None:
    """Rows of the blocks that begin in bytes [start, end) of the file; `fields` are the columns of text and id."""
    before, most = intake.bytes, most_bytes(file)
    for group, number, row, problem, rows in table_rows(file, start, end, limit=intake.room):
        place: RowPlace = {"file": file.url, "line_number": number, "group": group}
        # A row with a problem has no fields to rename.
        row, problem = (table_row(row, fields), problem) if not problem else (row, problem)
        if not problem and isinstance(row["text"], bytes):
            row["text"], problem = _decoded(row["text"])
        if problem:
            intake.reject_problem(problem, b"", **place, rows=rows, broke=problem.startswith("unreadable"))
        else:
            intake.accept(row, **place, fallback_id=f"{name}:{group}:{number}")
        if intake.full:
            return
        if intake.bytes - before > most:
            raise BrokenFileError(file.url, f"archive_bomb: more than {most:,} bytes", number)


def table_row(row: Row, fields: tuple[str, str]) -> Row:
    """A row of a table under the schema's names, in values that JSON has; the text is left for the intake to repair."""
    named = dict(renamed(row, *fields))
    text, id = named.pop("text", None), named.get("id")
    if isinstance(id, bytes):
        named["id"] = _id_text(id)
    return {**writable(named), "text": text}


def _id_text(id: bytes) -> str:
    """An id of bytes: as text, or its digits where it is a hash or such and no text."""
    try:
        return id.decode("utf-8")
    except UnicodeDecodeError:
        return id.hex()


def _decoded(text: bytes) -> tuple[str | None, str]:
    try:
        return text.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return None, f"not_utf8: {error}"


def table_rows(
    file: SourceFile, start: int = 0, end: int | None = None, *, limit: float = float("inf")
) -> Iterator[_Found]:
    """The rows of a Parquet or Arrow file's blocks that begin in bytes [start, end); no more than `limit` need to be whole."""
    # Opening is not under a handler: a store that does not answer is no bad content.
    with file.open() as stream:
        if file.name.lower().endswith(".parquet"):
            yield from _parquet_rows(stream, file, start, end, limit)
        else:
            yield from _arrow_rows(stream, file)


def _parquet_rows(
    stream: io.BufferedReader, file: SourceFile, start: int, end: int | None, limit: float
) -> Iterator[_Found]:
    try:
        # Checksums of pages are verified: a flipped bit would be a wrong text without an error.
        table = pq.ParquetFile(stream, buffer_size=1 << 20, page_checksum_verification=True)
        # Arrow keeps the schema of who wrote the file next to Parquet's own; a broken one must not hide the columns.
        metadata = table.metadata
        groups = [number for number in range(metadata.num_row_groups) if _begins_in(metadata, number, start, end)]
        _check_counts(metadata)
        _check_alone(stream, file, metadata)
    except _UNREADABLE as error:
        raise BrokenFileError(file.url, f"its footer cannot be read ({error})", 1) from error
    for group in groups:
        # The limit is asked before a group is decoded.
        if limit <= 0:
            return
        rows = metadata.row_group(group).num_rows
        # Rows wait until the group is whole; a group that breaks at its end would else be counted twice.
        with SpooledTemporaryFile(max_size=_HELD_BYTES) as held:
            try:
                _hold(_whole_batches(table, group, limit), held)
            except _BlockError as error:
                yield group, 1, {}, f"unreadable: {error}", rows
            else:
                yield from ((group, number, row, problem, 1) for number, (row, problem) in enumerate(_held(held), 1))
        limit -= rows


class _BlockError(Exception):
    """A block of a table broke."""


def _whole_batches(table: pq.ParquetFile, group: int, limit: float) -> Iterator[pa.RecordBatch]:
    """The batches of a row group, as far as `limit` rows; _BlockError when it cannot be read or has not as many rows as it
    says."""
    wanted, given = table.metadata.row_group(group).num_rows, 0
    batches = table.iter_batches(_rows_at_once(table.metadata, group), row_groups=[group])
    while given < min(wanted, limit):
        try:
            batch = next(batches, None)
        except _UNREADABLE as error:
            raise _BlockError(str(error)) from error
        # A group with more or fewer rows than its footer says hides or invents some.
        if not batch or given + batch.num_rows > wanted:
            found = given + (batch.num_rows if batch else 0)
            raise _BlockError(f"{found:,} rows are there, the footer says {wanted:,}")
        given += batch.num_rows
        yield batch


def _hold(batches: Iterator[pa.RecordBatch], held: IO[bytes]) -> None:
    """Write all batches to a file as an Arrow stream, and go back to its beginning. No batches, an empty file."""
    first = next(batches, None)
    if first is None:
        return
    with pa.ipc.new_stream(held, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)
    held.seek(0)


def _held(held: IO[bytes]) -> Iterator[tuple[Row, str]]:
    """(row, problem) of the rows that a file holds."""
    if held.read(1):
        held.seek(0)
        for batch in pa.ipc.open_stream(held):
            yield from _batch_rows(batch)


def _check_counts(metadata: pq.FileMetaData) -> None:
    """ValueError when a footer's counts contradict each other: a damaged one would hide rows."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    total = sum(group.num_rows for group in groups)
    if total != metadata.num_rows:
        raise ValueError(f"its row groups hold {total:,} rows, the file {metadata.num_rows:,}")
    # Columns inside lists have more values than rows, so only flat ones are compared.
    flat = [index for index in range(metadata.num_columns) if metadata.schema.column(index).max_repetition_level == 0]
    for number, group in enumerate(groups):
        values = {group.column(index).num_values for index in flat}
        if values - {group.num_rows}:
            raise ValueError(f"row group {number} has {group.num_rows:,} rows and columns of {sorted(values)} values")


def _check_alone(stream: io.BufferedReader, file: SourceFile, metadata: pq.FileMetaData) -> None:
    """ValueError for files that were joined: a reader sees the last footer, and its places are those of another file."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(metadata.num_columns)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    end = max((at + one.total_compressed_size for at, one in zip(starts, columns, strict=True)), default=len(_PARQUET))
    # The last eight bytes are the footer's length and the magic word.
    stream.seek(-8, io.SEEK_END)
    footer = file.size - 8 - int.from_bytes(stream.read(4), "little")
    # Between pages and footer there are only indexes and Bloom filters, in most files nothing.
    if 0 < footer - end <= _BETWEEN_BYTES:
        stream.seek(end)
        if _PARQUET + _PARQUET in stream.read(footer - end):
            raise ValueError("several Parquet files were joined to one; only the last one's footer counts")


def _begins_in(metadata: pq.FileMetaData, group: int, start: int, end: int | None) -> bool:
    """Whether the first page of a row group is in the byte range."""
    if start == 0 and end is None:
        return True
    if not metadata.num_columns:
        return start == 0
    column = metadata.row_group(group).column(0)
    first = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        first = min(first, column.dictionary_page_offset)
    # A broken footer's place before the file is in its first range, so that the rows are counted in one.
    return max(0, first) >= start and (end is None or first < end)


def _arrow_rows(stream: io.BufferedReader, file: SourceFile) -> Iterator[_Found]:
    """Rows of an Arrow file or stream (`datasets` writes streams)."""
    for group, batch in enumerate(_arrow_batches(stream, file)):
        try:
            # validate(full=True) finds offsets that lead out of the
            # buffer, at which decoding would crash the process.
            batch.validate(full=True)
            # Decoding needs what validation has shown to be safe.
            parts = [_batch_rows(batch.slice(at, _BATCH_ROWS)) for at in range(0, batch.num_rows, _BATCH_ROWS)]
        except _UNREADABLE as error:
            yield group, 1, {}, f"unreadable: {error}", batch.num_rows
            continue
        for number, (row, problem) in enumerate((pair for part in parts for pair in part), 1):
            yield group, number, row, problem, 1


def _arrow_batches(stream: io.BufferedReader, file: SourceFile) -> Iterator[pa.RecordBatch]:
    """The record batches. BrokenFileError where one cannot be read: the rows after it are not counted anywhere."""
    group = 0
    try:
        is_file = stream.peek(len(_ARROW_FILE)).startswith(_ARROW_FILE)
        table = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        while not is_file or group < table.num_record_batches:
            batch = table.get_batch(group) if is_file else next(iter(table), None)
            if batch is None:
                break
            yield batch
            group += 1
        if is_file:
            _check_end(stream, file, group)
        elif stream.tell() != file.size:
            raise ValueError(f"it ends at byte {stream.tell():,} of {file.size:,}")
    except _UNREADABLE as error:
        raise BrokenFileError(file.url, f"record batch {group} cannot be read ({error})", 1) from error


def _check_end(stream: io.BufferedReader, file: SourceFile, batches: int) -> None:
    """ValueError for Arrow files that were joined: a reader sees the last footer, and its places are those of another file.

    The stream stands behind the last batch that was read, and there the footer begins.
    """
    if not batches:
        stream.seek(len(_ARROW_FILE) + 2)
        pa.ipc.open_stream(stream)
    end = stream.tell()
    stream.seek(-len(_ARROW_FILE) - 4, io.SEEK_END)
    footer = stream.tell() - int.from_bytes(stream.read(4), "little")
    if footer - end > _ARROW_BETWEEN_BYTES:
        raise ValueError(
            f"{footer - end:,} bytes before its footer belong to no batch: several files were joined to one"
        )


def _batch_rows(batch: pa.RecordBatch) -> list[tuple[Row, str]]:
    """(row, problem) of each row of a batch."""
    try:
        return [(row, "") for row in batch.to_pylist()]
    except _NO_VALUE:
        # Row by row: one date after the year 9999 must not cost the batch.
        return [_single_row(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _single_row(batch: pa.RecordBatch) -> tuple[Row, str]:
    """A row by its cells: one that Python has no value for, such as a date after the year 9999, becomes text."""
    row: Row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[0].as_py()
        except UnicodeDecodeError as error:
            return {}, f"not_utf8: column {name}: {error}"
        except _NO_VALUE:
            row[name] = _as_text(column)
    return row, ""


def _as_text(column: pa.Array) -> str:
    """The only value of a column as Arrow itself writes it, such as `15659-07-15`."""
    try:
        return str(column.cast(pa.string())[0].as_py())
    except pa.ArrowException:
        return column.to_string(skip_new_lines=True)


def _rows_at_once(metadata: pq.FileMetaData, group: int) -> int:
    """Rows of a batch, so that it has a few megabytes on average."""
    facts = metadata.row_group(group)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size)))


def block_ranges(size: int, each: int) -> Sequence[tuple[int, int | None]]:
    """Byte ranges of a Parquet file, so that no footer is read to plan the work; the last one is open."""
    starts = range(0, max(size, 1), max(1, each))
    # The last range is open, so every row group belongs to exactly one.
    return [(start, start + each if start + each < size else None) for start in starts]
