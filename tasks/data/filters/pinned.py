"""Files that a rule reads, such as word lists and models of others: named by path or URL, pinned by their hash.

`pinned` fills the hash in when a recipe is pinned, so that the identity of the scores covers the content; whoever reads the file
later gets those bytes or an error.
"""

import hashlib
import re
from pathlib import Path
from typing import Self

from pydantic import Field

from infra.storage.store import Store
from model.config import Config

_COMMENT = re.compile(r"(?:^|\s)#.*")


class PinnedFile(Config):
    """One file and its content's hash."""

    path: str = Field(min_length=1)
    """File or URL: local, http(s) or any object store."""
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """Hash of the content; filled in when the recipe is pinned, or given to insist on it."""

    def pinned(self) -> Self:
        """The file with its hash. Raises ValueError if it cannot be read, or is not what its hash says."""
        content = _read(self.path)
        if self.sha256:
            _check(self, content)
            return self
        return self.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})


def read_pinned(file: PinnedFile) -> bytes:
    """The content of a pinned file. Raises ValueError if it changed since it was pinned."""
    content = _read(file.path)
    if not file.sha256:
        raise ValueError(f"{file.path} has no sha256; pin the recipe, so that the scores' identity covers its content")
    _check(file, content)
    return content


def list_entries(files: tuple[PinnedFile, ...]) -> list[str]:
    """The entries of lists: lines without comments (# behind white space), stripped; empty ones left out."""
    # utf-8-sig drops a byte order mark, which would become part of the first entry.
    lines = [line for file in files for line in read_pinned(file).decode("utf-8-sig").splitlines()]
    entries = [_COMMENT.sub("", line).strip() for line in lines]
    return [entry for entry in entries if entry]


def _read(path: str) -> bytes:
    # Absolute, since a worker may run in another folder.
    location = path if "://" in path else str(Path(path).expanduser().absolute())
    root, _, name = location.rpartition("/")
    try:
        return Store(root or "/").read(name)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; check the path or URL") from error


def _check(file: PinnedFile, content: bytes) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise ValueError(
            f"{file.path} has sha256 {found[:16]}…, pinned was {file.sha256[:16]}…: the file changed. Restore it, or pin the "
            "recipe again without the old hash to use it as it is"
        )
