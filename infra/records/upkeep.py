"""The store's day two: hash everything again, mend one artifact, copy a lineage, and remove what nobody reaches.

Everything goes by the records. What is read here is hashed from the store itself, never from a local copy.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from infra.records.lease import holder_of
from infra.records.record import (
    Record,
    content_digest,
    generations,
    lineage,
    load_record,
    progress_folder,
    record_path,
)
from infra.records.save_points import ephemeral_area
from infra.storage.store import CorruptObject, Store, StoreError, default_cache

_FILES_AT_ONCE = 8
"""Files that are hashed or copied at a time."""
CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Damage:
    """One file of an artifact, or its record, that is not what was committed."""

    stage: str
    id: str
    generation: int
    file: str
    finding: str


def sha256_of(store: Store, path: str) -> str | None:
    """Hash of an object's bytes as the store gives them now; None if it is absent."""
    digest = hashlib.sha256()
    try:
        with store.open(path) as stream:
            while data := stream.read(CHUNK_BYTES):
                digest.update(data)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def damaged_files(store: Store, record: Record) -> dict[str, str]:
    """Files of an artifact that are missing or have other bytes than its record says, with what was found."""

    def look(name: str) -> str:
        found = sha256_of(store, f"{record.payload}/{name}")
        if found is None:
            return "missing"
        expected = record.files[name].sha256
        return "" if found == expected else f"its sha256 is {found[:16]}…, its record says {expected[:16]}…"

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        return {name: said for name, said in zip(record.files, pool.map(look, record.files), strict=True) if said}


def artifacts(store: Store) -> Iterator[tuple[str, str, int]]:
    """Stage, id and generation of everything that has a record, readable or not."""
    for stage in store.names(""):
        if stage.startswith("_"):
            continue
        for id in store.names(stage):
            for generation in generations(store, stage, id):
                yield stage, id, generation


