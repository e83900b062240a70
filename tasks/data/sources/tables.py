"""Parquet files, read by row group and within one by small batches of rows."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data.sources.intake import Intake
from tasks.data.sources.lines import most_bytes, table_row
from tasks.data.sources.listing import SourceFile

_BATCH_BYTES = 8 << 20
"""Text of a batch on average, bytes."""
_BATCH_ROWS = 64


def row_groups(file: SourceFile) -> list[tuple[int | None, int]]:
    """(number, bytes) of the row groups; one unnumbered group when the file's metadata cannot be read."""
    with file.open() as stream:
        try:
            metadata = pq.ParquetFile(stream).metadata
        except (pa.ArrowException, OSError):
            return [(None, file.size)]
    return [(number, metadata.row_group(number).total_byte_size) for number in range(metadata.num_row_groups)]


def read_table(intake: Intake, file: SourceFile, name: str, group: int | None, fields: tuple[str, str]) -> None:
    """Rows of one row group, or of the whole file; `fields` are the columns of text and id."""
    before, most = intake.bytes, most_bytes(file)
    for number, (row, problem) in enumerate(_rows(file, group), 1):
        place: dict[str, Any] = {"file": file.url, "line_number": number}
        if problem:
            intake.reject_problem(problem, b"", **place)
            continue
        intake.accept(table_row(row, fields), **place, fallback_id=f"{name}:{group}:{number}")
        if intake.bytes - before > most:
            intake.reject("archive_bomb", f"more than {most:,} bytes", b"", **place)
            return


def _rows(file: SourceFile, group: int | None) -> Iterator[tuple[dict[str, Any], str]]:
    """(row, problem) of each row, a problem being `reason: detail`; the rest of a file that cannot be read is one row."""
    # Opening is not under the handler: a store that does not answer is no bad content.
    with file.open() as stream:
        try:
            table = pq.ParquetFile(stream, buffer_size=1 << 20)
            groups = list(range(table.num_row_groups)) if group is None else [group]
            for batch in table.iter_batches(_rows_at_once(table.metadata, groups), row_groups=groups):
                yield from _batch_rows(batch)
        except (pa.ArrowException, OSError) as error:
            yield {}, f"unreadable: {error}"


def _batch_rows(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        yield from ((row, "") for row in batch.to_pylist())
        return
    except UnicodeDecodeError:
        singles = [batch.slice(index, 1) for index in range(batch.num_rows)]
    for single in singles:
        try:
            row = single.to_pylist()[0]
        except UnicodeDecodeError as error:
            yield {}, f"not_utf8: {error}"
        else:
            yield row, ""


def _rows_at_once(metadata: pq.FileMetaData, groups: list[int]) -> int:
    """Rows of a batch, so that it has a few megabytes on average."""
    size = sum(metadata.row_group(group).total_byte_size for group in groups)
    rows = sum(metadata.row_group(group).num_rows for group in groups)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, size)))
