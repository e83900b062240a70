"""The index keeps on this machine what the records of a store say, so that lists of 100,000 answer at once.

It is never trusted against the records. Each question first lists the store and reads again whatever changed since; the file
may be deleted at any time and is then rebuilt. What is reused, removed or shown comes from the record itself.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import orjson

from infra.json_values import JsonObject
from infra.records.record import Input, Record, generations, load_record
from infra.storage.store import Store

FORMAT = 1
"""Raised when the tables change: an older file is rebuilt."""
SETTLED_SECONDS = 2.0
"""A folder that changed so recently may change again within one tick of the file system's clock: it is read again next time."""
ASKED_AT_ONCE = 32
"""Folders of a remote store that are listed at a time."""
LOCK_SECONDS = 30.0
_TABLES = """
CREATE TABLE ids (stage TEXT, id TEXT, stamp TEXT, PRIMARY KEY (stage, id));
CREATE TABLE records (stage TEXT, id TEXT, generation INTEGER, created TEXT, summary BLOB, body BLOB,
                      PRIMARY KEY (stage, id, generation));
"""


class Summary(TypedDict):
    """What a list tells of a record."""

    id: str
    stage: str
    label: str
    kind: str
    created: str
    generation: int
    seconds: float
    bytes: int
    """Of all payload files."""
    digest: str
    facts: JsonObject


class Body(TypedDict):
    """What a search reads of a record besides its summary."""

    version: int
    config: JsonObject
    inputs: list[dict[str, str]]
    """As `Input` has them."""
    notes: JsonObject


@dataclass(frozen=True)
class Known:
    """What a record says of how its artifact was made."""

    version: int
    config: JsonObject
    inputs: list[Input]


class Index:
    """The index of one store. `tell` hears of how many new records were read, of how many."""

    def __init__(self, store: Store, tell: Callable[[int, int], None] = lambda done, total: None):
        self._store = store
        self._tell = tell
        # In the cache, not in the store: two machines that share a store need not lock one database.
        self.path = store.cache / "index.sqlite"

    def rows(self, stages: Iterable[str] | None = None) -> list[Summary]:
        """A summary of each record, oldest first; CorruptObject for a new one that is damaged."""
        with self._opened() as database:
            self._refresh(database, stages)
            where, values = _of_stages(stages)
            found = database.execute(f"SELECT summary FROM records {where} ORDER BY created, stage, id", values)
            return [orjson.loads(summary) for (summary,) in found]

    def bodies(self, stages: Iterable[str] | None = None) -> Iterator[tuple[Summary, Body]]:
        """(summary, the rest: config, notes, inputs, version) of each record, oldest first."""
        with self._opened() as database:
            self._refresh(database, stages)
            where, values = _of_stages(stages)
            found = database.execute(f"SELECT summary, body FROM records {where} ORDER BY created, stage, id", values)
            for summary, body in found:
                yield orjson.loads(summary), orjson.loads(body)

    def newest(self, stage: str, most: int) -> list[Known]:
        """How the newest records of a stage were made, newest first."""
        with self._opened() as database:
            self._refresh(database, [stage])
            order = "WHERE stage = ? ORDER BY created DESC, id DESC, generation DESC LIMIT ?"
            found = database.execute(f"SELECT body FROM records {order}", (stage, most))
            bodies = [orjson.loads(body) for (body,) in found]
        return [
            Known(body["version"], body["config"], [Input.model_validate(item) for item in body["inputs"]])
            for body in bodies
        ]

    def rebuild(self) -> int:
        """Forget everything and read all records; returns how many there are."""
        self.path.unlink(missing_ok=True)
        return len(self.rows())

    # -- keeping up ---------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = _connected(self.path)
        try:
            yield database
            database.commit()
        finally:
            database.close()

    def _refresh(self, database: sqlite3.Connection, stages: Iterable[str] | None) -> None:
        # Names with a dot or an underscore in front are the store's own areas.
        there = [name for name in self._store.names("") if name[0] not in "_."]
        for stage in there if stages is None else stages:
            self._refresh_stage(database, stage)
        if stages is None:
            for (gone,) in database.execute("SELECT DISTINCT stage FROM ids").fetchall():
                if gone not in there:
                    self._refresh_stage(database, gone)

    def _refresh_stage(self, database: sqlite3.Connection, stage: str) -> None:
        stamps = self._stamps(stage)
        known = dict(database.execute("SELECT id, stamp FROM ids WHERE stage = ?", (stage,)))
        for id in known.keys() - stamps.keys():
            _forget(database, stage, id)
        # An empty stamp is never believed, so a remote store without stamps is read again each time.
        changed = sorted(id for id, stamp in stamps.items() if not stamp or known.get(id) != stamp)
        try:
            for number, id in enumerate(changed, 1):
                records = [load_record(self._store, stage, id, one) for one in generations(self._store, stage, id)]
                # In the same transaction as the new rows, so that no reader sees an id without its records.
                _forget(database, stage, id)
                database.execute("INSERT INTO ids VALUES (?, ?, ?)", (stage, id, stamps[id]))
                database.executemany(
                    "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", [_line(record) for record in records if record]
                )
                self._tell(number, len(changed))
        finally:
            database.commit()  # what was read stays known where a later one is damaged

    def _stamps(self, stage: str) -> dict[str, str]:
        """Id to what changes when one of its records comes, goes or is replaced; empty where that is not known."""
        if self._store.is_local:
            return _local_stamps(Path(self._store.full(stage)))
        ids = self._store.names(stage)
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            return dict(zip(ids, pool.map(lambda id: self._store.stamp(f"{stage}/{id}"), ids), strict=True))


