"""The hub: pinning a dataset or a checkpoint to a commit, and streaming a dataset's rows. Shared by document sources, by the
sources of chats, prompts and benchmarks, and by rules that ask a checkpoint."""

from pathlib import Path
from typing import Any, Literal

_COMMIT_LENGTH = 40


def pin_revision(name: str, revision: str, kind: Literal["dataset", "model"] = "dataset") -> str:
    """The commit of a repository on the hub; a full commit is taken as it is. ValueError when the hub does not answer."""
    if len(revision) == _COMMIT_LENGTH:
        return revision
    # The hub's client takes seconds to import and is needed by hub sources only.
    from huggingface_hub import HfApi

    # The error base of whichever HTTP client the library uses; it changed between versions.
    from huggingface_hub.errors import HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        found = HfApi().repo_info(name, repo_type=kind, revision=revision or None)
    except (HTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"{kind} {name!r} is neither a local folder nor reachable on the hub: {type(error).__name__}: {error}. Check the "
            "name and the connection, give its commit as `revision`, or download it and give the path"
        ) from error
    assert found.sha is not None, name
    return found.sha


def stream_rows(dataset: str, *, subset: str, split: str, revision: str, data_files: tuple[str, ...] = ()) -> Any:
    """A `datasets.IterableDataset`; nothing is read before it is iterated. Empty strings stand for the defaults."""
    # `datasets` takes seconds to import.
    from datasets import load_dataset
    from tqdm import tqdm

    # Sources are opened side by side, and who finds no lock of the bars makes one and deletes it again, under the others' hands.
    tqdm.get_lock()

    return load_dataset(
        str(Path(dataset).expanduser()) if Path(dataset).expanduser().is_dir() else dataset,
        name=subset or None,
        split=split,
        data_files=list(data_files) or None,
        revision=revision or None,
        streaming=True,
    )
