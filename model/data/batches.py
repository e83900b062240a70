"""Makes training batches from token files: fixed windows in a computed order, with the repetition mask.

Source: RECIPE C.9 (fixed-length chunking, labels, order), C.4 (masking), A.5 (divisor). Each file is cut by
itself from offset 0 and its remainder dropped; documents are split freely and attend to each other inside a
window. A batch is a pure function of the step, whoever asks for it and however many ask at once.
"""

import contextlib
import csv
import gzip
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt32

from model.data.labels import IGNORE, LossNormalisation, loss_divisor, next_token_labels
from model.data.order import AnyShuffle, OrderKind, shuffle
from model.data.repetition import repetitive_rows

ORDER_PART = 4096
"""Instances of the order that are computed at a time."""
TOKEN_BYTES = 4
"""Token files are raw little-endian uint32 without a header."""


@dataclass(frozen=True)
class TokenFile:
    """The first `tokens` tokens of a file, and the source they count for. `path` is what its reader knows it by."""

    path: Path | str
    tokens: int
    source: str = ""


class Window(NamedTuple):
    """Tokens [start, end) of the file at position `file` of the list: one training instance."""

    file: int
    start: int
    end: int


class WindowBatch(TypedDict):
    """A micro-batch of windows. Shares are of the micro-batch, float32 without dimensions."""

    ids: UInt32[np.ndarray, "rows seq"]
    labels: Int64[np.ndarray, "rows seq"]
    """Next tokens; −100 where nothing is learned."""
    divisor: np.ndarray
    """What the sum of token losses is divided by."""
    masked_instances: np.ndarray
    """Share of windows that are masked for repetition."""
    masked_labels: np.ndarray
    """Share of labels that are not learned."""


class Rows(NamedTuple):
    """The windows of a step as far as they were read, in batch order."""

    ids: UInt32[np.ndarray, "batch seq"]
    labels: Int64[np.ndarray, "batch seq"]
    """As the ids, 0 in rows that were not read, which costs no memory."""
    masked: Bool[np.ndarray, " batch"]
    """Which of the rows that were read are removed by the repetition mask."""


_Reader = Callable[[Sequence[Window]], list[Int[np.ndarray, " seq"]]]
"""The tokens of windows, uint32, in their order. Called from several threads at once."""


class TokenRange(NamedTuple):
    """A document's tokens [start, end) within its token file (a row of its `.csv.gz`)."""

    start: int
    end: int
    id: str
    src: str
    loc: str


class WindowRules(NamedTuple):
    """How files give windows, in which order these come, and what their losses are divided by."""

    normalisation: LossNormalisation = "labels"
    order: OrderKind = "feistel"
    target_length: int = 0
    """Keeps windows compatible with a later, longer training: a file gives floor(tokens / target_length) * target_length /
    sequence_length windows. 0: the window itself."""
    held_out: int = 0
    """Windows of every source that are never trained on: the first ones of its files, as evenly as they divide, so that two
    mixes of the same files hold out the same."""


DEFAULT_RULES = WindowRules()


