"""Which checkpoint a name stands for: a commit of the hub, or the hash of a local folder."""

import hashlib
from pathlib import Path

from infra.storage.store import sha256_file
from tasks.data.sources.files.hub_stream import pin_revision


def pin_checkpoint(path: str, given: str) -> str:
    """The commit of a hub repository, or a hash over the names and contents of a local folder's files.

    Asks the hub unless a whole commit is given. Raises ValueError for a repository that is not there, and for a local folder that
    is not what `given` says.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        found = _folder_hash(folder)
        if given and given != found:
            raise ValueError(
                f"checkpoint {path} has hash {found[:16]}…, pinned was {given[:16]}…: its files changed. Restore them, or "
                "pin the recipe again without the revision"
            )
        return found
    return pin_revision(path, given, "model")


def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    # Names are hashed with the contents: a renamed weight file is another checkpoint.
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()
