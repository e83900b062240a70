"""Documents from a dataset that `datasets` can stream: a hub id, or a local folder of Parquet or JSON files
in the same layout.

The dataset is read shard by shard as it is published, nothing is stored but the documents. `resolve` pins a
hub id to a commit, so that the identity covers its content; a local folder is pinned by the content of its
files.
"""

from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from infra.workspace import Workspace
from tasks.data.sources.intake import Intake, SourceConfig
from tasks.data.sources.listing import SourceFile, find_files
from tasks.data.sources.local import renamed

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
    if len(config.revision) == 40:
        return config
    from huggingface_hub import HfApi

    # The error base of whichever HTTP client the library uses; it changed between versions.
    from huggingface_hub.errors import HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        found = HfApi().dataset_info(config.path, revision=config.revision or None)
    except (HTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"dataset {config.path!r} is neither a local folder nor reachable on the hub: {error}. "
            "Check the name and the connection, or download it and give the folder"
        ) from error
    return config.model_copy(update={"revision": found.sha})


def hub_items(config: HubSource) -> list[dict[str, Any]]:
    """One item per published shard. Raises ValueError if the config was not resolved."""
    if not config.revision and not config.files:
        raise ValueError(
            f"source {config.name!r} has no `revision`; call tasks.data.collect.resolve on it, so that "
            "the artifact's identity covers what is read"
        )
    shards = _stream(config).num_shards
    limit = config.max_documents
    # Earlier shards take the remainder; a shard without a share is not read.
    shares = [None if limit is None else limit // shards + (index < limit % shards) for index in range(shards)]
    return [{"item": index, "shards": shards, "limit": share} for index, share in enumerate(shares) if share != 0]


def collect_hub(ws: Workspace, item: dict[str, Any]) -> dict[str, Any]:
    """Shard function: stream one shard of the dataset."""
    config = HubSource.model_validate(item["config"])
    intake = Intake(ws, item["item"], config.name, config.shard_bytes)
    rows = _stream(config).shard(item["shards"], item["item"])
    for number, row in enumerate(islice(rows, item["limit"]), start=1):
        id = f"{item['item']}:{number}"
        place = f"{config.path}:{config.split}:shard {item['item']}"
        intake.accept(renamed(row, config.text_field, config.id_field), file=place, line_number=number, fallback_id=id)
    return intake.finish()


def _stream(config: HubSource) -> Any:
    # `datasets` takes seconds to import and is needed by this source only.
    from datasets import load_dataset

    return load_dataset(
        config.path,
        name=config.subset or None,
        split=config.split,
        data_files=list(config.data_files) or None,
        revision=config.revision or None,
        streaming=True,
    )
