"""The hub of `datasets`: pinning a dataset to a commit, and streaming its rows. Shared by document sources and by the
sources of chats, prompts and benchmarks."""

from pathlib import Path
from typing import Any


def pin_revision(dataset: str, revision: str) -> str:
    """The commit of a dataset on the hub; a full commit is taken as it is. ValueError when the hub does not answer."""
    if len(revision) == 40:
        return revision
    # The hub's client takes seconds to import and is needed by hub sources only.
    from huggingface_hub import HfApi

    # The error base of whichever HTTP client the library uses; it changed between versions.
    from huggingface_hub.errors import HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        found = HfApi().dataset_info(dataset, revision=revision or None)
    except (HTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"dataset {dataset!r} is neither a local folder nor reachable on the hub: {error}. Check the name and the "
            "connection, or download it and give its files as paths"
        ) from error
    assert found.sha is not None, dataset
    return found.sha


def stream_rows(dataset: str, *, subset: str, split: str, revision: str, data_files: tuple[str, ...] = ()) -> Any:
    """A `datasets.IterableDataset`; nothing is read before it is iterated. Empty strings stand for the defaults."""
    # `datasets` takes seconds to import.
    from datasets import load_dataset

    return load_dataset(
        str(Path(dataset).expanduser()) if Path(dataset).expanduser().is_dir() else dataset,
        name=subset or None,
        split=split,
        data_files=list(data_files) or None,
        revision=revision or None,
        streaming=True,
    )
