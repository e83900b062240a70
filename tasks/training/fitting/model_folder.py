"""Hugging Face folders of models from outside, on a disk or the hub: pinned by hash, checked, and kept byte for byte.

Source: RECIPE A.6 (folder layout). `AdoptConfig.pinned` pins the files by hash (and a hub repository by commit), so that the
identity of what is made of them covers the content. A folder's tokenizer has to give the ids that ours gives, since every later
stage encodes with ours.
"""

from pathlib import Path
from typing import Self

from pydantic import Field

from infra.storage.store import sha256_file
from infra.workspace import Workspace
from model.config import Config
from model.tokens.tokenizer import Tokenizer
from model.tokens.tokenizer_check import check_encodings

_KEPT = ("*.json", "*.safetensors", "*.jinja", "merges.txt")
"""Files of a model folder that say what the model is: config, weights, tokenizer and its chat template."""
LEFT_OUT = ("optimizer*", "trainer_state.json", "training_args.json")
"""Files of a training run that may lie next to them."""


class ModelFile(Config):
    """One file of the folder, pinned."""

    name: str
    """Name in the folder."""
    size: int
    """Bytes."""
    sha256: str
    """Hash of the whole content."""


class AdoptConfig(Config):
    """Which folder to adopt."""

    source: str = Field(min_length=1)
    """Local folder, or hub id such as `allenai/OLMo-2-1124-7B`."""
    revision: str = ""
    """Commit of the hub repository: `pinned` turns a branch or tag (none: main) into it. Empty for a local folder."""
    files: tuple[ModelFile, ...] = ()
    """The folder's files with their hashes; `pinned` fills them in."""

    def pinned(self) -> Self:
        """The config with its commit and files pinned; fetches a hub repository.

        Raises ValueError for what is neither a folder nor a repository that can be reached, or holds no model.
        """
        path = Path(self.source).expanduser()
        if path.is_dir():
            if self.revision:
                raise ValueError(f"revision={self.revision!r} is for hub ids, but {self.source} is a local folder")
            # Absolute, since the stage may run in another folder.
            folder, found = path.absolute(), {"source": str(path.absolute())}
        else:
            folder = _fetch(self)
            # The hub's cache keeps every snapshot under its commit.
            found = {"revision": folder.name}
        if not (folder / "config.json").is_file():
            raise ValueError(f"{self.source} has no config.json: not a Hugging Face checkpoint folder")
        # Sorted, so that the pinned list and the id made of it do not depend on the file system's order.
        paths = [path for path in sorted(folder.iterdir()) if path.is_file() and _is_kept(path)]
        files = [ModelFile(name=path.name, size=path.stat().st_size, sha256=sha256_file(path)) for path in paths]
        return self.model_copy(update=found | {"files": tuple(files)})


def _is_kept(path: Path) -> bool:
    return any(path.match(glob) for glob in _KEPT) and not any(path.match(glob) for glob in LEFT_OUT)


def _fetch(config: AdoptConfig) -> Path:
    """The hub's snapshot of a repository at the config's revision, in the hub's local cache.

    Raises ValueError when there is no such repository, or it can be neither reached nor found in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            config.source,
            revision=config.revision or None,
            allow_patterns=list(_KEPT),
            ignore_patterns=list(LEFT_OUT),
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"{config.source!r} is neither a local folder nor a model that can be fetched from the hub "
            f"(revision {config.revision or 'main'!r}): {type(error).__name__}: {error}. "
            "Check the name and the connection, or download it and give the folder"
        ) from error
    return Path(found)


def open_folder(config: AdoptConfig) -> Path:
    """Where the pinned folder lies. Raises ValueError for a config that is not pinned, or a repository that is gone."""
    if not config.files:
        raise ValueError(f"{config.source} is not pinned; call the config's method `pinned`")
    # A hub repository is read at its pinned commit, whatever `main` has become.
    return _fetch(config) if config.revision else Path(config.source)


def checked_tokenizer(ws: Workspace, source: str, folder: Path, rows: int) -> Tokenizer:
    """The folder's tokenizer, of which every id has one of the model's `rows`.

    Raises ValueError for another vocabulary, another encoding, or rows that do not fit.
    """
    tokenizer = Tokenizer.load(folder)
    _check_rows(ws, source, rows, tokenizer)
    check_encodings(folder, tokenizer)
    return tokenizer


def keep_files(ws: Workspace, config: AdoptConfig, folder: Path) -> None:
    """The pinned files in the artifact. Raises ValueError for one that is not what was pinned."""
    with ws.progress("adopt", len(config.files), "files") as bar:
        for file in config.files:
            ws.put(folder / file.name)
            # Hashed again while it is copied: what was pinned may have been overwritten since.
            if ws.written[file.name].sha256 != file.sha256:
                raise ValueError(f"{folder / file.name} changed while it was adopted; adopt it again")
            bar.advance()


def _check_rows(ws: Workspace, source: str, rows: int, tokenizer: Tokenizer) -> None:
    """Every id needs its row, and no row beyond the padding has a text. The files are kept as they are, padded or not."""
    ids, padded = tokenizer.vocab_size, tokenizer.padded_vocab_size
    if not ids <= rows <= padded:
        raise ValueError(
            f"{source} has vocab_size {rows:,}, but its tokenizer has {ids:,} ids, padded to {padded:,} rows; anything from "
            f"{ids:,} to {padded:,} can be adopted. It is not an OLMo 2 checkpoint with its own tokenizer"
        )
    if rows < padded:
        ws.warn(f"{source} has vocab_size {rows:,}, not padded to {padded:,}; it is kept with the rows that it has")
