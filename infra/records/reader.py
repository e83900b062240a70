"""Reading committed artifacts: every file is checked against its record before it is used.

A file is checked once per process and shard: size and hash, or for ranges of a large one only that they are all there
(docs/decisions.md, 16). What does not agree is an error that names the file, the finding and the way out.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from infra.records.artifact import Artifact
from infra.records.record import ADDRESS, Record, corrupt_file, record_at, record_of
from infra.storage.store import Store, StoreError, sha256_file

RECENT_RECORDS = 8
"""Records kept by a process: a worker reads the same input's for shard after shard, and one of 100,000 files takes a second."""
_recent_records: dict[tuple[str, str], Record] = {}
_payloads: dict[tuple[str, str], str] = {}


class Inputs:
    """The artifacts of a store. Cheap to pickle; what was verified need not be verified again where it travels to."""

    def __init__(self, store: Store, verified: Iterable[tuple[str, str]] = ()):
        self.store = store
        self._verified = set(verified)

    def copy(self) -> "Inputs":
        """The same with a memory of its own."""
        return Inputs(self.store, self._verified)

    def record(self, artifact: Artifact) -> Record:
        """The record of exactly this generation."""
        key = (self.store.url, artifact.address)
        record = _recent_records.get(key)
        if record is None:
            record = _recent_records[key] = record_of(self.store, artifact)
            while len(_recent_records) > RECENT_RECORDS:
                _recent_records.pop(next(iter(_recent_records)), None)
        return record

    def payload(self, artifact: Artifact) -> str:
        """The folder of an artifact's files. Remembered apart from its record, which may be large."""
        key = (self.store.url, artifact.address)
        if key not in _payloads:
            _payloads[key] = self.record(artifact).payload
        return _payloads[key]

    def at(self, address: str) -> Artifact:
        """The artifact at an address that a payload names. Raises StoreError if there is none."""
        if re.fullmatch(ADDRESS, address) is None:
            raise StoreError(
                f"an input names {address[:200]!r}, which is no address (stage/id/g0001); rerun that input"
            )
        return record_at(self.store, address).artifact()

    def path(self, artifact: Artifact, name: str) -> Path:
        """A verified local path of one file. Raises StoreError when it is missing or not what the record says."""
        record = self.record(artifact)
        if name not in record.files:
            raise StoreError(f"{artifact.address} has no file {name!r}; it has {', '.join(sorted(record.files))}")
        address, entry = f"{record.payload}/{name}", record.files[name]
        if (address, entry.sha256) in self._verified:
            return self.store.local(address, entry.sha256)
        size = self.store.size(address)
        if size is None:
            raise corrupt_file(self.store, record, name, "the file is missing")
        if size != entry.size:
            raise corrupt_file(self.store, record, name, f"it has {size:,} bytes, its record says {entry.size:,}")
        path = self.store.local(address, entry.sha256)
        found = sha256_file(path)
        if found != entry.sha256:
            if not self.store.is_local:
                path.unlink(missing_ok=True)
            said = f"its sha256 is {found[:16]}…, its record says {entry.sha256[:16]}…"
            raise corrupt_file(self.store, record, name, said)
        self._verified.add((address, entry.sha256))
        return path

    def read_ranges(self, ranges: Sequence[tuple[Artifact, str, int, int]]) -> list[bytes]:
        """Bytes [start, end) of files. Raises StoreError when one is missing or ends before what is asked for."""
        parts = self.store.read_ranges(
            [(f"{self.payload(artifact)}/{name}", at, to) for artifact, name, at, to in ranges]
        )
        for (artifact, name, start, end), part in zip(ranges, parts, strict=True):
            if len(part) != end - start:
                said = f"bytes {start:,} to {end:,} are not all there"
                raise corrupt_file(self.store, self.record(artifact), name, said)
        return parts
