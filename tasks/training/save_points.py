"""Save points of a running training, written beside it.

Source: RECIPE J (asynchronous checkpoints: the state is copied to the host, a background thread writes it). A save point
holds the training state, the metric lines so far and the counts of tokens and FLOPs, so that a resumed stage writes the
same payload as an undisturbed one.
"""

import json
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from infra.workspace import Workspace
from model.checkpoint import Snapshot, is_needed, load_state, snapshot, write_snapshot
from model.loop import Batch, TrainState
from model.transformer import Transformer

JOURNAL = "journal.json"


@dataclass
class Journal:
    """What a save point holds beside the training state."""

    rows: list[dict[str, float]]
    tokens: int = 0
    flops: float = 0.0

    def text(self) -> str:
        return json.dumps(self.__dict__, sort_keys=True)

    @classmethod
    def load(cls, folder: Path) -> "Journal":
        return cls(**json.loads((folder / JOURNAL).read_text()))

    def count(self, model: Transformer, pad_id: int, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Add a step's tokens and FLOPs; padding is not counted. Returns the batches."""
        for batch in batches:
            ids = np.asarray(batch["ids"])
            tokens = int((ids != pad_id).sum())
            self.tokens += tokens
            self.flops += float(tokens) * model.config.flops_per_token(ids.shape[1])
        return batches

    def final_loss(self) -> float:
        last = self.rows[-math.ceil(len(self.rows) / 10) :]
        return sum(row["loss"] for row in last) / len(last)


def resume(ws: Workspace, state: TrainState) -> Journal | None:
    """Fill the state from the newest save point and return its journal; None to begin at the beginning.

    Raises StoreError for a damaged save point, and an error when processes of a group found different ones.
    """
    point = ws.resume_point(lambda name: is_needed(name, state.group))
    state.group.check_same("save point", point[0] if point else -1)
    if point is None:
        return None
    load_state(state, point[1])
    return Journal.load(point[1])


class SavePoints:
    """Context manager that saves states in a background thread, one after the other; leaves when all are written.

    Every `keep_every`-th save point stays in the store.
    """

    def __init__(self, ws: Workspace, journal: Journal, every: int) -> None:
        self.ws, self.journal, self.every = ws, journal, every
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
        self.check(wait=True)
        self._memory = snapshot(state, self._memory)
        keep = bool(self.keep_every) and state.step % self.keep_every == 0
        self._running = self._thread.submit(self._write, state, state.step, self.journal.text(), keep)

    def check(self, wait: bool = False) -> None:
        """Raise what a save point that was being written has raised."""
        if self._running is not None and (wait or self._running.done()):
            running, self._running = self._running, None
            running.result()

    def _write(self, state: TrainState, step: int, journal: str, keep: bool) -> None:
        # Of the state only the group is read: the rest has moved on.
        with self.ws.staging() as folder:
            if self._memory is not None:
                write_snapshot(self._memory, folder)
            if state.group.rank == 0:
                (folder / JOURNAL).write_text(journal)
            self.ws.save_point(step, folder, keep=keep, gather=state.group.gather)