class VerifiedSoFar:
    """What a verification has found whole so far, so that the same command goes on after an interruption."""

    def __init__(self, store: Store):
        self.path = default_cache(store.url) / "verified"
        self.done = set(self.path.read_text().split()) if self.path.exists() else set()

    def add(self, key: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A line for each artifact at once, so that a kill costs one artifact.
        with self.path.open("a") as file:
            file.write(f"{key}\n")

    def finish(self) -> None:
        self.path.unlink(missing_ok=True)


def verify_artifacts(
    store: Store, ids: Iterable[str], tell: Callable[[str, int, int], None]
) -> tuple[int, list[Damage]]:
    """Hash every artifact whose id begins so (all if none is given) again; returns how many, and what is damaged.

    `tell` hears of each artifact with its number and their count. Interrupted, the same call skips what was found whole.
    """
    wanted = tuple(ids)
    found = [place for place in artifacts(store) if not wanted or place[1].startswith(wanted)]
    journal = VerifiedSoFar(store)
    damage: list[Damage] = []
    for number, (stage, id, generation) in enumerate(found, 1):
        tell(f"{stage}/{id}", number, len(found))
        key = f"{stage}/{id}/{generation}"
        if key in journal.done:
            continue
        try:
            record = load_record(store, stage, id, generation)
        except CorruptObject as error:
            damage.append(Damage(stage, id, generation, Path(record_path(stage, id, generation)).name, str(error)))
            continue
        files = damaged_files(store, record) if record is not None else {}
        damage += [Damage(stage, id, generation, name, said) for name, said in files.items()]
        # Only what is whole is skipped next time; what is damaged is looked at again after it was mended.
        if not files:
            journal.add(key)
    # A whole pass is over, so the next one begins with nothing.
    journal.finish()
    return len(found), damage


def _fetch(source: Store, target: Store, record: Record, names: Iterable[str]) -> None:
    """Copy files of an artifact from one store to another. Raises CorruptObject for one that is not what its record says."""

    def copy(name: str) -> None:
        path, entry = f"{record.payload}/{name}", record.files[name]
        with target.staging(record.payload) as folder:
            local = folder / "file"
            digest = hashlib.sha256()
            with source.open(path) as stream, local.open("wb") as file:
                while data := stream.read(CHUNK_BYTES):
                    digest.update(data)
                    file.write(data)
            # Hashed on the way, so that each byte is read once.
            if digest.hexdigest() != entry.sha256:
                raise CorruptObject(f"{path} in store {source.url} is not what its record says; verify that store")
            target.move(local, path)

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        list(pool.map(copy, names))


def copy_lineage(source: Store, target: Store, record: Record) -> list[tuple[Record, bool]]:
    """Copy an artifact and all that it was made from, inputs first; returns each with whether it had to be copied.

    An artifact appears with its record, after all its files; what is there is hashed, and mended if it is damaged.
    Raises CorruptObject where the other store has something else under the same name.
    """
    copied = []
    for item in lineage(source, record):
        there = load_record(target, item.stage, item.id, item.generation)
        if there is not None and there.digest != item.digest:
            raise CorruptObject(
                f"{item.address} has digest {there.digest[:16]}… in store {target.url} and {item.digest[:16]}… in "
                f"{source.url}: two generations of one id. Copy to a store of its own."
            )
        # Files are judged by the target's own record, whose attempt may have another payload folder.
        known = there or item
        names = damaged_files(target, known)
        if names and known.payload != item.payload:
            raise CorruptObject(
                f"{known.payload} in store {target.url} is damaged: olmo2 repair {known.id} --store {target.url}"
            )
        _fetch(source, target, item, names)
        if there is None:
            target.settle([f"{item.payload}/{name}" for name in item.files])
            path = record_path(item.stage, item.id, item.generation)
            # The very bytes of the source's record, so its seal holds.
            target.create(path, source.read(path))
            target.settle([path])
        copied.append((item, bool(names) or there is None))
    return copied


def mend_from(store: Store, other: Store, record: Record, damaged: Iterable[str]) -> None:
    """Replace damaged files by those of the same artifact in another store. Raises StoreError if it has none like it."""
    for generation in generations(other, record.stage, record.id):
        theirs = load_record(other, record.stage, record.id, generation)
        # Equal digests mean equal files under equal names, whichever attempt wrote them.
        if theirs is not None and theirs.digest == record.digest == content_digest(theirs.files):
            replace_files(store, record, other, theirs, damaged)
            return
    raise StoreError(f"store {other.url} has no {record.stage}/{record.id} with digest {record.digest[:16]}…")


def replace_files(store: Store, record: Record, source: Store, same: Record, names: Iterable[str]) -> None:
    """Take files from an artifact of equal digest."""
    for name in names:
        path, entry = f"{same.payload}/{name}", record.files[name]
        data = source.read(path)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CorruptObject(f"{path} in store {source.url} is not what its record says; verify that store")
        store.write(f"{record.payload}/{name}", data)
    store.settle([f"{record.payload}/{name}" for name in names])


@dataclass
class Garbage:
    """What nobody reaches."""

    folders: list[str] = field(default_factory=list)
    """Objects and folders to remove, records before their payloads."""
    bytes: int = 0


def garbage(store: Store, roots: Iterable[Record], *, everything_else: bool) -> Garbage:
    """Return what can go: payloads that no record names, leftovers of finished attempts, and older generations from which
    nothing was made that stays. With `everything_else`, all goes that the roots were not made from.

    Work of an attempt that may be alive stays, and so do permanent save points.
    """
    records: dict[str, Record] = {}
    newest: dict[tuple[str, str], Record] = {}
    for stage, id, generation in artifacts(store):
        record = load_record(store, stage, id, generation)
        assert record is not None, "a record does not go by itself"
        records[record.address] = newest[stage, id] = record  # generations come in their order
    ways = [record.address for record in (roots if everything_else else [*newest.values(), *roots])]
    reached: set[str] = set()
    while ways:
        address = ways.pop()
        if address not in reached and address in records:
            reached.add(address)
            ways += [item.address for item in records[address].inputs]
    found = Garbage()
    for address, record in records.items():
        if address not in reached and _is_idle(store, record):
            # Records before payloads: a kill in between leaves files without a record, never a record without files.
            found.folders += [record_path(record.stage, record.id, record.generation), record.payload]
            found.bytes += sum(entry.size for entry in record.files.values())
    for record in records.values():
        _leftovers(store, record, records, found)
    return found


def _leftovers(store: Store, record: Record, records: dict[str, Record], found: Garbage) -> None:
    """Folders of attempts that did not commit, and what they left in the progress area."""
    # An attempt that may be alive still reads its shards' markers.
    if not _is_idle(store, record):
        return
    folder = progress_folder(record.stage, record.id, record.generation)
    below = f"{record.stage}/{record.id}"
    others = [f"{below}/{name}" for name in store.names(below) if name.startswith(f"g{record.generation:04d}")]
    kept = {item.payload for item in records.values()}
    for place in [*(other for other in others if other not in kept), ephemeral_area(folder), f"{folder}/shards"]:
        sizes = [store.size(path) or 0 for path in store.walk(place)]
        if sizes:
            found.folders.append(place)
            found.bytes += sum(sizes)


def _is_idle(store: Store, record: Record) -> bool:
    return holder_of(store, progress_folder(record.stage, record.id, record.generation)) != "alive"


def remove(store: Store, found: Garbage) -> None:
    """Remove it. What is reached stays whole at every moment: a record goes before its payload."""
    for folder in found.folders:
        store.remove(folder)


def set_record_aside(store: Store, stage: str, id: str, generation: int) -> str:
    """Move a damaged record out of the way, where it can be looked at; returns where."""
    path = record_path(stage, id, generation)
    # A random name, so that a second damaged record does not replace the first.
    aside = f"{progress_folder(stage, id, generation)}/damaged-{os.urandom(4).hex()}.json"
    with suppress(FileNotFoundError):
        store.write(aside, store.read(path))
    store.remove(path)
    return aside


def told_digest(store: Store, path: str) -> str:
    """The digest that a damaged record still names; empty if it cannot be read."""
    try:
        body = orjson.loads(store.read(path))
    except (FileNotFoundError, orjson.JSONDecodeError):
        return ""
    return str(body.get("digest", "")) if isinstance(body, dict) else ""
