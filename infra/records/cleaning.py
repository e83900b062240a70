"""Removing what killed processes left behind: temporary names in a store, half copies in its cache, scratch folders.

A process that ends in order removes what is temporary; one that is killed cannot. Artifacts, save points and finished shards
have no temporary names and are never touched. What a living process writes is kept. A scratch folder is locked by its owner
(`infra/storage/scratch.py`), and a temporary name in a store belongs to the attempt whose folder it is in. It goes at once
when that attempt's process is proven dead, and never while its lease has a heartbeat. Otherwise it goes when nothing of it
has changed for a long time by the clock of the store's own file system.
"""

import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.records.lease import holder_of, sign_of_life
from infra.records.record import progress_folder
from infra.storage.scratch import is_abandoned, scratch_folders
from infra.storage.store import TEMPORARY_NAME, Store

ATTEMPT = re.compile(r"(?:_progress/)?(?P<stage>[^_/][^/]*)/(?P<id>[0-9a-f]{16})/g(?P<generation>\d{4})/")
"""Where one attempt writes: its payload, and the folder with its lease."""
_SHARED = re.compile(r"(?:_answers|_progress|[^_/][^/]*/[0-9a-f]{16})/")
"""Where several do."""


@dataclass(frozen=True)
class Leftover:
    """A temporary file or folder."""

    path: Path
    bytes: int
    changed: float
    """When anything of it changed last, seconds since the epoch."""


@dataclass(frozen=True)
class Cleaned:
    """What became of one kind of leftovers."""

    what: str
    removed: int = 0
    freed_bytes: int = 0
    kept: int = 0
    """In use, or not known to be abandoned yet."""
    kept_bytes: int = 0


def clean(store: Store, idle_seconds: float) -> list[Cleaned]:
    """Remove what is abandoned and say what that freed.

    Raises ValueError when nothing is stored there, StoreError when it cannot be written.
    """
    if not store.names("_progress"):
        raise ValueError(f"nothing was ever made in store {store.url}; name another with --store or OLMO2_STORE")
    return [
        _clean_store(store, idle_seconds),
        _clean_uploads(store, idle_seconds),
        _clean_cache(store, idle_seconds),
        _clean_scratch(),
    ]


def _clean_store(store: Store, idle_seconds: float) -> Cleaned:
    what = "temporary files of the store"
    if not store.is_local:
        return Cleaned(what)  # objects appear whole
    now = _clock(store)
    found = _measured(_temporary_names(Path(store.root)))
    return _remove(what, ((left, _is_left(store, left, now, idle_seconds)) for left in found))


def _is_left(store: Store, left: Leftover, now: float, idle_seconds: float) -> bool:
    """Whether nobody writes this any more."""
    place = left.path.relative_to(store.root).as_posix()
    idle = now - left.changed > idle_seconds
    attempt = ATTEMPT.match(place)
    # A name that no attempt owns is judged by its age alone.
    if attempt is None:
        return idle and _SHARED.match(place) is not None
    folder = progress_folder(attempt["stage"], attempt["id"], int(attempt["generation"]))
    holder = holder_of(store, folder)
    if holder == "alive":
        # Its host may be gone for good; then its heartbeat has stood still as long.
        return idle and now - Path(store.full(sign_of_life(store, folder))).stat().st_mtime > idle_seconds
    return idle or holder == "dead"


def _clock(store: Store) -> float:
    """What time it is where the store's files are stamped: clocks of machines that share a disk may differ."""
    probe = f"_progress/probe-{uuid.uuid4().hex}"
    store.write(probe, b"")
    try:
        return Path(store.full(probe)).stat().st_mtime
    finally:
        store.remove(probe)


def _clean_uploads(store: Store, idle_seconds: float) -> Cleaned:
    """End uploads in parts that began so long ago that nobody completes them any more."""
    removed, freed, kept, kept_bytes = 0, 0, 0, 0
    for upload in store.unfinished_uploads():
        if upload.idle_seconds() > idle_seconds:
            store.end_upload(upload)
            removed, freed = removed + 1, freed + upload.bytes
        else:
            kept, kept_bytes = kept + 1, kept_bytes + upload.bytes
    return Cleaned("unfinished uploads to the store", removed, freed, kept, kept_bytes)


def _clean_cache(store: Store, idle_seconds: float) -> Cleaned:
    what = "half copies in the cache of the store"
    if store.is_local:
        return Cleaned(what)  # nothing is copied
    found = _measured(_temporary_names(store.cache))
    return _remove(what, ((left, time.time() - left.changed > idle_seconds) for left in found))


def _clean_scratch() -> Cleaned:
    what = f"scratch folders in {tempfile.gettempdir()}"
    return _remove(what, ((left, is_abandoned(left.path)) for left in _measured(scratch_folders())))


def _temporary_names(root: Path) -> Iterator[Path]:
    """Temporary files and folders below a folder; of one within another, the outer one only."""
    for folder, folders, files in os.walk(root):
        inner = [name for name in folders if TEMPORARY_NAME.fullmatch(name)]
        # A folder that goes as a whole is not walked into.
        folders[:] = [name for name in folders if name not in inner]
        yield from (Path(folder, name) for name in files if TEMPORARY_NAME.fullmatch(name))
        yield from (Path(folder, name) for name in inner)


def _measured(paths: Iterable[Path]) -> Iterator[Leftover]:
    """Size and last change of each; what its owner removes meanwhile is none."""
    for path in paths:
        try:
            # `lstat`, so that a link counts itself and not what it points at.
            states = [file.lstat() for file in (path, *path.rglob("*"))]
        except FileNotFoundError:
            continue
        # Sizes of folders are the file system's own affair and free nothing that anybody counts.
        size = sum(state.st_size for state in states if not stat.S_ISDIR(state.st_mode))
        yield Leftover(path, size, max(state.st_mtime for state in states))


def _remove(what: str, judged: Iterable[tuple[Leftover, bool]]) -> Cleaned:
    """Remove those that are judged to be abandoned, and count."""
    removed, freed, kept, kept_bytes = 0, 0, 0, 0
    for left, abandoned in judged:
        if abandoned:
            shutil.rmtree(left.path) if left.path.is_dir() else left.path.unlink(missing_ok=True)
            removed, freed = removed + 1, freed + left.bytes
        else:
            kept, kept_bytes = kept + 1, kept_bytes + left.bytes
    return Cleaned(what, removed, freed, kept, kept_bytes)
