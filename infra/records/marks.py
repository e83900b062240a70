"""Marks that people set on artifacts: tags (a name that may move), pins (kept by every gc) and notes (a line of text). Cordons
of nodes (`nodes.py`) are kept in the same way.

Each setting is its own object, written by a create-only call with who and when, so a store keeps the whole history. Two
people who set the same tag at once both leave theirs; the one with the higher number counts.
"""

import getpass
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from infra.records.record import Record, record_at
from infra.storage.store import CorruptObject, Store, StoreError

_AREA = "_marks"
TAG = re.compile(r"[A-Za-z_][\w.-]{0,63}")
"""A tag's name; it is a folder's name too."""
LONGEST_NOTE = 10_000
"""Characters."""
_TRIES = 100


@dataclass(frozen=True)
class Mark:
    """One setting of a mark, the newest of its name."""

    kind: str
    name: str
    address: str
    """Of the artifact; empty when the mark was taken away."""
    text: str
    who: str
    when: str


def set_tag(store: Store, name: str, record: Record) -> Mark:
    """Give an artifact a name; one that has it already loses it. Raises ValueError for a name that cannot be one."""
    if not TAG.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} is no tag: letters, digits, _ - and . only, beginning with a letter, at most 64"
        )
    return add_mark(store, "tag", name, record.address)


def remove_tag(store: Store, name: str) -> Mark:
    """Take a tag away; its history stays. Raises ValueError if there is none."""
    if name not in tags(store):
        raise ValueError(f"store {store.url} has no tag {name!r}; it has {', '.join(sorted(tags(store))) or 'none'}")
    return add_mark(store, "tag", name, "")


def set_pin(store: Store, record: Record, *, pinned: bool = True, why: str = "") -> Mark:
    """Keep an artifact, with all it was made from, from every gc; or no longer."""
    return add_mark(store, "pin", _one_word(record.address), record.address if pinned else "", why)


def add_note(store: Store, record: Record, text: str) -> Mark:
    """Add a line to what people say of an artifact. Raises ValueError for an empty or an endless one."""
    if not text.strip() or len(text) > LONGEST_NOTE:
        raise ValueError(f"a note has 1 to {LONGEST_NOTE:,} characters; this has {len(text.strip()):,}")
    return add_mark(store, "note", _one_word(record.address), record.address, text.strip())


def tags(store: Store) -> dict[str, Mark]:
    """Tag to its newest setting, of those that mark something."""
    return marks_that_hold(store, "tag")


def pins(store: Store) -> list[Mark]:
    """Pins that are set."""
    return list(marks_that_hold(store, "pin").values())


def marks_that_hold(store: Store, kind: str) -> dict[str, Mark]:
    """The newest setting of each name of a kind, of those that mark something."""
    newest = {name: _newest(store, kind, name) for name in store.names(f"{_AREA}/{kind}")}
    # A name without a mark any more still has its folder, since the history stays.
    return {name: mark for name, mark in newest.items() if mark and mark.address}


def notes(store: Store, record: Record) -> list[Mark]:
    """Notes of an artifact, oldest first."""
    return list(_settings(store, "note", _one_word(record.address)))


def tagged_record(store: Store, name: str) -> Record | None:
    """The artifact that a tag marks; None if there is no such tag. StoreError if it is gone."""
    if not TAG.fullmatch(name):
        return None
    mark = _newest(store, "tag", name)
    return record_at(store, mark.address) if mark and mark.address else None


def marked_records(store: Store) -> list[Record]:
    """Artifacts that a tag or a pin keeps. Raises StoreError for one that is gone."""
    addresses = dict.fromkeys(mark.address for mark in [*tags(store).values(), *pins(store)])
    return [record_at(store, address) for address in addresses]


def _one_word(address: str) -> str:
    # An address has slashes, and a mark's name is one folder.
    return address.replace("/", ".")


def add_mark(store: Store, kind: str, name: str, address: str, text: str = "") -> Mark:
    """Add a setting of a mark, which counts from now on; an empty address takes the mark away."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    # The key makes each body unlike all others: `create` takes an equal one for its own lost reply.
    said = {"address": address, "text": text, "who": _user(), "when": now, "key": os.urandom(8).hex()}
    numbers = store.names(f"{_AREA}/{kind}/{name}")
    # Names are six digits, so the last by name is the newest.
    number = int(numbers[-1].removesuffix(".json")) if numbers else 0
    for _ in range(_TRIES):
        number += 1
        if store.create(f"{_AREA}/{kind}/{name}/{number:06d}.json", orjson.dumps(said)):
            return Mark(kind, name, address, text, said["who"], now)
    raise StoreError(f"{_TRIES} others set the {kind} {name} of store {store.url} at the same time; try again")


def _settings(store: Store, kind: str, name: str) -> Iterator[Mark]:
    for file in store.names(f"{_AREA}/{kind}/{name}"):
        yield _read(store, kind, name, file)


def _newest(store: Store, kind: str, name: str) -> Mark | None:
    files = store.names(f"{_AREA}/{kind}/{name}")
    return _read(store, kind, name, files[-1]) if files else None


def _read(store: Store, kind: str, name: str, file: str) -> Mark:
    path = f"{_AREA}/{kind}/{name}/{file}"
    said: Any = store.read_json(path)
    fields = ("address", "text", "who", "when")
    if not isinstance(said, dict) or not all(isinstance(said.get(field), str) for field in fields):
        raise CorruptObject(f"{path} in store {store.url} is no mark: it was changed from outside; remove it")
    return Mark(kind, name, *(said[field] for field in fields))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())  # a container's user without a name
