"""Save points in the store: the states of one attempt at a stage, each a folder of files and a marker that lists them.

Source: RECIPE J (permanent and ephemeral checkpoints). Below the progress folder there are two areas: `points` has the
newest ephemeral save point and goes when the stage commits; `kept` has the permanent ones, which stay. A save point exists
once its marker is written, so a kill leaves the older one or the new one, never a half.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from infra.store import Store, StoreError, sha256_file

HASHED_AT_ONCE = 4
"""Files of a save point that are hashed side by side."""

MARKER = "point-"
"""How names of markers begin; the step follows, in ten digits."""


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
    areas = (ephemeral_area(progress_folder), permanent_area(progress_folder))
    return max((point for area in areas for point in _points(store, area)), default=None)


def write_save_point(
    store: Store,
    progress_folder: str,
    step: int,
    files: Path,
    *,
    keep: bool,
    gather: Callable[[Any], list[Any] | None] | None,
) -> None:
    """Move the files of a staging folder to the store, write their marker, then remove older ephemeral save points.

    In a group each process saves its own files; `gather` hands what each has written to the first one, which writes the
    marker.
    """
    point = SavePoint(step, (permanent_area if keep else ephemeral_area)(progress_folder))
    paths = sorted(path for path in files.rglob("*") if path.is_file())
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        hashes = list(pool.map(_settled, paths))
    written = {}
    for path, sha256 in zip(paths, hashes, strict=True):
        name = path.relative_to(files).as_posix()
        written[name] = {"size": path.stat().st_size, "sha256": sha256}
        store.move(path, f"{point.folder}/{name}")
    parts = gather(written) if gather else [written]
    if parts is None:
        return
    marker = {name: entry for part in parts for name, entry in part.items()}
    store.write(point.marker, orjson.dumps(marker, option=orjson.OPT_SORT_KEYS))
    for older in list(_points(store, ephemeral_area(progress_folder))):
        if older.step < step:
            store.remove(older.marker)
            store.remove(older.folder)


def read_save_point(store: Store, point: SavePoint, wanted: Callable[[str], bool], owner: str) -> dict[str, Path]:
    """Local paths of the wanted files by name, each as it was saved.

    Raises StoreError, which names the `owner` (stage/id), for a file that is not.
    """
    entries = {name: entry for name, entry in store.read_json(point.marker).items() if wanted(name)}
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        paths = pool.map(lambda name: _saved_file(store, point, name, entries[name], owner), entries)
        return dict(zip(entries, paths, strict=True))


def _points(store: Store, area: str) -> Iterator[SavePoint]:
    for name in store.names(area):
        if name.startswith(MARKER):
            yield SavePoint(int(name.removeprefix(MARKER).removesuffix(".json")), area)


def _settled(path: Path) -> str:
    """Hash of a file that is on the disk, not only on its way there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sha256_file(path)


def _saved_file(store: Store, point: SavePoint, name: str, entry: dict[str, Any], owner: str) -> Path:
    saved = f"{point.folder}/{name}"
    if store.size(saved) == entry["size"]:
        path = store.local(saved, entry["sha256"])
        if sha256_file(path) == entry["sha256"]:
            return path
        if not store.is_local:
            path.unlink()
    raise StoreError(
        f"save point {point.step} of {owner} is corrupt: {saved} in store {store.url} is missing "
        f"or not what was saved. Remove {saved.rsplit('/', 2)[0]} there to begin this stage anew."
    )
