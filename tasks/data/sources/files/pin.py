"""What tells one content of a file from another: the version that a file system states, and a hash of the bytes.

A version is taken before the bytes are hashed or read. File systems stamp changes by a clock of a few milliseconds, so a
second change within one tick would keep the stamp; `settled_version` waits until that tick is over.
"""

import hashlib
import os
import time
from functools import lru_cache
from typing import NamedTuple

from infra.storage.store import Store

WHOLE_BYTES = 64 << 20
"""Local files up to this are hashed whole."""
_SAMPLE_BYTES = 4 << 20
_TICK_SECONDS = 0.02
"""Longer than the tick of a kernel's clock (10 ms at most)."""
_NAMES = ("ETag", "etag", "version_id", "generation", "md5Hash", "content_md5")
"""What object stores call the version of an object, in fsspec's facts."""


class Version(NamedTuple):
    """What a file system says of a file; two contents never have the same."""

    size: int
    stamp: str
    """ETag of an object; time of change in nanoseconds and number of a local file."""
    modified: int
    """Nanoseconds; 0 for an object with a version."""
    changed: int
    """When the local file or its facts changed last, nanoseconds; nobody can set it back."""


def current_version(store: Store, name: str) -> Version | None:
    """The version that is there; None where there is no file."""
    if store.is_local:
        try:
            found = os.stat(store.full(name))
        except FileNotFoundError:
            return None
        # ctime and inode: mtime can be set back by anyone, ctime cannot.
        return Version(found.st_size, f"{found.st_ctime_ns}-{found.st_ino}", found.st_mtime_ns, found.st_ctime_ns)
    try:
        facts = store.fs.info(store.full(name))
    except FileNotFoundError:
        return None
    # Stores quote ETags, some with and some without.
    stamp = next((str(facts[key]).strip('"') for key in _NAMES if facts.get(key)), "")
    return Version(int(facts["size"]), stamp, 0, 0)


def settled_version(store: Store, name: str) -> Version | None:
    """The version that is there, once a further change of a local file would be stamped with another time."""
    version = current_version(store, name)
    if version is None or not version.changed:
        return version
    age = time.time() - version.changed / 1e9
    if 0 <= age < _TICK_SECONDS:
        # Waits out the clock's tick, so that a later change has another stamp.
        time.sleep(_TICK_SECONDS - age)
    return current_version(store, name)


def fingerprint(store: Store, name: str, version: Version) -> tuple[int, str, str]:
    """(bytes, hash or "", version or ""): how a file is pinned. The same content at the same place has the same."""
    if not store.is_local and version.stamp:
        return version.size, "", version.stamp
    # Large files are sampled, so their time of change is part of the pin.
    pin = str(version.modified) if store.is_local and version.size > WHOLE_BYTES else ""
    # Without a stamp the version does not tell contents apart, and the hash is computed again.
    return version.size, (_hash if version.stamp else _hash.__wrapped__)(store.url, name, version), pin


@lru_cache(4096)
def _hash(url: str, name: str, version: Version) -> str:
    """Hash of the content. A worker asks again for every part of a file that it reads; the version says if it may differ."""
    # The size goes first: samples of files of different length may be equal.
    digest = hashlib.sha256(str(version.size).encode())
    with Store(url).open(name) as file:
        if version.size <= WHOLE_BYTES:
            while chunk := file.read(_SAMPLE_BYTES):
                digest.update(chunk)
        else:
            for offset in (0, version.size // 2, version.size - _SAMPLE_BYTES):
                file.seek(offset)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
