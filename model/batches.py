"""Training batches from token files: fixed windows, a computed order, the repetition mask.

Source: RECIPE C.9 (fixed-length chunking, labels, order), C.4 (masking), A.5 (divisor). Each file is cut by
itself from offset 0 and its remainder dropped; documents are split freely and attend to each other inside a
window. A batch is a pure function of the step.
"""

import csv
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from model.losses import IGNORE, Normalisation, loss_divisor, next_token_labels
from model.order import OrderKind, PublishedShuffle, Shuffle, shuffle
from model.repetition import is_repetitive

TOKEN_BYTES = 4
"""Token files are raw little-endian uint32 without a header."""


@dataclass(frozen=True)
class TokenFile:
    """The first `tokens` tokens of a file, and the source they count for."""

    path: Path
    tokens: int
    source: str = ""


class Window(NamedTuple):
    """Tokens [start, end) of the file at position `file` of the list: one training instance."""

    file: int
    start: int
    end: int


class Document(NamedTuple):
    """A document's tokens [start, end) within its token file (a row of its `.csv.gz`)."""

    start: int
    end: int
    id: str
    src: str
    loc: str


class WindowedTokens:
    """Batches of `batch_instances` windows of `sequence_length` tokens, reshuffled every epoch.

    `micro_instances` splits a batch into micro-batches (0: one). `target_length` keeps the windows compatible
    with a later, longer training: a file gives floor(tokens / target_length) * target_length /
    sequence_length windows (0: the window itself). Raises ValueError for empty or short files and for lengths
    that do not divide.
    """

    def __init__(
        self,
        files: Sequence[TokenFile],
        sequence_length: int,
        batch_instances: int,
        seed: int,
        mask_repetitions: bool = True,
        *,
        micro_instances: int = 0,
        normalisation: Normalisation = "labels",
        order: OrderKind = "feistel",
        target_length: int = 0,
    ) -> None:
        target = target_length or sequence_length
        micro = micro_instances or batch_instances
        if target % sequence_length:
            raise ValueError(f"target_length={target} is not a multiple of sequence_length={sequence_length}")
        if batch_instances % micro:
            raise ValueError(f"micro_instances={micro} does not divide batch_instances={batch_instances}")
        self.files, self.sequence_length, self.batch_instances = list(files), sequence_length, batch_instances
        self.seed, self.mask_repetitions, self.micro_instances = seed, mask_repetitions, micro
        self.normalisation: Normalisation = normalisation
        self.order: OrderKind = order
        for file in self.files:
            _check_size(file)
        per_file = [file.tokens // target * (target // sequence_length) for file in self.files]
        self.ends = np.cumsum([0, *per_file])
        self.instances = int(self.ends[-1])
        if self.instances < batch_instances:
            raise ValueError(
                f"{len(self.files)} files hold {self.instances} windows of {sequence_length} tokens, fewer than one batch of "
                f"{batch_instances}; add data, or make the batch or the window smaller"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of one pass over the data; what is left over is dropped until the next shuffle."""
        return self.instances // self.batch_instances

    @property
    def batch_tokens(self) -> int:
        """Tokens of one batch."""
        return self.batch_instances * self.sequence_length

    def window(self, instance: int) -> Window:
        """Where an instance lies."""
        file = int(np.searchsorted(self.ends, instance, side="right")) - 1
        start = (instance - int(self.ends[file])) * self.sequence_length
        return Window(file, start, start + self.sequence_length)

    def locate(self, step: int) -> list[Window]:
        """The windows that a 0-based step reads, in batch order."""
        epoch, within = divmod(step, self.steps_per_epoch)
        places = np.arange(within * self.batch_instances, (within + 1) * self.batch_instances)
        return [self.window(instance) for instance in self._shuffle(epoch).at(places).tolist()]

    def steps_reading(self, file: int, start: int, end: int, epochs: int = 1) -> list[int]:
        """0-based steps that read any of tokens [start, end) of a file, over so many epochs: the inverse of
        `locate`.
        """
        first = int(self.ends[file]) + start // self.sequence_length
        last = min(int(self.ends[file]) + (end - 1) // self.sequence_length, int(self.ends[file + 1]) - 1)
        if end <= start or first > last:
            return []
        steps = []
        for epoch in range(epochs):
            within = self._shuffle(epoch).place_of(np.arange(first, last + 1)) // self.batch_instances
            steps += [epoch * self.steps_per_epoch + w for w in within.tolist() if w < self.steps_per_epoch]
        return sorted(set(steps))

    def batch(self, step: int) -> list[dict[str, Any]]:
        """Micro-batches of a 0-based step: ids uint32, labels int64, the share of the batch's divisor, the
        masked share.
        """
        ids = np.stack([self._read(window) for window in self.locate(step)])
        labels = next_token_labels(ids)
        masked = np.zeros(len(ids), dtype=bool)
        if self.mask_repetitions:
            masked = np.array([is_repetitive(row) for row in ids])
            labels[masked] = IGNORE
        parts = len(ids) // self.micro_instances
        divisor = np.float32(loss_divisor(labels, int(masked.sum()), self.normalisation) / parts)
        if self.normalisation == "sum":
            divisor = np.float32(1.0)
        return [
            {"ids": part, "labels": target, "divisor": np.asarray(divisor), "masked_instances": np.asarray(share)}
            for part, target, share in zip(
                np.split(ids, parts),
                np.split(labels, parts),
                [np.float32(rows.mean()) for rows in np.split(masked, parts)],
                strict=True,
            )
        ]

    @lru_cache(maxsize=4)  # noqa: B019 - a handful of permutations per object, freed with the process
    def _shuffle(self, epoch: int) -> Shuffle | PublishedShuffle:
        return shuffle(self.order, self.instances, self.seed, epoch)

    def _read(self, window: Window) -> Int[np.ndarray, " seq"]:
        return _mapped(self.files[window.file].path)[window.start : window.end]


@lru_cache(maxsize=1024)
def _mapped(path: Path) -> np.ndarray:
    """A file's tokens without reading them; the least recently used maps are closed beyond 1,024 files."""
    return np.memmap(path, dtype="<u4", mode="r")


def _check_size(file: TokenFile) -> None:
    size = file.path.stat().st_size
    if size % TOKEN_BYTES or size // TOKEN_BYTES < file.tokens:
        raise ValueError(
            f"{file.path} has {size:,} bytes; {file.tokens:,} tokens need {file.tokens * TOKEN_BYTES:,} and the size must be a "
            "multiple of 4: is it a uint32 token file, written to its end?"
        )


def documents_within(index: Path, start: int, end: int) -> Iterator[Document]:
    """Yields the documents of a token file that overlap tokens [start, end), from its `.csv.gz` index."""
    with gzip.open(index, "rt", newline="") as rows:
        for row in csv.reader(rows):
            if int(row[0]) >= end:
                return
            if int(row[1]) > start:
                yield Document(int(row[0]), int(row[1]), *row[2:5])
