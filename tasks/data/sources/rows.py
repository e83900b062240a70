"""Rows of JSON lines, Parquet, Arrow, CSV or TSV, from files or a hub dataset: chats, prompts, benchmarks, and what synthetic
documents are made of. The reading is that of document sources (`sources/`): row by row, whatever shapes they have.

As with document sources, `pinned` first writes into the config what will be read (file hashes, or a commit), so that
the identity of a stage covers it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from model.config import Config
from tasks.data.documents.dolma_files import Row
from tasks.data.sources.files.hub_stream import pin_revision
from tasks.data.sources.files.listing import SourceFile, find_files
from tasks.data.sources.hub import HubSource, hub_files
from tasks.data.sources.reading.formats import ROW_SUFFIXES, SEPARATED_SUFFIXES, format_of
from tasks.data.sources.reading.lines import line_rows
from tasks.data.sources.reading.separated import separated_rows
from tasks.data.sources.reading.tables import table_rows

MAX_ROW_BYTES = 64_000_000
"""A longer line is no usable row; it bounds memory."""


class RowSource(Config):
    """Rows of files, or of a dataset on the Hugging Face hub; one of `paths` and `dataset` is given."""

    paths: tuple[str, ...] = ()
    """Files, folders, globs or URLs of JSON lines (`.gz`, `.zst`, `.xz` and `.bz2` too), Parquet, Arrow, CSV or TSV."""
    include: tuple[str, ...] = ()
    """Only files whose path matches one of these globs; empty for all. A glob without a slash is compared with the name alone."""
    exclude: tuple[str, ...] = ()
    """No files that match one of these globs."""
    dataset: str = ""
    """Hub id, such as `allenai/tulu-3-sft-olmo-2-mixture`."""
    subset: str = ""
    """Configuration of the dataset; empty for its default."""
    split: str = "train"
    """Split of the dataset."""
    limit: int | None = Field(default=None, ge=1)
    """Rows to read at most, from the first; None for all."""
    files: tuple[SourceFile, ...] = ()
    """What `paths` stand for, pinned by content; `pinned` fills it in."""
    revision: str = ""
    """Commit of the dataset; `pinned` fills it in."""

    @model_validator(mode="after")
    def check_origin(self) -> Self:
        if bool(self.paths) == bool(self.dataset):
            raise ValueError(f"give either paths or dataset, not {'both' if self.paths else 'neither'}")
        return self

    def pinned(self) -> Self:
        """The source pinned. ValueError when a path matches nothing or the hub does not answer."""
        if self.paths:
            return self.model_copy(update={"files": _found(self)})
        return self.model_copy(update={"revision": pin_revision(self.dataset, self.revision)})


def _found(source: RowSource) -> tuple[SourceFile, ...]:
    """The files of `paths`. ValueError for one of no format that has rows."""
    files = find_files(source.paths, ROW_SUFFIXES, include=source.include, exclude=source.exclude, strict=True)
    for file in files:
        if not file.name.lower().endswith(ROW_SUFFIXES):
            raise ValueError(f"{file.url}: no known format of rows; files must end in one of {', '.join(ROW_SUFFIXES)}")
    return files


def read_rows(source: RowSource) -> Iterator[tuple[str, Row | None]]:
    """(place, row) of a pinned source in order; the row is None where a line is not a JSON object, or where a broken part of a
    table held one.

    Raises ValueError when the source is not pinned, and by name for a file that breaks or changes.
    """
    if not source.files and not source.revision:
        raise ValueError(
            f"rows of {source.paths or source.dataset} are not pinned; call their method `pinned` first, "
            "so that the artifact's identity covers what is read"
        )
    rows = _file_rows(source.files or _hub_files(source))
    for number, pair in enumerate(rows):
        if source.limit is not None and number >= source.limit:
            return
        yield pair


def read_good_rows(source: RowSource) -> Iterator[Row]:
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


def field_of(row: Row, name: str, place: str) -> Any:
    """A row's field. ValueError naming the place and the fields there are."""
    if name not in row:
        raise ValueError(f"{place} has no field {name!r}; it has {', '.join(sorted(row))}")
    return row[name]


def _hub_files(source: RowSource) -> Sequence[SourceFile]:
    """The files of a dataset at its commit."""
    return hub_files(
        HubSource(
            name="rows",
            path=source.dataset,
            subset=source.subset,
            split=source.split,
            revision=source.revision,
            include=source.include,
            exclude=source.exclude,
        ),
        ROW_SUFFIXES,
    )


def _file_rows(files: Sequence[SourceFile]) -> Iterator[tuple[str, Row | None]]:
    for file in files:
        if file.name.lower().endswith(SEPARATED_SUFFIXES):
            yield from ((f"{file.url}:{number}", row) for number, row in separated_rows(file, MAX_ROW_BYTES))
        elif format_of(file.name) == "lines":
            for number, row in line_rows(file, MAX_ROW_BYTES):
                yield f"{file.url}:{number}", row
        else:
            yield from _table_rows(file)


def _table_rows(file: SourceFile) -> Iterator[tuple[str, Row | None]]:
    number = 0
    for _, _, row, problem, rows in table_rows(file):
        for _ in range(rows):
            number += 1
            yield f"{file.url}:{number}", None if problem else row