def summary_of(record: Record) -> Summary:
    """What a list tells of a record."""
    return {
        "id": record.id,
        "stage": record.stage,
        "label": record.label,
        "kind": record.kind,
        "created": record.created,
        "generation": record.generation,
        "seconds": record.seconds,
        "bytes": sum(entry.size for entry in record.files.values()),
        "digest": record.digest,
        "facts": record.facts,
    }


def _line(record: Record) -> tuple[Any, ...]:
    body = record.model_dump(mode="json", include={"version", "config", "inputs", "notes"})
    key = (record.stage, record.id, record.generation, record.created)
    return (*key, orjson.dumps(summary_of(record)), orjson.dumps(body))


def _forget(database: sqlite3.Connection, stage: str, id: str) -> None:
    database.execute("DELETE FROM ids WHERE stage = ? AND id = ?", (stage, id))
    database.execute("DELETE FROM records WHERE stage = ? AND id = ?", (stage, id))


def _of_stages(stages: Iterable[str] | None) -> tuple[str, list[str]]:
    if stages is None:
        return "", []
    names = list(stages)
    return f"WHERE stage IN ({', '.join('?' * len(names))})", names


def _local_stamps(folder: Path) -> dict[str, str]:
    """A folder's time changes when a record is created, removed or replaced in it, as each write is a rename."""
    found, now = {}, time.time()
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    with entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir():
                changed = entry.stat()
                settled = now - changed.st_mtime > SETTLED_SECONDS
                # The inode as well: a folder that was removed and made again may have the same time.
                found[entry.name] = f"{changed.st_ino}:{changed.st_mtime_ns}" if settled else ""
    return found


def _connected(path: Path) -> sqlite3.Connection:
    """The database with its tables. One that cannot be read, or that another version made, is rebuilt."""
    for attempt in (1, 2):
        database = sqlite3.connect(path, timeout=LOCK_SECONDS)
        try:
            (made,) = database.execute("PRAGMA user_version").fetchone()
            if made == FORMAT:
                return database
            database.executescript(
                f"BEGIN IMMEDIATE; DROP TABLE IF EXISTS ids; DROP TABLE IF EXISTS records; {_TABLES}"
                f"PRAGMA user_version = {FORMAT}; COMMIT;"
            )
            return database
        # Another process holds the lock: the file is whole and must not be removed.
        except sqlite3.OperationalError:
            database.close()
            raise
        except sqlite3.DatabaseError:
            database.close()
            if attempt == 2:
                raise
            path.unlink(missing_ok=True)
    raise AssertionError("the second attempt returns or raises")
