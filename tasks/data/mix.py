"""Stage: token files of several sources to one training mix (RECIPE C.2, C.8, C.9).

Two ways, told apart by `requested_tokens`. Without it a source is taken `passes` times: once for pre-training
(C.2), a fraction or several times for the published mid-training mixes, whose tables give exactly that number
(C.8). With it every source gets its `ratio` of the requested tokens and the rounding of OLMo-core's mixture
tool (C.9), so that whole batches of whole windows come out.

Published mixes have names (tasks/data/documents/mix_presets.py).

A repeated source is listed once per pass. Part of a source is either the first tokens of each of its files
(C.9) or a seeded random choice of whole files (how the published mixes were made, C.8).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal, Self, TypedDict, get_args

import numpy as np
from pydantic import Field, model_validator

from infra.session import StageEstimate
from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Mix, Ranking, Tokens
from tasks.data.documents.mix_presets import CANDIDATE_MAX_REPETITION, PresetName, preset

RANKED_FIRST = "ranked-first"
WINNER = "winner"


class MixSource(Config):
    """How much of one source goes into the mix."""

    source: str = Field(min_length=1)
    """Name of the source, or `winner` for the one that the config's `winner` stands for."""
    passes: float = Field(default=1.0, gt=0)
    """Times the source is read when no token count is requested: the tables' Source % / 100 (RECIPE C.8)."""
    ratio: float | None = Field(default=None, gt=0, le=1)
    """Share of the requested tokens; the ratios of all sources sum to 1 (RECIPE C.9)."""
    max_repetition_ratio: float = Field(default=1.0, ge=1)
    """With a ratio: most passes over the source (RECIPE C.9)."""
    max_source_fraction: float = Field(default=1.0, gt=0, le=1)
    """With a ratio: largest part of the source that may be used (RECIPE C.9)."""


