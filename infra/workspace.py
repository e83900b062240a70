"""What a running stage is handed: where to write, what it may use, how to report, and how to resume.

A workspace is cheap to pickle, so that the same object serves a stage in this process, in a process of its own,
and a shard on a Ray worker. Files that a stage writes are hashed as they are written; the stage's commit lists them.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import orjson
import zstandard

from infra.events import Events
from infra.language_models.client import Endpoint
from infra.language_models.protocol import AnswerMemory
from infra.records.artifact import Artifact
from infra.records.permanent_save_points import Kept
from infra.records.reader import Inputs
from infra.records.record import FileEntry, Record, attempt_folder, lineage
from infra.records.save_points import ephemeral_area, read_newest, read_save_point, write_save_point
from infra.settings import ComputeSettings, EndpointSettings, Generation, settings_of
from infra.storage.scratch import Scratch
from infra.storage.store import Store, sha256_file

A = TypeVar("A", bound=Artifact)


class ShardRunner(Protocol):
    """Runs a function over many items for a workspace (`infra.compute.shards.run_shards`)."""

    def __call__(
        self,
        ws: "Workspace",
        function: Callable[..., Any],
        items: list[Any],
        description: str,
        *,
        ray: str,
        load: Callable[["Workspace"], Any] | None,
        device: str,
    ) -> list[Any]: ...


ZSTD_LEVEL = 3

Area = Literal["payload", "work"]
"""The artifact's files, or those that shards hand on to later ones and that go when the stage commits."""


