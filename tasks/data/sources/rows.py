"""JSON-lines, Parquet or Arrow rows from files or a hub dataset: chats, prompts, benchmarks, seeds of synthetic documents.

As with document sources, `resolve_rows` first writes into the config what will be read (file hashes, or a commit), so that
the identity of a stage covers it.
"""

import io
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from model.config import Config
from tasks.data.documents.dolma_files import open_lines
from tasks.data.sources.hub_stream import pin_revision, stream_rows
from tasks.data.sources.listing import SourceFile, find_files

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet", ".arrow")
PARQUET_BATCH = 256


class RowSource(Config):
    """Rows of files, or of a dataset on the Hugging Face hub; one of `paths` and `dataset` is given."""

    paths: tuple[str, ...] = ()
    """Files, folders, globs or URLs of JSON lines (`.gz` and `.zst` too), Parquet or Arrow."""
    dataset: str = ""
    """Hub id, such as `allenai/tulu-3-sft-olmo-2-mixture`."""
    subset: str = ""
    """Configuration of the dataset; empty for its default."""
    split: str = "train"
    """Split of the dataset."""
    limit: int | None = Field(default=None, ge=1)
    """Rows to read at most, from the first; None for all."""
    files: tuple[SourceFile, ...] = ()
    """What `paths` stand for, pinned by content; `resolve_rows` fills it in."""
    revision: str = ""
    """Commit of the dataset; `resolve_rows` fills it in."""

    @model_validator(mode="after")
    def check_origin(self) -> Self:
        if bool(self.paths) == bool(self.dataset):
            raise ValueError(f"give either paths or dataset, not {'both' if self.paths else 'neither'}")
        return self


def resolve_rows(source: RowSource) -> RowSource:
    """The source pinned. ValueError when a path matches nothing or the hub does not answer."""
    if source.paths:
        return source.model_copy(update={"files": find_files(source.paths, SUFFIXES)})
    return source.model_copy(update={"revision": pin_revision(source.dataset, source.revision)})


def read_rows(source: RowSource) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """(place, row) of a pinned source in order; the row is None where a line is not a JSON object.

    Raises ValueError when the source is not pinned.
    """
    if not source.files and not source.revision:
        raise ValueError(
            f"rows of {source.paths or source.dataset} are not pinned; call tasks.data.sources.rows.resolve_rows first, "
            "so that the artifact's identity covers what is read"
        )
    rows = _file_rows(source) if source.files else _hub_rows(source)
    for number, pair in enumerate(rows):
        if source.limit is not None and number >= source.limit:
            return
        yield pair


def read_good_rows(source: RowSource) -> Iterator[dict[str, Any]]:
    """Rows of a pinned source, for sets where every row counts. ValueError at the first that is not a JSON object."""
    for place, row in read_rows(source):
        if row is None:
            raise ValueError(f"{place} is not a JSON object; repair the file")
        yield row


def check_share(source: str, good: int, reasons: Counter[str], max_bad_fraction: float) -> None:
    """ValueError when a source, named with its kind, has no usable row or too many unusable ones."""
    bad = reasons.total()
    if good == 0:
        raise ValueError(f"{source} has no usable row: {dict(reasons) or 'it is empty'}")
    if bad > max_bad_fraction * (good + bad):
        raise ValueError(
            f"{source}: {bad:,} of {good + bad:,} rows are unusable ({dict(reasons)}), more than "
            f"max_bad_fraction={max_bad_fraction}; repair them or raise it"
        )


def field_of(row: dict[str, Any], name: str, place: str) -> Any:
    """A row's field. ValueError naming the place and the fields there are."""
    if name not in row:
        raise ValueError(f"{place} has no field {name!r}; it has {', '.join(sorted(row))}")
    return row[name]


def _file_rows(source: RowSource) -> Iterator[tuple[str, dict[str, Any] | None]]:
    for file in source.files:
        with file.open() as raw:
            if file.name.endswith(".parquet"):
                yield from _parquet_rows(file, raw)
                continue
            if file.name.endswith(".arrow"):
                yield from _arrow_rows(file, raw)
                continue
            for number, line in enumerate(open_lines(raw, file.name), 1):
                if line.strip():
                    yield f"{file.url}:{number}", _object(line)


def _parquet_rows(file: SourceFile, raw: io.BufferedReader) -> Iterator[tuple[str, dict[str, Any] | None]]:
    number = 0
    # A buffer: without one pyarrow reads whole columns of a row group at once.
    for batch in pq.ParquetFile(raw, buffer_size=1 << 20).iter_batches(batch_size=PARQUET_BATCH):
        for row in batch.to_pylist():
            number += 1
            yield f"{file.url}:{number}", row


def _arrow_rows(file: SourceFile, raw: io.BufferedReader) -> Iterator[tuple[str, dict[str, Any] | None]]:
    number = 0
    # `datasets` writes streams; other tools write files of random access, which begin with this word.
    reader = pa.ipc.open_file(raw) if raw.peek(6)[:6] == b"ARROW1" else pa.ipc.open_stream(raw)
    batches = (
        (reader.get_batch(place) for place in range(reader.num_record_batches))
        if isinstance(reader, pa.ipc.RecordBatchFileReader)
        else iter(reader)
    )
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield f"{file.url}:{number}", row


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _hub_rows(source: RowSource) -> Iterator[tuple[str, dict[str, Any] | None]]:
    stream = stream_rows(source.dataset, subset=source.subset, split=source.split, revision=source.revision)
    for number, row in enumerate(stream, 1):
        yield f"{source.dataset}:{source.split}:{number}", dict(row)
