"""What a running stage is handed: where to write, what it may use, how to report, and how to resume.

A workspace is cheap to pickle, so that the same object serves a stage in this process, in a process of its own,
and a shard on a Ray worker. Files that a stage writes are hashed as they are written; the stage's commit lists them.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import orjson
import zstandard

from infra.events import Event, Events, Markdown, Metrics, Progress, TableRows, Warned
from infra.json_values import JsonObject
from infra.language_models.client import Endpoint
from infra.language_models.protocol import AnswerMemory
from infra.language_models.spending import Spending
from infra.records.artifact import Artifact
from infra.records.permanent_save_points import KeptSavePoint
from infra.records.reader import Reader
from infra.records.record import FileEntry, attempt_folder
from infra.records.save_points import (
    SavePoint,
    ephemeral_area,
    permanent_area,
    read_newest,
    read_save_point,
    write_save_point,
)
from infra.settings import ComputeSettings, EndpointSettings, GenerationSettings, settings_of
from infra.storage.store import Store, sha256_file

A = TypeVar("A", bound=Artifact)


ShardItem = JsonObject
"""What one shard is asked for, as JSON values: which files, rows and rules; each shard function has keys of its own."""
ShardResult = JsonObject
"""What one shard says when it is done, as JSON values: counts, and names of the files that it wrote."""


@dataclass(frozen=True)
class Loading:
    """What each worker of a map loads once and keeps for all its shards, such as a model."""

    load: Callable[["Workspace"], Any]
    device: str = "cpu"
    """Where the shards compute with it. Each worker gets a GPU to itself if it is one."""


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
        loading: Loading | None,
        sizes: Sequence[int] | None,
        agree: Callable[[Any], Any] | None,
    ) -> list[Any]: ...


ZSTD_LEVEL = 3

Area = Literal["payload", "work"]
"""The artifact's files, or those that shards hand on to later ones and that go when the stage commits."""


@dataclass(frozen=True)
class WorkSettings:
    """How a stage runs here; the defaults are those of one process on one core."""

    compute: ComputeSettings = field(default_factory=ComputeSettings)
    ray: str = "off"
    """Where shards run."""
    save_every: int = 200
    """Steps between two save points."""
    keep_every: int = 0
    """Steps between two save points that stay; 0 for none."""
    endpoints: Mapping[str, EndpointSettings] = field(default_factory=dict)
    """Where language models answer, by model name."""
    generation: GenerationSettings = "local"
    """Who answers prompts with a checkpoint."""


