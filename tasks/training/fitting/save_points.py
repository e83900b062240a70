"""Save points of a running training, written alongside it.

Source: RECIPE J (asynchronous checkpoints: the state is copied to the host, a background thread writes it). A save point
holds the training state, the metric lines so far and the counts of tokens and FLOPs. So a resumed stage writes the same
payload as an undisturbed one. A line is written once, when its step is known; a save copies what there is.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

import numpy as np
import orjson

from infra.workspace import Workspace
from model.network.transformer import Transformer
from model.parallel.work_split import HostBatch
from model.training.loop import TrainState
from model.training.state_files import Snapshot, is_needed, load_state, snapshot, write_snapshot
from tasks.artifacts import METRICS

JOURNAL = "journal.json"
CARRIED = "carried.json"
COPIED_BYTES = 1 << 20
"""Bytes of lines that a save copies at a time: between two pieces the training goes on."""


class JournalMark(NamedTuple):
    """How far a journal was at some step."""

    tokens: int
    flops: float
    size: int
    """Bytes of its lines."""


@dataclass
class Journal:
    """What a save point holds besides the training state."""

    tokens: int = 0
    flops: float = 0.0
    lines: bytearray = field(default_factory=bytearray)
    """Metrics, a JSON object per step: what `metrics.jsonl` will hold."""

    def add(self, row: Mapping[str, float]) -> None:
        """Write the line of the next step."""
        # Sorted keys: equal steps give equal bytes, whatever order metrics came in.
        self.lines += orjson.dumps(row, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)

    def mark(self) -> JournalMark:
        """Where it is now."""
        return JournalMark(self.tokens, self.flops, len(self.lines))

    def write(self, folder: Path, mark: JournalMark) -> Iterator[Path]:
        """Write it into a folder as it was at the mark, while it goes on; yields the files."""
        with (folder / METRICS).open("wb") as file:
            for start in range(0, mark.size, COPIED_BYTES):
                # A copy of a piece, since a bytearray that is being read may not grow.
                file.write(self.lines[start : min(start + COPIED_BYTES, mark.size)])
        yield folder / METRICS
        (folder / JOURNAL).write_text(json.dumps({"flops": mark.flops, "tokens": mark.tokens}))
        yield folder / JOURNAL

    @classmethod
    def load(cls, folder: Path) -> "Journal":
        """What `write` wrote."""
        return cls(**json.loads((folder / JOURNAL).read_text()), lines=bytearray((folder / METRICS).read_bytes()))

    def count(self, model: Transformer, pad_id: int | None, batches: Sequence[HostBatch]) -> Sequence[HostBatch]:
        """Add a step's tokens and FLOPs; padding, if there is any, is not counted. Returns the batches."""
        for batch in batches:
            ids = np.asarray(batch["ids"])
            # Host arrays: counting costs no wait for the device.
            tokens = ids.size if pad_id is None else int((ids != pad_id).sum())
            self.tokens += tokens
            self.flops += float(tokens) * model.config.flops_per_token(ids.shape[1])
        return batches

    def final_loss(self) -> float:
        """Mean loss of the last tenth of the steps."""
        # Rounded up: a training of 3 steps averages the last one.
        last = math.ceil(self.lines.count(b"\n") / 10)
        # What follows the last line is empty, what goes before these ones is not split.
        lines = self.lines.rsplit(b"\n", last + 1)[-last - 1 : -1]
        return sum(orjson.loads(line)["loss"] for line in lines) / last


class Carried(Protocol):
    """What a stage needs besides weights and moments to go on from a save point."""

    def saved(self) -> bytes:
        """What a save point holds of it. All workers of a group call this together, between two steps."""
        ...

    def restore(self, data: bytes) -> None:
        """Go on from there."""
        ...


@dataclass(frozen=True)
class Saving:
    """What a stage asks of its save points."""

    multiple: int = 1
    """They fall on multiples of so many steps."""
    carried: Carried | None = None
    """What they hold besides the training's own."""


EVERYWHERE = Saving()
"""After any step, and no more than the training's own."""


def resume(ws: Workspace, state: TrainState, carried: Carried | None = None) -> Journal | None:
    """Fill the state from the newest whole save point and return its journal; None to begin at the beginning.

    All processes of a group take the same one. Raises StoreError when there are save points and all are damaged.
    """
    point = ws.resume_point(lambda name: is_needed(name, state.group), exchange=state.group.exchange)
    if point is None:
        return None
    load_state(state, point[1])
    if carried is not None:
        carried.restore((point[1] / CARRIED).read_bytes())
    return Journal.load(point[1])


class SavePoints:
    """Context manager that saves states in a background thread, one after the other; leaves when all are written.

    Every `keep_every`-th save point stays in the store, and those of the steps `kept`.
    """

    def __init__(
        self,
        ws: Workspace,
        journal: Journal,
        every: int,
        kept: Collection[int] = (),
        carried: Carried | None = None,
    ) -> None:
        self.ws, self.journal, self.every, self.kept, self.carried = ws, journal, every, kept, carried
        # `keep_every` is counted in save points, since `every` may have been rounded up to whole rollouts.
        self.keep_every = every * (ws.keep_every // ws.save_every)
        self._memory: Snapshot | None = None
        self._running: Future[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save points")

    def __enter__(self) -> "SavePoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error, too, a save point that is being written is worth having.
        self._thread.shutdown(wait=True)
        if error is None:
            self.check(wait=True)

    def save(self, state: TrainState) -> None:
        """Copy the state and return; waits while an older save point is still being written."""
        # One save point at a time: a second one would need a second copy of the state in host memory.
        self.check(wait=True)
        # The copy of the last save point is overwritten, so that saving takes the host's memory once.
        self._memory = snapshot(state, self._memory)
        # By step, not by count: a resumed run keeps the same save points as an undisturbed one.
        keep = state.step in self.kept or (bool(self.keep_every) and state.step % self.keep_every == 0)
        carried = None if self.carried is None else self.carried.saved()
        self._running = self._thread.submit(self._write, state, state.step, self.journal.mark(), carried, keep)

    def check(self, wait: bool = False) -> None:
        """Raise what a save point that was being written has raised."""
        if self._running is not None and (wait or self._running.done()):
            # Forgotten before its error is raised, so that the error is told once.
            running, self._running = self._running, None
            running.result()

    def _write(self, state: TrainState, step: int, mark: JournalMark, carried: bytes | None, keep: bool) -> None:
        # Of the state only the group is read: the rest has moved on.
        with self.ws.staging() as folder:
            files = self._files(folder, mark, carried, first=state.group.rank == 0)
            self.ws.save_point(step, files, keep=keep, gather=state.group.gather)

    def _files(self, folder: Path, mark: JournalMark, carried: bytes | None, first: bool) -> Iterator[Path]:
        """Write what this process saves, file by file."""
        if self._memory is not None:
            yield from write_snapshot(self._memory, folder)
        if first:
            yield from self.journal.write(folder, mark)
            if carried is not None:
                (folder / CARRIED).write_bytes(carried)
                yield folder / CARRIED
