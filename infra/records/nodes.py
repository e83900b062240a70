"""Nodes and devices as a store knows them: how each did in its last health check, and which ones are cordoned.

A place is what stages can be kept away from: a node of a Ray cluster (its id), a host with all that is on it (its name), or a
device of one (`gpu7/cuda:1`). A cordoned place is given no stage, however healthy it is, until somebody lifts the cordon
(RECIPE J). Anyone may set or lift one; the health check only ever sets one. All drivers of the store see it.
"""

import re
from collections.abc import Iterable
from typing import TypedDict

import orjson

from infra.records.marks import Mark, add_mark, marks_that_hold
from infra.storage.store import Store

_AREA = "_nodes"
_CORDON = "cordon"
_PLACE = re.compile(r"[A-Za-z0-9][\w.-]{0,252}(/[a-z]+(:\d+)?)?")
"""A host's name or Ray's id of a node, perhaps with a device."""


class HealthRow(TypedDict):
    """What a device's health check found, as records and the store keep it."""

    place: str
    """What is cordoned if it fails."""
    device: str
    host: str
    node: str
    """Ray's id of the node; empty outside a cluster."""
    passed: bool
    failed: list[str]
    """Each check that failed: what was measured, and what was expected."""
    speeds: dict[str, float]
    """TFLOP/s of matmuls by precision, GB/s of a copy and, in a group, of an all-reduce."""
    seconds: float
    """What the check took."""
    when: str
    """ISO 8601 in UTC."""


def set_cordon(store: Store, place: str, why: str) -> Mark:
    """Give a place no stage from now on. Raises ValueError for a name that cannot be one, or without a reason."""
    if not _PLACE.fullmatch(place):
        raise ValueError(
            f"{place[:200]!r} is no node: give the id or host that olmo2 nodes prints, or HOST/cuda:NUMBER"
        )
    if not why.strip():
        raise ValueError(f"a cordon of {place} is kept with its reason; give one, such as --why 'ECC errors'")
    return add_mark(store, _CORDON, _folder(place), place, why.strip())


def lift_cordon(store: Store, place: str) -> Mark:
    """Let a place have stages again. Raises ValueError if it is not cordoned."""
    if place not in (found := cordons(store)):
        raise ValueError(f"store {store.url} has no cordon of {place!r}; it has {', '.join(sorted(found)) or 'none'}")
    return add_mark(store, _CORDON, _folder(place), "")


def cordons(store: Store) -> dict[str, Mark]:
    """Cordoned place -> who cordoned it, when and why."""
    return {mark.address: mark for mark in marks_that_hold(store, _CORDON).values()}


def cordon_text(cordon: Mark) -> str:
    """A cordon for people."""
    return f"{cordon.address} is cordoned ({cordon.who}, {cordon.when}: {cordon.text})"


def told_cordons(found: Iterable[Mark]) -> str:
    """Cordons for people, with the way out."""
    told = [*found]
    return f"{'; '.join(map(cordon_text, told))}. Lift a cordon with: olmo2 nodes --uncordon {told[0].address}"


def remember_health(store: Store, row: HealthRow) -> float | None:
    """Keep what the last check of a device found; the store's time of it in seconds since 1970, None where it tells none."""
    path = f"{_AREA}/{_folder(row['place'])}.{_folder(row['device'])}.json"
    store.write(path, orjson.dumps(row))
    return store.modified(path)


def known_health(store: Store) -> list[HealthRow]:
    """What the last check of each device found, in the order of their names."""
    return [store.read_json(f"{_AREA}/{name}") for name in store.names(_AREA)]


def _folder(place: str) -> str:
    # One name of an object: a slash would make a folder, and not every file system takes a colon.
    return place.replace("/", ".").replace(":", "")