class Workspace(Reader):
    """One attempt at one artifact id. `written` is its payload so far."""

    def __init__(
        self,
        store: Store,
        *,
        stage: str,
        id: str,
        payload: str,
        progress_folder: str,
        settings: WorkSettings = WorkSettings(),
        attempt: int = 1,
        run_shards: ShardRunner | None = None,
    ):
        super().__init__(store)
        self.stage = self.scratch_name = stage
        self.id = id
        self.payload = payload
        self.folder = attempt_folder(payload, attempt)
        self.progress_folder = progress_folder
        self.compute = settings.compute
        self.save_every = settings.save_every
        self.keep_every = settings.keep_every
        self.generation: GenerationSettings = settings.generation
        self.written: dict[str, FileEntry] = {}
        self.notes: JsonObject = {}
        self.resumed_from = ""
        self._endpoints = dict(settings.endpoints)
        self.ray = settings.ray
        self._run_shards = run_shards
        self._events = Events()

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
            # Sorted, since a folder's own order differs between file systems.
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

    # -- shards -------------------------------------------------------------------------------------------

    def map(
        self,
        function: Callable[..., Any],
        items: Iterable[Any],
        *,
        description: str,
        loading: Loading | None = None,
        here: bool = False,
        sizes: Sequence[int] | None = None,
        agree: Callable[[Any], Any] | None = None,
    ) -> list[Any]:
        """Run `function(ws, item)` for every item, on Ray or (always with `here`) in this process; each result is committed on
        its own.

        With `loading` it is `function(ws, item, loaded)`: each worker calls `loading.load(ws)` once and keeps what it returned,
        such as a model, for all its items. What it puts on `compute.device` must be named as `loading.device`.

        Items and results are small JSON values; the function is module-level. A shard that has its commit is not run
        again by a later attempt. Results come in the order of the items. With `sizes`, the bytes that each item reads, progress
        is told in bytes.

        The ranks of a group that go through the same items together, `here`, give `agree`: it returns rank 0's value in all of
        them, so that what rank 0 finds committed decides for all which items are run.
        """
        assert self._run_shards is not None, "only an attempt at a stage maps shards"
        assert agree is None or here, "a group goes through its items in its own processes"
        ray = "off" if here else self.ray
        return self._run_shards(
            self, function, list(items), description, ray=ray, loading=loading, sizes=sizes, agree=agree
        )

    def for_shard(self) -> "Workspace":
        """The same workspace as one shard sees it: with a file list of its own."""
        # Past `__init__`, which would ask for everything a stage is made with.
        shard = Workspace.__new__(Workspace)
        shard.__setstate__(self.__getstate__())
        # A shard's files are told by its marker, its progress by whoever waits for it.
        shard.__dict__.update(written={}, notes={}, _events=Events(), ray="off")
        return shard

    # -- language models ----------------------------------------------------------------------------------

    def endpoint(self, model: str, *, remember: bool = True) -> Endpoint:
        """A client of the endpoint that serves a model (`execution.endpoints`), to be used as a context manager.

        Its answers are kept in the store unless told otherwise. Raises ValueError when no endpoint is known, or no key.
        """
        memory, settings = AnswerMemory(self.store) if remember else None, settings_of(model, self._endpoints)
        spending = None
        if settings.max_cost is not None:
            # Below the stage's work: it outlives an attempt, and goes when the stage commits.
            folder = self.address(f"spent/{hashlib.sha256(model.encode()).hexdigest()[:16]}", "work")
            spending = Spending(self.store, folder, settings.max_cost)
        return Endpoint(model, settings, memory, self.warn, spending)

    def own_endpoint(self) -> EndpointSettings | None:
        """The endpoint under this stage's own name, None where there is none."""
        return self._endpoints.get(self.stage)

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
        rank 0.
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
        return point.step, self.folder_of(point.folder, paths)

    def own_save_point(self, step: int, wanted: Callable[[str], bool] = lambda name: True) -> Path:
        """A permanent save point of this stage as a local folder with the wanted files. Raises StoreError for a file that is
        not as it was saved, or is no longer there.
        """
        point = SavePoint(step, permanent_area(self.progress_folder))
        return self.folder_of(point.folder, read_save_point(self.store, point, wanted, f"{self.stage}/{self.id}"))

    def kept(self, kept: KeptSavePoint) -> Path:
        """A permanent save point, of whichever stage, as a local folder. Raises StoreError for a file that is not as it
        was saved.
        """
        paths = read_save_point(self.store, kept.point, lambda name: True, kept.owner)
        return self.folder_of(kept.point.folder, paths)

    def _pass_over_save_point(self, finding: str) -> None:
        self.note(damaged_save_points=[*self.notes.get("damaged_save_points", []), finding])
        self.warn(finding)

    # -- reporting ----------------------------------------------------------------------------------------

    @contextmanager
    def progress(self, description: str, total: float | None, unit: str = "") -> Iterator["Bar"]:
        """A progress bar in the terminal and in the dashboard."""
        self._events.send(Progress(description, 0.0, total, unit))
        bar = Bar(self._events, description, total, unit)
        yield bar
        # A last word, so that the bar ends where the work did.
        self._events.send(Progress(description, bar.done, total, unit))

    def report_to(self, events: Events) -> None:
        """Send what follows to these events."""
        self._events = events

    def tell(self, event: Event) -> None:
        """Pass on what a group that works for this stage tells."""
        self._events.send(event)

    def log(self, *, step: int, **metrics: float) -> None:
        """Live metrics of a step, for the terminal and the dashboard."""
        self._events.send(Metrics(step, metrics))

    def note(self, **facts: Any) -> None:
        """Facts for the record only: timings, rates, counts that may differ between equal runs."""
        self.notes.update(facts)

    def warn(self, text: str) -> None:
        """Something that a person should know of and the stage goes on with."""
        self._events.send(Warned(text))

    def markdown(self, key: str, text: str) -> None:
        """A text for the dashboard."""
        self._events.send(Markdown(key, text))

    def table(self, key: str, rows: Sequence[Mapping[str, object]]) -> None:
        """A table for the dashboard."""
        self._events.send(TableRows(key, rows))


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
        self._events.send(Progress(self._description, self.done, self._total, self._unit))