class WindowedTokens:
    """Batches of `batch_size` windows of `sequence_length` tokens, reshuffled every epoch.

    `micro_instances` splits a batch into micro-batches for gradient accumulation (0: one). Without a `reader` the files are
    local. Raises ValueError for empty or short files and for lengths that do not divide.
    """

    def __init__(
        self,
        files: Sequence[TokenFile],
        sequence_length: int,
        batch_size: int,
        seed: int,
        mask_repetitions: bool = True,
        *,
        micro_instances: int = 0,
        rules: WindowRules = DEFAULT_RULES,
        reader: _Reader | None = None,
    ) -> None:
        normalisation, order, target_length, held_out = rules
        target = target_length or sequence_length
        micro = micro_instances or batch_size
        if target % sequence_length:
            raise ValueError(f"target_length={target} is not a multiple of sequence_length={sequence_length}")
        if batch_size % micro:
            raise ValueError(f"micro_instances={micro} does not divide batch_size={batch_size}")
        self.files, self.sequence_length, self.batch_size = list(files), sequence_length, batch_size
        self.seed, self.mask_repetitions, self.micro_instances = seed, mask_repetitions, micro
        self.normalisation: LossNormalisation = normalisation
        self.order: OrderKind = order
        self.group = target // sequence_length
        self.read = reader or _local_reader(self.files)
        self.making = Lock()
        windows = [file.tokens // target * (target // sequence_length) for file in self.files]
        # Held-out windows lie at the head of each file, so training windows begin after them.
        self.held = np.array(_held_per_file(self.files, windows, held_out), dtype=np.int64)
        # ends[i] is the number of training windows before file i: [0, 5, 12] for files of 5 and 7 windows.
        self.ends = np.cumsum([0, *(np.array(windows, dtype=np.int64) - self.held)])
        self.instances = int(self.ends[-1])
        if self.instances < batch_size:
            beside = f", beside {self.held.sum()} held out" if held_out else ""
            raise ValueError(
                f"{len(self.files)} files hold {self.instances} windows of {sequence_length} tokens, fewer than one batch of "
                f"{batch_size}{beside}; add data, or make the batch or the window smaller"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of one pass over the data; what is left over is dropped until the next shuffle."""
        return self.instances // self.batch_size

    @property
    def batch_tokens(self) -> int:
        """Tokens of one batch."""
        return self.batch_size * self.sequence_length

    def locate(self, step: int) -> list[Window]:
        """The windows that a 0-based step reads, in batch order."""
        epoch, within = divmod(step, self.steps_per_epoch)
        # Blocks of the order hold whole batches (4096 // batch of them), so no batch crosses two blocks.
        per_part = max(1, ORDER_PART // self.batch_size)
        first = within % per_part * self.batch_size
        instances = self._ordered(epoch, within // per_part)[first : first + self.batch_size]
        # side="right" skips files without windows, whose ends equal those of the file before.
        files = np.searchsorted(self.ends, instances, side="right") - 1
        starts = (instances - self.ends[files] + self.held[files]) * self.sequence_length
        return [
            Window(file, start, start + self.sequence_length)
            for file, start in zip(files.tolist(), starts.tolist(), strict=True)
        ]

    def held_out(self) -> dict[str, list[Window]]:
        """The windows of each source that no step reads."""
        found: dict[str, list[Window]] = {}
        seen = set()
        for number, file in enumerate(self.files):
            if file.path in seen or not self.held[number]:
                continue
            # A file may be listed twice in a mix (an upsampled source). Its held-out windows are asked once.
            seen.add(file.path)
            starts = range(0, int(self.held[number]) * self.sequence_length, self.sequence_length)
            found.setdefault(file.source, []).extend(
                Window(number, start, start + self.sequence_length) for start in starts
            )
        return found

    def steps_reading(self, file: int, start: int, end: int, epochs: int = 1) -> list[int]:
        """0-based steps that read any of tokens [start, end) of a file, over so many epochs: the inverse of
        `locate`.
        """
        before = int(self.ends[file]) - int(self.held[file])
        # The first training window of the file bounds the range, since held-out windows are read by no step.
        first = max(before + start // self.sequence_length, int(self.ends[file]))
        last = min(before + (end - 1) // self.sequence_length, int(self.ends[file + 1]) - 1)
        if end <= start or first > last:
            return []
        steps = []
        for epoch in range(epochs):
            # A place at or past the last whole batch is dropped in that epoch.
            within = self._shuffle(epoch).place_of(np.arange(first, last + 1)) // self.batch_size
            steps += [epoch * self.steps_per_epoch + w for w in within.tolist() if w < self.steps_per_epoch]
        return sorted(set(steps))

    def batch(self, step: int) -> list[WindowBatch]:
        """Micro-batches of a 0-based step: ids uint32, labels int64, the share of the batch's divisor, the
        masked shares of instances and of labels.
        """
        rows = self.rows(step, np.arange(self.batch_size))
        return self.micro_batches(rows, rows.masked)

    def rows(self, step: int, own: Int[np.ndarray, " own"]) -> Rows:
        """The windows of a 0-based step at places `own` of the batch; of the others nothing is read."""
        windows = self.locate(step)
        shape = (len(windows), self.sequence_length)
        # np.zeros maps pages lazily, so rows of other ranks cost no memory at a batch of millions of tokens.
        ids, labels = np.zeros(shape, dtype=np.uint32), np.zeros(shape, dtype=np.int64)
        masked = np.zeros(len(windows), dtype=bool)
        if len(own):
            ids[own] = read = np.stack(self.read([windows[place] for place in own.tolist()]))
            labels[own] = next_token_labels(read)
            if self.mask_repetitions:
                masked[own] = repetitive_rows(read)
                # The row still goes through the model. Its labels are ignored, so that shapes stay equal.
                labels[masked] = IGNORE
        return Rows(ids, labels, masked)

    def micro_batches(self, rows: Rows, masked: Bool[np.ndarray, " batch"]) -> list[WindowBatch]:
        """A step's windows as `batch` gives them. `masked` is of all windows, since the divisor depends on how many there
        are. Of the rows only those that are trained here need to have been read.
        """
        count, removed, length = len(masked), int(masked.sum()), self.sequence_length
        parts = count // self.micro_instances
        # In a window every token but the first is the label of the one before.
        divisor = loss_divisor((count - removed) * (length - 1), removed, count, length, self.normalisation)
        # The loop averages over micro-batches, so each gets its part of the whole batch's divisor.
        share = np.float32(1.0 if self.normalisation == "sum" else divisor / parts)
        return [
            {
                "ids": ids,
                "labels": labels,
                "divisor": np.asarray(share),
                "masked_instances": np.asarray(gone),
                # A masked row loses all its labels; any other row loses only the last one, which has nothing to
                # predict.
                "masked_labels": np.asarray(gone + (1 - gone) / np.float32(length)),
            }
            for ids, labels, gone in zip(
                np.split(rows.ids, parts),
                np.split(rows.labels, parts),
                [np.float32(part.mean()) for part in np.split(masked, parts)],
                strict=True,
            )
        ]

    @lru_cache(maxsize=4)  # noqa: B019 - as below
    def _ordered(self, epoch: int, part: int) -> Int[np.ndarray, " n"]:
        """Instances of some steps in a row: what is computed together costs little for each."""
        # The last block is shorter: only whole batches of an epoch are ever asked for.
        size = max(1, ORDER_PART // self.batch_size) * self.batch_size
        last = self.steps_per_epoch * self.batch_size
        return self._shuffle(epoch).at(np.arange(part * size, min((part + 1) * size, last)))

    def _shuffle(self, epoch: int) -> AnyShuffle:
        # The published orders hold all instances in memory: threads that read ahead must not each make one.
        with self.making:
            return self._made_shuffle(epoch)

    @lru_cache(maxsize=2)  # noqa: B019 - a handful of permutations per object, freed with the process
    def _made_shuffle(self, epoch: int) -> AnyShuffle:
        return shuffle(self.order, self.instances, self.seed, epoch, self.group)


def _held_per_file(files: Sequence[TokenFile], windows: Sequence[int], held_out: int) -> list[int]:
    """Windows to hold out at the head of each file; equal for all copies of a file, as far as each reaches."""
    most: dict[str, dict[Path | str, int]] = {}
    for file, count in zip(files, windows, strict=True):
        paths = most.setdefault(file.source, {})
        # A copy may be shorter than another, since a mix can read only the first tokens of a file.
        paths[file.path] = max(count, paths.get(file.path, 0))
    share: dict[Path | str, int] = {}
    for source, paths in most.items():
        if 2 * held_out > sum(paths.values()):
            raise ValueError(
                f"source {source!r} has {sum(paths.values())} windows; holding out {held_out} takes more than half of them: "
                "hold out fewer, or give it more data"
            )
        # Rounded up, so that the even shares together never fall short of `held_out`.
        left, even = held_out, -(-held_out // len(paths))
        # Files too short for an even share first: what they lack, the others give.
        for place, (path, count) in enumerate(sorted(paths.items(), key=lambda item: min(item[1], even))):
            share[path] = min(count, -(-left // (len(paths) - place)))
            left -= share[path]
    return [min(share[file.path], count) for file, count in zip(files, windows, strict=True)]


def _local_reader(files: Sequence[TokenFile]) -> _Reader:
    for file in files:
        _check_size(Path(file.path), file.tokens)
    return partial(read_local, [Path(file.path) for file in files])


def read_local(paths: Sequence[Path], windows: Sequence[Window]) -> list[Int[np.ndarray, " seq"]]:
    """Windows of local files. Plain reads: maps of files larger than memory would count as this process's memory."""
    with contextlib.ExitStack() as opened:
        files = {file: opened.enter_context(paths[file].open("rb", buffering=0)) for file in {w.file for w in windows}}
        return [
            # os.pread takes its own offset, so threads that read ahead never move each other's file position.
            np.frombuffer(os.pread(files[file].fileno(), (end - start) * TOKEN_BYTES, start * TOKEN_BYTES), dtype="<u4")
            for file, start, end in windows
        ]


def _check_size(path: Path, tokens: int) -> None:
    size = path.stat().st_size
    if size % TOKEN_BYTES or size // TOKEN_BYTES < tokens:
        raise ValueError(
            f"{path} has {size:,} bytes; {tokens:,} tokens need {tokens * TOKEN_BYTES:,} and the size must be a "
            "multiple of 4: is it a uint32 token file, written to its end?"
        )


def documents_within(index: Path, start: int, end: int) -> Iterator[TokenRange]:
    """Yields the documents of a token file that overlap tokens [start, end), from its `.csv.gz` index."""
    with gzip.open(index, "rt", newline="", encoding="utf-8") as rows:
        for row in csv.reader(rows):
            # The rows are sorted by start, so nothing after this one can overlap.
            if int(row[0]) >= end:
                return
            # A document that ends where the range starts shares no token with it.
            if int(row[1]) > start:
                yield TokenRange(int(row[0]), int(row[1]), *row[2:5])
