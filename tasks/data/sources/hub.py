"""Documents from a dataset that `datasets` can stream: a hub id, or a local folder of Parquet or JSON files
in the same layout.

The dataset is read shard by shard as it is published, nothing is stored but the documents. `resolve` pins a
hub id to a commit, so that the identity covers its content; a local folder is pinned by the content of its
files.
"""

import gzip
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import zstandard
from pydantic import Field

from infra.workspace import Workspace
from tasks.data.sources.hub_stream import pin_revision, stream_rows
from tasks.data.sources.intake import Intake, SourceConfig
from tasks.data.sources.lines import table_row
from tasks.data.sources.listing import SourceFile, find_files

DATA_SUFFIXES = (
    ".parquet",
    ".jsonl",
    ".json",
    ".jsonl.gz",
    ".json.gz",
    ".jsonl.zst",
    ".json.zst",
    ".csv",
    ".txt",
    ".arrow",
)

BROKEN = (pa.ArrowException, EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, ValueError)
"""What `datasets` raises for content that it cannot read; ValueError is its own kind for rows that do not fit."""


class HubSource(SourceConfig):
    """A dataset on the Hugging Face hub, or a local folder in its layout, streamed."""

    kind: Literal["hub"] = "hub"
    path: str = Field(min_length=1)
    """Dataset id such as `allenai/dolmino-mix-1124`, or a local folder."""
    subset: str = ""
    """Configuration of the dataset; empty for its default."""
    split: str = "train"
    """Split to read."""
    data_files: tuple[str, ...] = ()
    """Only these files (globs) of the dataset; empty for all."""
    text_field: str = "text"
    """Column that holds the text."""
    id_field: str = "id"
    """Column that holds the id; rows without one are named after shard and position."""
    max_documents: int | None = Field(default=None, gt=0)
    """Rows to read at most, dealt evenly to the dataset's shards; None for all."""
    revision: str = ""
    """Commit of the hub repository; `resolve` fills it in."""
    files: tuple[SourceFile, ...] = ()
    """The files of a local folder, pinned; `resolve` fills them in."""


def resolve_hub(config: HubSource) -> HubSource:
    """The config pinned to a commit, or to the files of a local folder. Asks the hub for the commit of an id."""
    if Path(config.path).expanduser().is_dir():
        return config.model_copy(update={"files": find_files((config.path,), DATA_SUFFIXES)})
    return config.model_copy(update={"revision": pin_revision(config.path, config.revision)})


def hub_items(config: HubSource) -> list[dict[str, Any]]:
    """One item per published shard. Raises ValueError if the config was not resolved."""
    if not config.revision and not config.files:
        raise ValueError(
            f"source {config.name!r} has no `revision`; call tasks.data.collect.resolve on it, so that "
            "the artifact's identity covers what is read"
        )
    try:
        shards = _stream(config).num_shards
    except BROKEN as error:
        raise ValueError(
            f"source {config.name!r}: `datasets` cannot open {config.path} ({type(error).__name__}: {error}). Repair its "
            "first file, or read the files as a source of kind local, which keeps what is broken aside"
        ) from error
    limit = config.max_documents
    # Earlier shards take the remainder; a shard without a share is not read.
    shares = [None if limit is None else limit // shards + (index < limit % shards) for index in range(shards)]
    return [{"item": index, "shards": shards, "limit": share} for index, share in enumerate(shares) if share != 0]


def collect_hub(ws: Workspace, item: dict[str, Any]) -> dict[str, Any]:
    """Shard function: stream one shard of the dataset."""
    config = HubSource.model_validate(item["config"])
    intake = Intake(ws, item["item"], config)
    file = f"{config.path}:{config.split}:shard {item['item']}"
    for number, (row, problem) in enumerate(_rows(config, item), start=1):
        if problem:
            intake.reject("unreadable", problem, b"", file=file, line_number=number)
            continue
        document = table_row(row, (config.text_field, config.id_field))
        intake.accept(document, file=file, line_number=number, fallback_id=f"{item['item']}:{number}")
    return intake.finish()


def _rows(config: HubSource, item: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """(row, "") of each row of the shard; the rest of a file whose content cannot be read is one row, (nothing, problem).

    Failures of the connection are not among these: they fail the stage, which is then run again.
    """
    rows = iter(_stream(config).shard(item["shards"], item["item"]))
    try:
        yield from ((row, "") for row in islice(rows, item["limit"]))
    except BROKEN as error:
        yield {}, f"{type(error).__name__}: {error}"


def _stream(config: HubSource) -> Any:
    return stream_rows(
        config.path,
        subset=config.subset,
        split=config.split,
        revision=config.revision,
        data_files=config.data_files,
    )
