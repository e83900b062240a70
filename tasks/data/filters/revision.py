"""Which checkpoint a name stands for: a commit of the hub, or the hash of a local folder."""

import hashlib
from pathlib import Path

from infra.store import sha256_file

_COMMIT_LENGTH = 40


def pinned_revision(path: str, given: str) -> str:
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
                "resolve the recipe anew without the revision"
            )
        return found
    if len(given) == _COMMIT_LENGTH:
        return given
    from huggingface_hub import HfApi

    # The error base of whichever HTTP client the library uses; it changed between versions.
    from huggingface_hub.errors import HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        found = HfApi().model_info(path, revision=given or None).sha
    except (HFValidationError, HTTPError, OSError) as error:
        raise ValueError(
            f"checkpoint {path!r} is no local folder, and the hub does not say which commit it is "
            f"({type(error).__name__}: {error}); check its name and the connection, or give its commit as `revision`"
        ) from error
    assert found is not None, path
    return found


def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()
