"""From a mix to the loader: which windows a training reads, and how they come from the store.

Source: RECIPE C.8 (passes), C.9 (windows, order, target length), C.4 (mask), D (validation in the loop). A mix of a few
gigabytes is read from verified copies of its files, each fetched when a window of it is first needed. A larger one is never
copied: every window is a range of its object, and all those of a step are asked for at once. So a node needs neither the
disk for terabytes of tokens nor the time to hash them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Int
from pydantic import Field, model_validator

from infra.records.artifact import Artifact
from infra.records.reader import Reader
from model.config import Config
from model.data.batches import TOKEN_BYTES, TokenFile, Window, WindowedTokens, WindowRules, read_local
from model.data.order import OrderKind
from model.tokens.tokenizer import Tokenizer
from model.training.configs import LossConfig, OptimConfig
from tasks.artifacts import Mix
from tasks.training.fitting.in_loop_evaluation import InLoopConfig
from tasks.training.fitting.selection import SelectConfig

_COPIED_BYTES = 4 << 30
"""A mix whose files have no more bytes than this is read from local copies."""
FETCHES = 16
"""Files that are copied at the same time."""


class MixTrainingConfig(Config):
    """What pre-training and anneals have in common: what they read of a mix, in which order, and how a step is made."""

    steps: int | None = Field(default=None, ge=1)
    """Updates; None is one pass over the mix (7B: 928,646, an ingredient of its soup 11,921)."""
    optim: OptimConfig = OptimConfig()
    """Optimizer and precision; an anneal's are its parent's."""
    loss: LossConfig = LossConfig()
    """Cross-entropy and z-loss."""
    sequence_length: int = Field(default=4096, ge=2)
    """Tokens of a window."""
    batch_size: int = Field(default=1024, ge=1)
    """Windows per update (1B: 512, 13B and 32B: 2048; RECIPE D)."""
    order: OrderKind = "feistel"
    """Order of the windows: a permutation computed in constant memory, or NumPy's shuffle as in the published runs, which
    holds an integer per window (RECIPE C.9). `published` is OLMo's (1B to 13B), `published_core` OLMo-core's (32B)."""
    target_length: int = Field(default=0, ge=0)
    """Windows are dropped so that the order also fits a later training with windows of this length, tokens (32B: 8192);
    0 keeps every whole window (RECIPE C.9). `published_core` also keeps the windows of a longer one together."""
    mask_repetitions: bool = True
    """Leave windows with a span of 1 to 13 tokens repeated 32 times or more out of the loss (RECIPE C.4)."""
    in_loop: InLoopConfig = InLoopConfig()
    """Evaluation while training."""
    select: SelectConfig | None = None
    """Choose the result among the save points."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines with all metrics (RECIPE D); loss, gradient norm and skipped updates are recorded every step."""
    norms_every: int = Field(default=100, ge=0)
    """Steps between two lines with norms of parameters, gradients and updates per layer; 0 is never."""

    @model_validator(mode="after")
    def _norms_are_logged(self) -> Self:
        if self.norms_every % self.log_every:
            # The nearest multiple below, and at least one log interval.
            fitting = max(1, self.norms_every // self.log_every) * self.log_every
            raise ValueError(
                f"norms_every={self.norms_every} is not a multiple of log_every={self.log_every}, so its lines would not be "
                f"written; use {fitting}"
            )
        return self


@dataclass(frozen=True)
class StoredFile:
    """A token file where a mix names it."""

    tokens: Artifact
    name: str

    @property
    def address(self) -> str:
        """Place in the store."""
        return f"{self.tokens.address}/{self.name}"


def mix_files(reader: Reader, mix: Mix) -> tuple[list[TokenFile], list[StoredFile]]:
    """The token files of a mix and, one by one, where they lie; a file taken in several passes stands there several
    times (RECIPE C.8). Nothing is read of them.
    """
    artifacts: dict[str, Artifact] = {}
    files: list[TokenFile] = []
    stored: list[StoredFile] = []
    for entry in reader.read_json(mix, "mix.json")["entries"]:
        address = entry["address"]
        if address not in artifacts:
            artifacts[address] = reader.at(address)
        place = StoredFile(artifacts[address], entry["file"])
        # A mix of an older version may state no passes; each file then counts once.
        passes = entry.get("passes", 1)
        # A file taken in two passes stands in the list twice, so its windows are read twice an epoch.
        files += [TokenFile(place.address, entry["tokens"], entry["source"])] * passes
        stored += [place] * passes
    return files, stored


def training_windows(
    reader: Reader, mix: Mix, config: MixTrainingConfig, seed: int, micro_instances: int = 0
) -> WindowedTokens:
    """The batches of a training on a mix; `micro_instances` windows are a micro-batch, 0 for the whole batch.

    Raises ValueError when the mix holds less than one batch, or less than twice what is held out of a source, and by name for a
    source that gives no window.
    """
    files, stored = mix_files(reader, mix)
    check_sources(files, config.target_length or config.sequence_length)
    return windows_of(reader, files, stored, config, seed, micro_instances)


def windows_of(
    reader: Reader,
    files: Sequence[TokenFile],
    stored: Sequence[StoredFile],
    config: MixTrainingConfig,
    seed: int,
    micro_instances: int = 0,
) -> WindowedTokens:
    """The same of a mix whose files are known (`mix_files`)."""
    return WindowedTokens(
        files,
        config.sequence_length,
        config.batch_size,
        seed,
        config.mask_repetitions,
        micro_instances=micro_instances,
        rules=WindowRules(config.loss.normalisation, config.order, config.target_length, config.in_loop.windows),
        reader=store_reader(reader, stored),
    )


def check_sources(files: Sequence[TokenFile], window: int) -> None:
    """ValueError that names a source of which no file has one window: the training would read nothing of it.

    A mix stated by passes is the same for every training, so that it cannot know.
    """
    longest: dict[str, int] = {}
    for file in files:
        longest[file.source] = max(longest.get(file.source, 0), file.tokens)
    for source, most in longest.items():
        if most < window:
            taken = [file.tokens for file in files if file.source == source]
            raise ValueError(
                f"source {source!r} gives no window of {window:,} tokens: the mix takes {sum(taken):,} tokens of it in "
                f"{len(taken):,} files, at most {most:,} of one. Give it more text, longer files or more passes, make the window "
                "shorter, or take it out of the mix"
            )


def store_reader(reader: Reader, stored: Sequence[StoredFile], copied_bytes: int = _COPIED_BYTES):
    """How the windows of these files are read: from copies where all of them have at most `copied_bytes`, else by ranges.

    Raises ValueError (from the reader) for a file that ends inside a window.
    """
    # By address, so that a file that the mix passes over several times counts once.
    sizes = {file.address: reader.record(file.tokens).files[file.name].size for file in stored}
    return Copies(reader, stored) if sum(sizes.values()) <= copied_bytes else Ranges(reader, stored)


class Ranges:
    """Windows as byte ranges of objects; nothing is kept."""

    def __init__(self, reader: Reader, stored: Sequence[StoredFile]) -> None:
        self.reader, self.stored = reader, list(stored)

    def __call__(self, windows: Sequence[Window]) -> list[Int[np.ndarray, " seq"]]:
        places = [(self.stored[file].tokens, self.stored[file].name, start, end) for file, start, end in windows]
        # Bytes of all windows of a step in one call: the store asks for them at once.
        parts = self.reader.read_ranges([(a, name, s * TOKEN_BYTES, e * TOKEN_BYTES) for a, name, s, e in places])
        # Token files are little-endian on every machine, whatever this one's order of bytes is.
        return [np.frombuffer(part, dtype="<u4") for part in parts]


class Copies:
    """Windows of local, verified copies, or of the store's own files where it is a folder."""

    def __init__(self, reader: Reader, stored: Sequence[StoredFile]) -> None:
        self.reader, self.stored = reader, list(stored)
        self.paths: dict[str, Path] = {}

    def __call__(self, windows: Sequence[Window]) -> list[Int[np.ndarray, " seq"]]:
        # One entry per object: the passes of a source over its file read the same copy.
        wanted = {self.stored[window.file].address: self.stored[window.file] for window in windows}
        missing = [file for address, file in wanted.items() if address not in self.paths]
        if missing:
            with ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch") as pool:
                found = pool.map(lambda file: self.reader.path(file.tokens, file.name), missing)
                self.paths |= {file.address: path for file, path in zip(missing, found, strict=True)}
        numbers = {address: number for number, address in enumerate(wanted)}
        # Windows name files by their place in the mix, and `read_local` by their place in this call.
        local = [window._replace(file=numbers[self.stored[window.file].address]) for window in windows]
        return read_local([self.paths[address] for address in wanted], local)


def check_vocabulary(mix: Mix, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise ValueError unless the mix's tokens are ids of this tokenizer and the model has a row for each."""
    encoded = Tokenizer(mix.ranks, mix.tokenizer)
    if encoded != tokenizer:
        raise ValueError(
            f"vocabulary mismatch: the mix was encoded with {encoded}, the model's tokenizer is "
            f"{tokenizer}; encode again with the model's vocabulary (encode.ranks, encode.tokenizer) or start from another model"
        )
    if vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"vocabulary mismatch: the model has {vocab_size:,} embedding rows for {tokenizer.vocab_size:,} token ids; "
            f"set model.vocab_size to {tokenizer.padded_vocab_size:,}"
        )


def window_names(data: WindowedTokens) -> Callable[[int], list[str]]:
    """What names the windows of a 0-based step in an error: file and tokens."""
    return lambda step: [f"{data.files[file].path}[{start}:{end}]" for file, start, end in data.locate(step)]