class MixConfig(Config):
    """Sources, amounts and rounding of a mix."""

    preset: PresetName | None = Field(default=None, exclude=True)
    """A published mix, which fills `sources` in: `dolmino-50b`, -100b, -300b (Table 13), a candidate of Table 10 such as
    `web-ft7-fw2-math`, or Table 5's and 4's parts. It takes no other part in the mix's identity."""
    sources: tuple[MixSource, ...] = ()
    """What to take; empty takes every given source once, without weighting (RECIPE C.2)."""
    requested_tokens: int | None = Field(default=None, gt=0)
    """Size of the mix, tokens; the sources then need ratios. None: the size follows from the passes."""
    sequence_length: int | None = Field(default=None, gt=0)
    """Tokens of a window, of which files give whole ones where tokens are requested (RECIPE C.9). A recipe leaves it out: it
    is that of the training which reads the mix."""
    batch_size: int | None = Field(default=None, gt=0)
    """Windows per update of that training; requested tokens are rounded up to whole batches (RECIPE C.9). A recipe leaves
    it out too."""
    part: Literal["file_heads", "whole_files"] = "file_heads"
    """What part of a source means: the head of each file (C.9), or a random choice of whole files (C.8)."""
    seed: int = 42
    """Seed of that choice (RECIPE C.9: default 42)."""
    fill: str = ""
    """With ratios: the source that also takes the tokens that smaller ones cannot give within their limits; empty: too small
    a source is an error."""
    winner: str = RANKED_FIRST
    """What `winner` stands for: the name of a source, or `ranked-first` for the first of the ranking."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("preset") not in get_args(PresetName):
            return data
        filled = preset_fields(data["preset"])
        # A preset with other sources could mean either, so it is refused instead of merged.
        if data.get("sources") and list(map(_plain, data["sources"])) != list(map(_plain, filled["sources"])):
            raise ValueError(
                f"preset={data['preset']!r} names the sources, and `sources` names others; give one of them (preset: null in a "
                "recipe whose parent has one)"
            )
        # What is given next to the preset goes before what the preset fills in.
        return filled | {key: value for key, value in data.items() if key != "sources"}

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [source.source for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources are named twice: {', '.join(twice)}; raise `passes` to repeat one")
        if self.fill and (self.fill not in names or self.requested_tokens is None):
            raise ValueError(
                f"fill={self.fill!r} takes what other sources of the mix cannot give: name one of {', '.join(names)}, and "
                "give requested_tokens"
            )
        ratios = [source.ratio for source in self.sources]
        if self.requested_tokens is None and any(ratio is not None for ratio in ratios):
            raise ValueError("a ratio needs requested_tokens; give it, or use `passes`")
        if self.requested_tokens is not None:
            total = sum(ratio or 0.0 for ratio in ratios)
            # isclose: ratios such as 0.1 ten times do not sum to 1 in floating point.
            if None in ratios or not np.isclose(total, 1.0):
                raise ValueError(
                    f"requested_tokens={self.requested_tokens:,} needs a ratio for every source, summing to 1; "
                    f"they are {ratios}, sum {total:g}"
                )
        return self

    def read_in(self, sequence_length: int, batch_size: int) -> Self:
        """The mix for a training on batches of `batch_size` windows of `sequence_length` tokens.

        A mix whose size follows from its passes is the same for every training, so it names neither.
        """
        if self.requested_tokens is None:
            return self.model_copy(update={"sequence_length": None, "batch_size": None})
        return self.model_copy(update={"sequence_length": sequence_length, "batch_size": batch_size})

    @property
    def rounded_tokens(self) -> int | None:
        """Tokens of the mix: those requested, rounded up to whole batches; None where the passes decide."""
        if self.requested_tokens is None:
            return None
        _, batch_tokens = self.window_and_batch()
        # Rounded up to whole batches, as the published tool does, so no batch is short.
        return ceil(self.requested_tokens / batch_tokens) * batch_tokens

    def window_and_batch(self) -> tuple[int, int]:
        """Tokens of a window and of a batch. ValueError where requested tokens are to be rounded and neither is known."""
        if self.sequence_length is None or self.batch_size is None:
            raise ValueError(
                f"requested_tokens={self.requested_tokens:,} are rounded to whole batches, and sequence_length="
                f"{self.sequence_length}, batch_size={self.batch_size} do not say of what size; give both"
            )
        return self.sequence_length, self.sequence_length * self.batch_size


class _PresetFields(TypedDict):
    """The fields of a mix that a preset fills in."""

    part: Literal["whole_files"]
    requested_tokens: int | None
    sources: list[dict[str, str | float]]


def preset_fields(name: PresetName) -> _PresetFields:
    """The fields of a mix that a preset fills in: sources with their amounts, and what goes with them."""
    found = preset(name)
    if found.unit == "passes":
        sources = [{"source": source, "passes": amount} for source, amount in found.amounts.items()]
    else:
        limit = {"max_repetition_ratio": CANDIDATE_MAX_REPETITION}
        sources = [{"source": source, "ratio": amount, **limit} for source, amount in found.amounts.items()]
    return {"part": "whole_files", "requested_tokens": found.requested_tokens, "sources": sources}


def _plain(source: object) -> dict[str, object]:
    """A source as a mapping with its defaults, however it was given."""
    return MixSource.model_validate(source).model_dump()


@dataclass(frozen=True)
class Entry:
    """Tokens to take from the head of one file, in one pass over it."""

    address: str
    file: str
    source: str
    tokens: int
    capacity: int
    """Tokens of the file."""


class MixEntry(TypedDict):
    """A file of `mix.json`."""

    address: str
    file: str
    source: str
    tokens: int
    passes: int


def mix_tokens(ws: Workspace, sources: list[Tokens], config: MixConfig, ranking: Ranking | None = None) -> Mix:
    """The list of files, with what to take of each.

    Raises ValueError for a source that is not given, given twice, of another vocabulary, or too small for its
    ratio.
    """
    vocabulary = _one_vocabulary(sources).facts
    entries = plan_mix({tokens.source: tokens for tokens in sources}, config, ranking)
    total = sum(entry.tokens for entry in entries)
    by_source: dict[str, int] = {}
    # By source, since a source may have several files and passes.
    for entry in entries:
        by_source[entry.source] = by_source.get(entry.source, 0) + entry.tokens
    shares = {name: tokens / total for name, tokens in by_source.items()}
    rows: list[MixEntry] = [
        {"address": entry.address, "file": entry.file, "source": entry.source, "tokens": entry.tokens, "passes": passes}
        for entry, passes in _grouped(entries)
    ]
    ws.write_json("mix.json", {"entries": rows, "tokens": total, **vocabulary, "shares": shares, "sources": by_source})
    # Bytes per token of each source: the mix has no text of its own to count.
    of = {tokens.source: tokens.bytes / tokens.tokens for tokens in sources}
    ws.table(
        "mix", [{"source": name, "tokens": by_source[name], "share": round(shares[name], 4)} for name in by_source]
    )
    text = round(sum(tokens * of[name] for name, tokens in by_source.items()))
    return ws.artifact(Mix, tokens=total, **vocabulary, bytes=text, shares=shares)


def _one_vocabulary(sources: list[Tokens]) -> Tokenizer:
    if not sources:
        raise ValueError("a mix needs at least one source of tokens")
    found = {tokens.source: Tokenizer(tokens.ranks, tokens.tokenizer) for tokens in sources}
    # Two artifacts of one source would be counted twice under one name.
    if len(found) < len(sources):
        names = [tokens.source for tokens in sources]
        raise ValueError(f"two token artifacts are of the same source: {names}; give each source another name")
    if len(set(found.values())) > 1:
        said = ", ".join(f"{name} {tokenizer}" for name, tokenizer in found.items())
        raise ValueError(f"sources were encoded with different vocabularies: {said}; encode them alike")
    return found[sources[0].source]


def plan_mix(sources: dict[str, Tokens], config: MixConfig, ranking: Ranking | None = None) -> list[Entry]:
    """Entries in order of the config's sources, pass by pass, file by file."""
    wanted = [
        wish.model_copy(update={"source": _resolve_name(wish.source, sources, config, ranking)})
        for wish in config.sources or [MixSource(source=name) for name in sources]
    ]
    names = [wish.source for wish in wanted]
    if len(set(names)) < len(names):
        raise ValueError(f"the winner is also named as a source of its own: {', '.join(names)}; name it once")
    entries: list[Entry] = []
    window, _ = config.window_and_batch() if config.requested_tokens else (1, 1)
    given = granted({name: tokens.tokens for name, tokens in sources.items()}, wanted, config)
    for wish in wanted:
        tokens = sources[wish.source]
        # With ratios the passes follow from the tokens granted; max(1, ...) guards a source without any.
        passes = given[wish.source] / max(1, tokens.tokens) if given else wish.passes
        if config.requested_tokens and max(tokens.files.values(), default=0) < window:
            raise ValueError(
                f"source {wish.source!r} has no file of one window of sequence_length={window:,} tokens (its "
                f"{tokens.tokens:,} tokens are in {len(tokens.files):,} files); give it more text or longer files, or take it "
                "out of the mix"
            )
        entries += take_passes(tokens, passes, config.part, config.seed)
    if config.requested_tokens is None or config.rounded_tokens is None:
        return entries
    # Whole windows only: a file that ends inside a window would lose its last tokens.
    filled = fill_windows(entries, config.rounded_tokens // window, window)
    taken = {entry.source for entry in filled}
    # A source that rounds to no window would silently be missing from the mix.
    for wish in wanted:
        if wish.source not in taken:
            raise ValueError(
                f"source {wish.source!r} has a ratio of {wish.ratio:g} of {config.requested_tokens:,} tokens, which rounds to no "
                f"window of sequence_length={window:,}; raise its ratio to "
                f"{window / config.requested_tokens:.2g} or request more tokens"
            )
    return filled


def _resolve_name(name: str, sources: dict[str, Tokens], config: MixConfig, ranking: Ranking | None) -> str:
    if name == WINNER:
        name = config.winner
        if name == RANKED_FIRST:
            if ranking is None or not ranking.order:
                raise ValueError("winner: ranked-first needs a ranking; run the sweep, or name a source as `winner`")
            name = ranking.order[0]
    if name not in sources:
        raise ValueError(f"source {name!r} is not among the given ones: {', '.join(sources)}")
    return name


def granted(sizes: dict[str, int], wishes: Sequence[MixSource], config: MixConfig) -> dict[str, int]:
    """Tokens of each source in a mix of ratios, given how many each has; empty without `requested_tokens`.

    Raises ValueError where a source's limits do not allow its ratio and no other fills the mix, or where that one is too
    small as well.
    """
    if config.requested_tokens is None:
        return {}
    # int() floors; `fill_windows` makes up for what is lost.
    needed = {wish.source: int(config.requested_tokens * (wish.ratio or 0.0)) for wish in wishes}
    allowed = {
        wish.source: int(sizes[wish.source] * wish.max_source_fraction * wish.max_repetition_ratio) for wish in wishes
    }
    if config.fill:
        given = {name: min(count, allowed[name]) for name, count in needed.items()}
        # What smaller sources lack goes to the one that fills.
        needed = given | {config.fill: given[config.fill] + sum(needed.values()) - sum(given.values())}
    for wish in wishes:
        if allowed[wish.source] < needed[wish.source]:
            raise ValueError(_too_small(wish, sizes[wish.source], needed[wish.source], allowed[wish.source], config))
    return needed


def _too_small(wish: MixSource, size: int, needed: int, allowed: int, config: MixConfig) -> str:
    return (
        f"source {wish.source!r} needs {needed:,} tokens ({wish.ratio:g} of {config.requested_tokens:,}"
        f"{', and what others lack' if wish.source == config.fill else ''}), but its {size:,} tokens "
        f"allow {allowed:,} (max_source_fraction={wish.max_source_fraction:g}, max_repetition_ratio="
        f"{wish.max_repetition_ratio:g}); use max_repetition_ratio={ceil(needed / max(1, size) * 100) / 100:g}, "
        "a smaller ratio, more data, or another source as `fill`"
    )


def take_passes(
    tokens: Tokens, passes: float, part: Literal["file_heads", "whole_files"] = "file_heads", seed: int = 42
) -> list[Entry]:
    """Whole passes over a source, then the part that remains."""
    # Sorted by name, so that the mix does not depend on the order in which shards finished.
    files = [Entry(tokens.address, name, tokens.source, count, count) for name, count in sorted(tokens.files.items())]
    # 2.5 passes are two whole ones and half of a third.
    whole, rest = divmod(passes, 1.0)
    entries = files * int(whole)
    if rest:
        entries += _file_heads(files, rest) if part == "file_heads" else _whole_files(files, rest, seed)
    return entries


def _file_heads(files: list[Entry], fraction: float) -> list[Entry]:
    # As the published tool: every file rounds up.
    return [replace(file, tokens=min(file.capacity, ceil(file.capacity * fraction))) for file in files]


def _whole_files(files: list[Entry], fraction: float, seed: int) -> list[Entry]:
    """Files in seeded random order until the fraction is reached; the last one only as far as needed. Listed
    in file order."""
    left = ceil(sum(file.capacity for file in files) * fraction)
    chosen: dict[int, Entry] = {}
    # Seeded by the mix alone, so every source draws its own files in the same way.
    for index in np.random.default_rng(seed).permutation(len(files)).tolist():
        if left > 0:
            chosen[index] = replace(files[index], tokens=min(left, files[index].capacity))
            left -= chosen[index].tokens
    return [chosen[index] for index in sorted(chosen)]


def fill_windows(entries: list[Entry], instances: int, sequence_length: int) -> list[Entry]:
    """Entries of whole windows that sum to `instances` (RECIPE C.9, Hamilton's method within each file's
    capacity).

    Raises ValueError where the files do not hold that many windows.
    """
    capacity = [entry.capacity // sequence_length for entry in entries]
    windows = [min(entry.tokens // sequence_length, most) for entry, most in zip(entries, capacity, strict=True)]
    open_entries = [index for index, most in enumerate(capacity) if windows[index] < most]
    missing = instances - sum(windows)
    if missing > 0 and open_entries:
        # More is missing than there are files: an equal share for each first, then the remainders.
        share = missing // len(open_entries)
        for index in open_entries:
            windows[index] += min(share, capacity[index] - windows[index])
        missing = instances - sum(windows)
        # Largest remainder first, among equals the later file, as in the published tool; again while there is room.
        while missing > 0 and (room := [i for i in open_entries if windows[i] < capacity[i]]):
            room.sort(key=lambda index: (entries[index].tokens % sequence_length, index), reverse=True)
            for index in room[:missing]:
                windows[index] += 1
            missing = instances - sum(windows)
    if missing > 0:
        raise ValueError(
            f"the sources hold {sum(capacity):,} whole windows of {sequence_length:,} tokens, {instances:,} are needed; request "
            f"{sum(capacity) * sequence_length:,} tokens or fewer, allow more repetition, or use longer files"
        )
    return [
        replace(entry, tokens=count * sequence_length) for entry, count in zip(entries, windows, strict=True) if count
    ]


def _grouped(entries: list[Entry]) -> list[tuple[Entry, int]]:
    """Equal entries put together, in order of first appearance, with how often they stood there."""
    counts: dict[Entry, int] = {}
    for entry in entries:
        # Passes over one file are equal entries, which are written once with their number.
        counts[entry] = counts.get(entry, 0) + 1
    return list(counts.items())


def estimate_mix(config: Mapping[str, object], sources: list[object], ranking: object = None) -> StageEstimate:
    """Tokens of a mix before it is made: what was requested, or all of sources that exist and are taken whole."""
    parsed = MixConfig.model_validate(config)
    if parsed.rounded_tokens is not None:
        return {"tokens": parsed.rounded_tokens}
    known = [source.tokens for source in sources if isinstance(source, Tokens)]
    return {"tokens": sum(known)} if not parsed.sources and len(known) == len(sources) else {}


mix = stage(mix_tokens, name="mix", version=3, estimate=estimate_mix)