class Workspace:
    """One attempt at one artifact id. `written` is its payload so far."""

    def __init__(
        self,
        store: Store,
        *,
        stage: str,
        id: str,
        payload: str,
        progress_folder: str,
        compute: ComputeSettings,
        ray: str = "off",
        save_every: int = 200,
        keep_every: int = 0,
        endpoints: Mapping[str, EndpointSettings] | None = None,
        generation: Generation = "local",
        attempt: int = 1,
        run_shards: ShardRunner | None = None,
    ):
        self.store = store
        self.stage = stage
        self.id = id
        self.payload = payload
        self.folder = attempt_folder(payload, attempt)
        self.progress_folder = progress_folder
        self.compute = compute
        self.save_every = save_every
        self.keep_every = keep_every
        self.generation: Generation = generation
        self.written: dict[str, FileEntry] = {}
        self.notes: dict[str, Any] = {}
        self.resumed_from = ""
        self._endpoints = dict(endpoints or {})
        self._ray = ray
        self._run_shards = run_shards
        self._events = Events()
        self._inputs = Inputs(store)
        self._scratch: Scratch | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Scratch space belongs to one process.
        return self.__dict__ | {"_scratch": None}

    # -- writing ------------------------------------------------------------------------------------------

    def address(self, name: str, area: Area = "payload") -> str:
        """Where in the store a file of this stage lies, for its own later steps to read."""
        return f"{self.folder}/{name}" if area == "payload" else f"{self.progress_folder}/shards/work/{name}"

    def write(self, name: str, data: bytes) -> None:
        """Put one payload file."""
        self.store.write(self.address(name), data)
        self.written[name] = FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def write_json(self, name: str, value: Any) -> None:
        """Put a JSON file with sorted keys, so that equal values give equal bytes."""
        options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        self.write(name, orjson.dumps(value, option=options))

    def write_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Put one JSON object per line, compressed when the name ends in .zst. Returns the number of rows."""
        buffer = io.BytesIO()
        count = 0
        options = orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        for row in rows:
            buffer.write(orjson.dumps(row, option=options))
            count += 1
        data = buffer.getvalue()
        if name.endswith(".zst"):
            data = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data)
        self.write(name, data)
        return count

    def put(self, local: Path, name: str = "") -> None:
        """Put a local file, or every file below a local folder, into the payload."""
        if local.is_dir():
            for file in sorted(path for path in local.rglob("*") if path.is_file()):
                self.put(file, f"{name}/{file.relative_to(local).as_posix()}".lstrip("/"))
            return
        name = name or local.name
        entry = FileEntry(size=local.stat().st_size, sha256=sha256_file(local))
        self.store.put(local, self.address(name))
        self.written[name] = entry

    def artifact(self, cls: type[A], **facts: Any) -> A:
        """The value this stage returns; its digest is filled in when the stage commits."""
        return cls(stage=self.stage, id=self.id, address=self.payload, digest="", **facts)

    # -- reading ------------------------------------------------------------------------------------------

    def record(self, artifact: Artifact) -> Record:
        """The record of an input."""
        return self._inputs.record(artifact)

    def at(self, address: str) -> Artifact:
        """The artifact at an address that an input's payload names (a mix names the token files it is made of)."""
        return self._inputs.at(address)

    def lineage(self, artifact: Artifact) -> list[Record]:
        """Records of an input and of everything it was made from."""
        return lineage(self.store, self.record(artifact))

    def files(self, artifact: Artifact, prefix: str = "") -> list[str]:
        """Names of an input's payload files below a prefix, sorted."""
        return sorted(name for name in self.record(artifact).files if name.startswith(prefix))

    def path(self, artifact: Artifact, name: str = "", *, wanted: Callable[[str], bool] = lambda name: True) -> Path:
        """A verified local path of one file of an input, or when no name is given of its folder with at least the wanted
        files.

        Raises StoreError when a file is missing or its size or hash differs from the record.
        """
        if name:
            return self._inputs.path(artifact, name)
        paths = {file: self._inputs.path(artifact, file) for file in self.record(artifact).files if wanted(file)}
        return self._folder_of(self.record(artifact).payload, paths)

    def _folder_of(self, address: str, paths: Mapping[str, Path]) -> Path:
        """A folder of the store as a local one, with at least the files whose local paths are given by name."""
        if self.store.is_local:
            return Path(self.store.full(address))
        folder = self.scratch / "folders" / address
        for name, path in paths.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(path)
        return folder

    def read_ranges(self, ranges: Sequence[tuple[Artifact, str, int, int]]) -> list[bytes]:
        """Bytes [start, end) of input files, without copying or hashing the files.

        Raises StoreError when a file is missing or ends before what is asked for.
        """
        return self._inputs.read_ranges(ranges)

    def read_json(self, artifact: Artifact, name: str) -> Any:
        return orjson.loads(self.path(artifact, name).read_bytes())

    def read_jsonl(self, artifact: Artifact, name: str) -> Iterator[dict[str, Any]]:
        """Rows of a JSON-lines file of an input, one at a time."""
        with self.path(artifact, name).open("rb") as raw:
            stream = zstandard.ZstdDecompressor().stream_reader(raw) if name.endswith(".zst") else raw
            for line in io.BufferedReader(stream, 1 << 20):  # type: ignore[arg-type]
                yield orjson.loads(line)

    # -- shards -------------------------------------------------------------------------------------------

    def map(
        self,
        function: Callable[..., Any],
        items: Iterable[Any],
        *,
        description: str,
        load: Callable[["Workspace"], Any] | None = None,
        device: str = "cpu",
        here: bool = False,
    ) -> list[Any]:
        """Run `function(ws, item)` for every item, on Ray or (always with `here`) in this process; each result is committed on
        its own.

        With `load` it is `function(ws, item, loaded)`: each worker calls `load(ws)` once and keeps what it returned, such as
        a model, for all its items. What it puts on `compute.device` must be named as `device`, so that each worker gets a GPU
        to itself.

        Items and results are small JSON values; the function is module-level. A shard that has its commit is not run
        again by a later attempt. Results come in the order of the items.
        """
        assert self._run_shards is not None, "only an attempt at a stage maps shards"
        ray = "off" if here else self._ray
        return self._run_shards(self, function, list(items), description, ray=ray, load=load, device=device)

    def for_shard(self) -> "Workspace":
        """The same workspace as one shard sees it: with a file list of its own."""
        shard = Workspace.__new__(Workspace)
        shard.__dict__.update(self.__getstate__())
        shard.__dict__.update(written={}, notes={}, _events=Events(), _ray="off", _inputs=self._inputs.copy())
        return shard

    # -- language models ----------------------------------------------------------------------------------

    def endpoint(self, model: str, *, remember: bool = True) -> Endpoint:
        """A client of the endpoint that serves a model (`execution.endpoints`), to be used as a context manager.

        Its answers are kept in the store unless told otherwise. Raises ValueError when no endpoint is known, or no key.
        """
        memory = AnswerMemory(self.store) if remember else None
        return Endpoint(model, settings_of(model, self._endpoints), memory, self.warn)

    # -- resuming -----------------------------------------------------------------------------------------

    def staging(self) -> AbstractContextManager[Path]:
        """A temporary folder to write the files of a save point into."""
        return self.store.staging(ephemeral_area(self.progress_folder))

    def save_point(
        self,
        step: int,
        files: Iterable[Path],
        *,
        keep: bool = False,
        gather: Callable[[Any], list[Any] | None] | None = None,
    ) -> None:
        """Move files of a staging folder, each whole when it is given, to the store as a resumable state; older ones go but
        for those saved with `keep`. Processes of a group each save their own files, and `gather` brings what they wrote to
        the first one.
        """
        write_save_point(self.store, self.progress_folder, step, files, keep=keep, gather=gather)

    def resume_point(
        self,
        wanted: Callable[[str], bool] = lambda name: True,
        *,
        exchange: Callable[[Any], list[Any]] = lambda value: [value],
    ) -> tuple[int, Path] | None:
        """The newest whole save point of this id, as (step, local folder); None to begin at the beginning.

        The folder has at least the wanted files, each as it was saved. A damaged save point is passed over with a warning.
        Processes of a group want files of their own and end with the same step; `exchange` hands a value of each to all.
        Raises StoreError when all are damaged.
        """
        owner = f"{self.stage}/{self.id}"
        found = read_newest(
            self.store, self.progress_folder, wanted, owner, exchange=exchange, warn=self._pass_over_save_point
        )
        if found is None:
            return None
        point, paths = found
        self.resumed_from = f"step {point.step}"
        return point.step, self._folder_of(point.folder, paths)

    def kept(self, kept: Kept) -> Path:
        """A permanent save point, of whichever stage, as a local folder. Raises StoreError for a file that is not as it
        was saved.
        """
        paths = read_save_point(self.store, kept.point, lambda name: True, kept.owner)
        return self._folder_of(kept.point.folder, paths)

    def _pass_over_save_point(self, finding: str) -> None:
        self.note(damaged_save_points=[*self.notes.get("damaged_save_points", []), finding])
        self.warn(finding)

    # -- reporting ----------------------------------------------------------------------------------------

    @contextmanager
    def progress(self, description: str, total: float | None, unit: str = "") -> Iterator["Bar"]:
        """A progress bar in the terminal and in the dashboard."""
        self._events.send("progress", description, 0.0, total, unit)
        bar = Bar(self._events, description, total, unit)
        yield bar
        self._events.send("progress", description, bar.done, total, unit)

    def report_to(self, events: Events) -> None:
        """Send what follows to these events."""
        self._events = events

    def log(self, *, step: int, **metrics: float) -> None:
        """Live metrics of a step, for the terminal and the dashboard."""
        self._events.send("metrics", step, metrics)

    def note(self, **facts: Any) -> None:
        """Facts for the record only: timings, rates, counts that may differ between equal runs."""
        self.notes.update(facts)

    def warn(self, text: str) -> None:
        """Something that a person should know of and the stage goes on with."""
        self._events.send("warning", text)

    def markdown(self, key: str, text: str) -> None:
        """A text for the dashboard."""
        self._events.send("markdown", key, text)

    def table(self, key: str, rows: list[dict[str, Any]]) -> None:
        """A table for the dashboard."""
        self._events.send("table", key, rows)

    # -- scratch ------------------------------------------------------------------------------------------

    @property
    def scratch(self) -> Path:
        """A private temporary folder, deleted when the attempt ends."""
        if self._scratch is None:
            self._scratch = Scratch(self.stage)
        return self._scratch.path

    def close(self) -> None:
        """Delete the scratch folder."""
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None


class Bar:
    """Counts work done; tells its listener."""

    def __init__(self, events: Events, description: str, total: float | None, unit: str):
        self.done = 0.0
        self._events = events
        self._description = description
        self._total = total
        self._unit = unit

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        self._events.send("progress", self._description, self.done, self._total, self._unit)


def open_artifact(store: Store) -> Workspace:
    """A workspace for reading only: verified access to artifacts outside any stage."""
    return Workspace(store, stage="reading", id="", payload="", progress_folder="", compute=ComputeSettings())
