"""Documents from files, local or in an object store: Dolma JSON lines, Parquet, Arrow, plain text, HTML and web archives
(RECIPE C.1). The reading is that of `pieces.py`.
"""

from typing import Literal, Self

from pydantic import Field

from infra.workspace import ShardItem, Workspace
from tasks.data.sources.files.listing import SourceFile, find_files
from tasks.data.sources.intake import IntakeCounts, Reading, SourceConfig
from tasks.data.sources.pieces import collect_pieces, file_items
from tasks.data.sources.reading.formats import SUFFIXES, format_of


class LocalSource(SourceConfig):
    """Files of JSON lines, plain text, HTML or web archives (`.gz`, `.zst`, `.xz` and `.bz2` too), Parquet or Arrow."""

    kind: Literal["local"] = "local"
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, folders, globs (`**` for any folders) or URLs of them. A folder may hold no file of another ending, unless
    `exclude` names it."""
    include: tuple[str, ...] = ()
    """Only files whose path below the folder matches one of these globs; empty for all. A glob without a slash is compared with
    the name alone."""
    exclude: tuple[str, ...] = ()
    """No files that match one of these globs."""
    text_field: str = "text"
    """Field or column that holds the text."""
    id_field: str = "id"
    """Field or column that holds the id; documents without one are named after file and position, and all are if
    this is empty."""
    text_separator: str = ""
    """What separates the documents of a plain-text file; empty: each file is one document."""
    files: tuple[SourceFile, ...] = ()
    """The files that `paths` stand for, pinned by content; `pinned` fills them in, so that the identity
    covers them."""

    def pinned(self) -> Self:
        """The config with its files listed and fingerprinted. Raises ValueError if one is missing, none is found
        or one is of no known kind."""
        files = find_files(self.paths, SUFFIXES, include=self.include, exclude=self.exclude, strict=True)
        # Asked now, so that an unknown ending is refused before the stage starts.
        for file in files:
            format_of(file.name)
        return self.model_copy(update={"files": files})

    def reading(self) -> Reading:
        """The function that reads a part of the source, and the parts."""
        return collect_local, local_items(self)


def local_items(config: LocalSource) -> list[ShardItem]:
    """Items of about `shard_bytes` each. Raises ValueError if the config is not pinned."""
    if not config.files:
        raise ValueError(
            f"source {config.name!r} has no `files`; call its method `pinned`, so that the "
            "artifact's identity covers what is read"
        )
    return file_items(config.files, config.shard_bytes)


def collect_local(ws: Workspace, item: ShardItem) -> IntakeCounts:
    """Shard function: read the item's pieces."""
    config = LocalSource.model_validate(item["config"])
    return collect_pieces(ws, item, config, (config.text_field, config.id_field), config.text_separator)
