"""Documents from a dataset of the Hugging Face hub, or from a local folder in the same layout.

This project's reader (`pieces.py`) reads the files one by one, so rows of any shapes stand side by side. Of `datasets` only
the rules are taken by which a subset and a split stand for files. `pinned` pins a hub id to a commit, so that the identity
covers its content; a local folder is pinned by the content of its files. Nothing is stored but the documents.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from infra.workspace import ShardItem, Workspace
from tasks.data.sources.files.hub_listing import Listing, choose_files, list_folder, list_hub
from tasks.data.sources.files.hub_stream import hub_root, pin_revision
from tasks.data.sources.files.listing import SourceFile, check_endings, chosen, pin_files
from tasks.data.sources.intake import IntakeCounts, Reading, SourceConfig
from tasks.data.sources.pieces import collect_pieces, file_items
from tasks.data.sources.reading.formats import SUFFIXES


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
    """Only these files (globs) of the dataset, instead of those of a subset and split; empty for these."""
    include: tuple[str, ...] = ()
    """Of those, only files whose path matches one of these globs; empty for all. A glob without a slash is compared with the
    name alone."""
    exclude: tuple[str, ...] = ()
    """No files that match one of these globs, such as `**/test/**`."""
    text_field: str = "text"
    """Column that holds the text."""
    id_field: str = "id"
    """Column that holds the id; rows without one are named after file and position."""
    max_documents: int | None = Field(default=None, gt=0)
    """Rows to read at most, dealt evenly to the dataset's files; None for all."""
    revision: str = ""
    """Commit of the hub repository; `pinned` fills it in."""
    files: tuple[SourceFile, ...] = ()
    """The files of a local folder, pinned; `pinned` fills them in."""

    def pinned(self) -> Self:
        """The config pinned to a commit, or to the files of a local folder. Asks the hub for the commit of an id."""
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            root = str(folder.absolute())
            names = _names(self, list_folder(root))
            return self.model_copy(update={"files": pin_files((root, name) for name in names)})
        return self.model_copy(update={"revision": pin_revision(self.path, self.revision)})

    def reading(self) -> Reading:
        """The function that reads a part of the source, and the parts."""
        return collect_hub, hub_items(self)


def _names(config: HubSource, listing: Listing, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """The files that are read. ValueError when there are none, or one that no reader knows."""
    try:
        names = chosen(
            choose_files(listing, config.subset, config.split, config.data_files), config.include, config.exclude
        )
    except ValueError as error:
        raise ValueError(f"source {config.name!r}, dataset {config.path}: {error}") from error
    if not names:
        raise ValueError(f"source {config.name!r}: no file of {config.path} is meant by its subset, split and globs")
    check_endings(config.path, names, suffixes)
    return names


def hub_items(config: HubSource) -> list[ShardItem]:
    """Items of about `shard_bytes` each, from one listing. Raises ValueError if the config is not pinned."""
    if not config.revision and not config.files:
        raise ValueError(
            f"source {config.name!r} has no `revision`; call its method `pinned`, so that "
            "the artifact's identity covers what is read"
        )
    files = config.files or hub_files(config)
    limit, count = config.max_documents, len(files)
    # Earlier files take the remainder; a file without a share is not read.
    limits = () if limit is None else [limit // count + (index < limit % count) for index in range(count)]
    return file_items(files, config.shard_bytes, limits)


def hub_files(config: HubSource, suffixes: tuple[str, ...] = SUFFIXES) -> list[SourceFile]:
    """The files at the pinned commit: it fixes their content, so they need no pin of their own. ValueError for an ending that is
    none of `suffixes`."""
    listing = list_hub(config.path, config.revision)
    root = hub_root(config.path, config.revision)
    return [SourceFile(root=root, name=name, size=listing.sizes[name]) for name in _names(config, listing, suffixes)]


def collect_hub(ws: Workspace, item: ShardItem) -> IntakeCounts:
    """Shard function: read the item's pieces."""
    config = HubSource.model_validate(item["config"])
    return collect_pieces(ws, item, config, (config.text_field, config.id_field), "")
