"""A Reader of committed artifacts: every file is checked against its record before it is used.

A file is checked once per process and shard: size and hash, or for ranges of a large one only that they are all there
(docs/decisions.md, 16). What does not agree is an error that names the file, the finding and the way out.

    >>> Reader(store).read_json(scores, "scores.json")["benchmarks"]
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import zstandard

from infra.json_values import JsonObject
from infra.records.artifact import Artifact
from infra.records.record import ADDRESS, Record, corrupt_file, lineage, record_at, record_of
from infra.storage.copies import Holds
from infra.storage.scratch import Scratch
from infra.storage.store import Store, StoreError, sha256_file

RECENT_RECORDS = 8
"""Records kept by a process: a worker reads the same input's for shard after shard, and one of 100,000 files takes a second."""
_recent_records: dict[tuple[str, str], Record] = {}
_payloads: dict[tuple[str, str], str] = {}


class Reader:
    """The artifacts of a store. Cheap to pickle; what was verified need not be verified again where it travels to.

    A workspace is a reader that can also write. Whoever only looks at artifacts makes a reader of the store.
    """

    scratch_name = "reading"

    def __init__(self, store: Store):
        self.store = store
        self._verified: set[tuple[str, str]] = set()
        self._scratch: Scratch | None = None
        self._holds = Holds()

    def __getstate__(self) -> dict[str, object]:
        # Scratch space and what is held in the cache belong to one process.
        state = self.__dict__ | {"_scratch": None, "_verified": set(self._verified)}
        del state["_holds"]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _holds=Holds())

    def record(self, artifact: Artifact) -> Record:
        """The record of exactly this generation."""
        key = (self.store.url, artifact.address)
        record = _recent_records.get(key)
        if record is None:
            record = _recent_records[key] = record_of(self.store, artifact)
            while len(_recent_records) > RECENT_RECORDS:
                # A dict keeps its order, so the first key is the oldest; another thread may have taken it already.
                _recent_records.pop(next(iter(_recent_records)), None)
        return record

    def payload_of(self, artifact: Artifact) -> str:
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

    def lineage(self, artifact: Artifact) -> list[Record]:
        """Records of an artifact and of everything it was made from."""
        return lineage(self.store, self.record(artifact))

    def files(self, artifact: Artifact, prefix: str = "") -> list[str]:
        """Names of an artifact's payload files below a prefix, sorted."""
        return sorted(name for name in self.record(artifact).files if name.startswith(prefix))

    def path(self, artifact: Artifact, name: str = "", *, wanted: Callable[[str], bool] = lambda name: True) -> Path:
        """A verified local path of one file, or when no name is given of the artifact's folder with at least the wanted
        files.

        Raises StoreError when a file is missing or its size or hash differs from the record.
        """
        if name:
            return self._file(artifact, name)
        paths = {file: self._file(artifact, file) for file in self.record(artifact).files if wanted(file)}
        return self.folder_of(self.record(artifact).payload, paths)

    def folder_of(self, address: str, paths: Mapping[str, Path]) -> Path:
        """A folder of the store as a local one, with at least the files whose local paths are given by name."""
        if self.store.is_local:
            # A local store needs no copy: the folder is there.
            return Path(self.store.full(address))
        folder = self.scratch / "folders" / address
        for name, path in paths.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(path)
        return folder

    def read_json(self, artifact: Artifact, name: str) -> Any:
        """The value of a JSON file."""
        return orjson.loads(self.path(artifact, name).read_bytes())

    def read_jsonl(self, artifact: Artifact, name: str) -> Iterator[JsonObject]:
        """Rows of a JSON-lines file, one at a time."""
        with self.path(artifact, name).open("rb") as raw:
            # `stream_reader` has no lines of its own; a megabyte of buffer makes them.
            stream = zstandard.ZstdDecompressor().stream_reader(raw) if name.endswith(".zst") else raw
            for line in io.BufferedReader(stream, 1 << 20):  # type: ignore[arg-type]
                yield orjson.loads(line)

    @property
    def scratch(self) -> Path:
        """A private temporary folder; `close` deletes it, and so does the end of the process."""
        if self._scratch is None:
            self._scratch = Scratch(self.scratch_name)
        return self._scratch.path

    def close(self) -> None:
        """Delete the scratch folder and let go of the cache's copies, which may then be removed."""
        self._holds.close()
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None

    def _file(self, artifact: Artifact, name: str) -> Path:
        """A verified local path of one file. Raises StoreError when it is missing or not what the record says."""
        record = self.record(artifact)
        if name not in record.files:
            raise StoreError(f"{artifact.address} has no file {name!r}; it has {', '.join(sorted(record.files))}")
        address, entry = f"{record.payload}/{name}", record.files[name]
        if (address, entry.sha256) in self._verified:
            return self.store.local(address, entry.sha256, self._holds)
        # The size first, since it costs one question and finds most damage without a read.
        size = self.store.size(address)
        if size is None:
            raise corrupt_file(self.store, record, name, "the file is missing")
        if size != entry.size:
            raise corrupt_file(self.store, record, name, f"it has {size:,} bytes, its record says {entry.size:,}")
        path = self.store.local(address, entry.sha256, self._holds)
        found = sha256_file(path)
        if found != entry.sha256:
            # A copy that came over the network damaged must not be found again in the cache.
            if not self.store.is_local:
                path.unlink(missing_ok=True)
            said = f"its sha256 is {found[:16]}…, its record says {entry.sha256[:16]}…"
            raise corrupt_file(self.store, record, name, said)
        self._verified.add((address, entry.sha256))
        return path

    def read_ranges(self, ranges: Sequence[tuple[Artifact, str, int, int]]) -> list[bytes]:
        """Bytes [start, end) of files. Raises StoreError when one is missing or ends before what is asked for."""
        parts = self.store.read_ranges(
            [(f"{self.payload_of(artifact)}/{name}", at, to) for artifact, name, at, to in ranges]
        )
        for (artifact, name, start, end), part in zip(ranges, parts, strict=True):
            if len(part) != end - start:
                said = f"bytes {start:,} to {end:,} are not all there"
                raise corrupt_file(self.store, self.record(artifact), name, said)
        return parts
