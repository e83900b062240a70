"""Save points in the store: the states of one attempt at a stage, each a folder of files and a marker that lists them.

Source: RECIPE J (permanent and ephemeral checkpoints). Below the progress folder there are two areas. `points` has the
newest ephemeral save point and goes when the stage commits. `kept` has the permanent ones, which stay. A save point exists
once its marker is written, so a kill leaves the older one or the new one, never a half. One whose files are not what was
saved is passed over for an older one, which is told. Where no whole one is left, nothing starts over without being asked.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

import orjson
import xxhash

from infra.storage.store import Store, StoreError, is_name

_FILES_AT_ONCE = 4
"""Files of a save point that are brought to the disk, or verified, side by side."""

HASH: Final = "xxh3_128"
"""What a marker calls a file's hash: XXH3, 128 bits.

It finds damage as surely as SHA-256 at less than a tenth of the processor time, which a save takes from the training.
Neither would stop somebody who changes files on purpose: the marker lies next to them.
"""

MARKER = "point-"
"""How names of markers begin; the step follows, in ten digits."""


class DamagedSavePoint(StoreError):
    """A save point whose files are not what was saved; the text names it and says what is wrong."""


class SavePointFile(TypedDict):
    """What a marker says of a file."""

    size: int
    xxh3_128: str


@dataclass(frozen=True, order=True)
class SavePoint:
    """Where the state of one step is."""

    step: int
    area: str

    @property
    def folder(self) -> str:
        return f"{self.area}/{self.step:010d}"

    @property
    def marker(self) -> str:
        """The object that makes it exist: size and hash of every file, by name."""
        return f"{self.area}/{MARKER}{self.step:010d}.json"


def ephemeral_area(progress_folder: str) -> str:
    return f"{progress_folder}/points"


def permanent_area(progress_folder: str) -> str:
    return f"{progress_folder}/kept"


def newest_save_point(store: Store, progress_folder: str) -> SavePoint | None:
    """The newest whole save point of either kind; None where there is none."""
    # A SavePoint sorts by its step first.
    return max(save_points(store, progress_folder), default=None)


def save_points(store: Store, progress_folder: str) -> list[SavePoint]:
    """All save points of either kind, oldest first; their files are not looked at."""
    return sorted(point for area in _areas(progress_folder) for point in _points(area, store.names(area)))


def write_save_point(
    store: Store,
    progress_folder: str,
    step: int,
    files: Iterable[Path],
    *,
    keep: bool,
    gather: Callable[[Any], list[Any] | None] | None,
) -> None:
    """Move local files to the store under their names, write their marker, then remove older ephemeral save points.

    A file is whole when `files` gives it, and goes to the disk while the next one is made. In a group each process saves
    its own files; `gather` hands what each has written to rank 0, which writes the marker.
    """
    point = SavePoint(step, (permanent_area if keep else ephemeral_area)(progress_folder))
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        entries = dict(pool.map(_settled, files))
    for path in entries:
        # The files first, the marker last: a kill in between leaves unlisted files, never half a save point.
        store.move(path, f"{point.folder}/{path.name}")
    written = {path.name: entry for path, entry in entries.items()}
    # A gather is a collective call, so every process of the group has to come here.
    parts = gather(written) if gather else [written]
    if parts is None:
        return
    marker = {name: entry for part in parts for name, entry in part.items()}
    store.write(point.marker, orjson.dumps(marker, option=orjson.OPT_SORT_KEYS))
    # Before an older one goes: a power cut must not leave neither.
    store.settle([point.marker, *(f"{point.folder}/{name}" for name in marker)])
    _remove_older(store, progress_folder, step)


def _remove_older(store: Store, progress_folder: str, step: int) -> None:
    """Remove older ephemeral save points, and older folders of either kind whose marker a kill has prevented."""
    for area in _areas(progress_folder):
        names = store.names(area)
        marked = set(_points(area, names))
        for older in marked | {SavePoint(int(name), area) for name in names if name.isdigit()}:
            # The newest ephemeral one goes only when a newer one is whole; permanent ones never.
            if older.step < step and (older not in marked or area == ephemeral_area(progress_folder)):
                # The marker first: a save point never lacks files.
                store.remove(older.marker)
                store.remove(older.folder)


def read_newest(
    store: Store,
    progress_folder: str,
    wanted: Callable[[str], bool],
    owner: str,
    *,
    exchange: Callable[[Any], list[Any]],
    warn: Callable[[str], None],
) -> tuple[SavePoint, dict[str, Path]] | None:
    """The newest save point that is whole, with local paths of its wanted files by name; None where there is none at all.

    In a group each process verifies what it wants itself; `exchange` hands a value of each to all, so that they end with the
    same one. `warn` is told of those that are passed over. Raises DamagedSavePoint when all are damaged.
    """
    # Rank 0's listing counts: listings of two processes may differ while save points come and go.
    points = exchange(save_points(store, progress_folder))[0]
    damage = ""
    for point in reversed(points):
        try:
            paths, found = read_save_point(store, point, wanted, owner), ""
        except DamagedSavePoint as error:
            paths, found = {}, str(error)
        # All agree on whether a point is whole, or ranks would resume from two steps.
        damage = next(filter(None, exchange(found)), "")
        if not damage:
            return point, paths
        warn(f"{damage} It is passed over for an older one.")
    if not points:
        return None
    places = " ".join(f"{point.marker} {point.folder}" for point in points)
    raise DamagedSavePoint(
        f"{damage} No other save point of {owner} is whole. Restore one from a copy and run the same command again, or "
        f"begin this stage anew by removing in store {store.url}: {places}"
    )


def read_save_point(store: Store, point: SavePoint, wanted: Callable[[str], bool], owner: str) -> dict[str, Path]:
    """Local paths of the wanted files by name, each as it was saved.

    Raises DamagedSavePoint, which names the `owner` (stage/id), for a file that is not.
    """
    entries = {name: entry for name, entry in read_marker(store, point, owner).items() if wanted(name)}
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        paths = pool.map(lambda name: _saved_file(store, point, name, entries[name], owner), entries)
        return dict(zip(entries, paths, strict=True))


def read_marker(store: Store, point: SavePoint, owner: str) -> dict[str, SavePointFile]:
    """Size and hash of every file of a save point, by name. Raises DamagedSavePoint when it does not say so."""
    try:
        marker = orjson.loads(store.read(point.marker))
    except (FileNotFoundError, orjson.JSONDecodeError) as error:
        raise _damaged(store, point, owner, f"its marker cannot be read ({error})") from error
    entries = marker.values() if isinstance(marker, dict) else [None]
    if not all(isinstance(entry, dict) and {"size", HASH} <= entry.keys() for entry in entries):
        raise _damaged(store, point, owner, "its marker has no sizes and hashes of files, or is of an older version")
    for name, entry in marker.items():
        # Names become paths and hashes names in the cache, so neither may lead elsewhere.
        if "/" in name or not is_name(name) or not re.fullmatch(r"[0-9a-f]+", str(entry[HASH])):
            raise _damaged(store, point, owner, f"its marker names {name[:200]!r} with hash {str(entry[HASH])[:80]!r}")
    return marker


def _areas(progress_folder: str) -> tuple[str, str]:
    return ephemeral_area(progress_folder), permanent_area(progress_folder)


def _points(area: str, names: Iterable[str]) -> Iterator[SavePoint]:
    """The save points whose markers are among the names in an area."""
    for name in names:
        if name.startswith(MARKER):
            yield SavePoint(int(name.removeprefix(MARKER).removesuffix(".json")), area)


def _settled(path: Path) -> tuple[Path, SavePointFile]:
    """Marker entry of a file, which then is on the disk, not only on its way there."""
    with path.open("rb") as file:
        # Before the move: a rename may reach the disk ahead of the bytes that it names.
        os.fsync(file.fileno())
    return path, {"size": path.stat().st_size, "xxh3_128": _hash(path)}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def _saved_file(store: Store, point: SavePoint, name: str, entry: SavePointFile, owner: str) -> Path:
    saved = f"{point.folder}/{name}"
    if store.size(saved) == entry["size"]:
        path = store.local(saved, entry[HASH])
        if _hash(path) == entry[HASH]:
            return path
        if not store.is_local:
            path.unlink(missing_ok=True)
    raise _damaged(store, point, owner, f"{name} is missing or not what was saved")


def _damaged(store: Store, point: SavePoint, owner: str, finding: str) -> DamagedSavePoint:
    return DamagedSavePoint(
        f"save point {point.step} of {owner} is damaged ({point.folder} and {point.marker} in store {store.url}): {finding}."
    )
