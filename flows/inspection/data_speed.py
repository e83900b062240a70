"""How fast this machine curates a recipe's sources, and how long whole sources would take.

A seeded sample of a source's files goes through the recipe's own stages (collect, score, filter, dedup, encode) in a store that
is deleted afterwards. Seconds are those of the processor, so that a shared machine measures the same. Rules that ask a trained
classifier are left out and named, because it does not exist before the recipe has run.
"""

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from rich.console import Console
from rich.table import Table

from flows.config.recipe_config import RecipeConfig
from infra.events import silent
from infra.execution.attempt import run_stage
from infra.session import Session
from infra.settings import Execution
from infra.storage.store import Store
from tasks.artifacts import Documents
from tasks.data.collect import collect
from tasks.data.dedup import dedup
from tasks.data.encode import encode
from tasks.data.filter import FilterConfig, filter
from tasks.data.score import ScoreConfig, score
from tasks.data.sources.files.listing import SourceFile
from tasks.data.sources.hub import HubSource, hub_files
from tasks.data.sources.local import LocalSource

_LARGE = 4
"""A file of more than so many times the sample is taken only where there is no smaller one."""


class SourceSpeed(TypedDict):
    """How fast a source is curated here, measured on a sample, and what all of it would take."""

    source: str
    files: int
    listed_bytes: int
    sample_files: int
    sample_bytes: int
    text_bytes: int
    """Text in the sample."""
    rules_left_out: list[str]
    mb_per_second_per_core: dict[str, float]
    """By stage; megabytes of text."""
    whole_text_bytes: float
    whole_core_hours: float


def data_speed(config: RecipeConfig, name: str, megabytes: float, seed: int = 0) -> SourceSpeed:
    """Measure one source: processor seconds per MB of text of each stage, text per listed byte, and the whole source's hours.

    Raises ValueError for a source that is not one of files.
    """
    source = config.collect.get(name)
    if not isinstance(source, LocalSource | HubSource):
        raise ValueError(
            f"{name!r} is no source of files; those of the recipe are {', '.join(file_sources(config)) or 'none'}"
        )
    files = list(source.files or (hub_files(source) if isinstance(source, HubSource) else ()))
    # In a seeded order, so that two measurements of one machine read the same files.
    some = sample_of(files, megabytes * 1e6, seed)
    if source.files:
        part: LocalSource | HubSource = source.model_copy(update={"files": tuple(some)})
    else:
        part = source.model_copy(update={"data_files": tuple(file.name for file in some)})
    rules, left_out = usable_rules(config.filter[name])
    with tempfile.TemporaryDirectory(prefix="olmo2-speed-") as folder:
        seconds, documents = _run(Path(folder), config, name, part, rules)
    text, listed = documents.bytes, sum(file.size for file in files)
    read = sum(file.size for file in some)
    # Files that were sampled stand for all: text grows with listed bytes.
    whole = listed / read * text
    return {
        "source": name,
        "files": len(files),
        "listed_bytes": listed,
        "sample_files": len(some),
        "sample_bytes": read,
        "text_bytes": text,
        "rules_left_out": left_out,
        # A stage of a tiny sample may take no measurable time.
        "mb_per_second_per_core": {stage: text / 1e6 / max(1e-9, value) for stage, value in seconds.items()},
        "whole_text_bytes": whole,
        "whole_core_hours": whole / text * sum(seconds.values()) / 3600,
    }


def file_sources(config: RecipeConfig) -> list[str]:
    """The names of sources that are read from files."""
    return [name for name, source in config.collect.items() if isinstance(source, LocalSource | HubSource)]


def sample_of(files: Sequence[SourceFile], size: float, seed: int) -> list[SourceFile]:
    """Files in seeded random order until they have `size` bytes, at least one with content. ValueError where all are empty."""
    full = [file for file in files if file.size]
    if not full:
        raise ValueError(f"all {len(files):,} files of the source are empty")
    # A huge file would take the measurement's whole time; without a smaller one the smallest is taken.
    fitting = [file for file in full if file.size <= _LARGE * size] or [min(full, key=lambda file: file.size)]
    random.Random(seed).shuffle(fitting)
    chosen: list[SourceFile] = []
    for file in fitting:
        if sum(one.size for one in chosen) >= size:
            break
        chosen.append(file)
    return chosen


def usable_rules(config: FilterConfig) -> tuple[FilterConfig, list[str]]:
    """The rules that need no classifier, and the kinds of the others."""
    usable = tuple(rule for rule in config.rules if not ScoreConfig(scorers=(rule.scorer,)).classifiers)
    return config.model_copy(update={"rules": usable}), [rule.kind for rule in config.rules if rule not in usable]


def _run(
    folder: Path, config: RecipeConfig, name: str, source: LocalSource | HubSource, rules: FilterConfig
) -> tuple[dict[str, float], Documents]:
    """(processor seconds by stage, what was collected)."""
    session = Session(Store(str(folder)), Execution(store=str(folder), ray="off"))
    seconds: dict[str, float] = {}

    def run(stage: Any, *arguments: Any) -> Any:
        with _timed(seconds, stage.name):
            return run_stage(stage, session, stage.bind(*arguments), silent).artifact

    collected = documents = run(collect, source)
    if rules.rules:
        scores = run(score, documents, ScoreConfig(scorers=rules.scorers), [])
        documents = run(filter, documents, rules, scores)
    unique = run(dedup, [documents], config.dedup)
    run(encode, unique, config.encode_source(name))
    return seconds, collected


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    # Processor time of this process, so that neighbours on the machine do not count.
    start = time.process_time()
    yield
    seconds[name] = time.process_time() - start


def print_speeds(console: Console, speeds: Sequence[SourceSpeed], cores: int, price: float) -> None:
    """A row per source: MB/s per core of each stage, then what all of the source would take on so many cores."""
    for speed in speeds:
        table = Table("stage", "MB/s/core", box=None, pad_edge=False, header_style="bold")
        table.columns[1].justify = "right"
        for stage, value in speed["mb_per_second_per_core"].items():
            table.add_row(stage, f"{value:,.1f}")
        # Rates in a row add by their inverses: each byte passes every stage.
        together = 1 / sum(1 / value for value in speed["mb_per_second_per_core"].values())
        table.add_row("together", f"{together:,.1f}", style="bold")
        console.print(
            f"{speed['source']}: {speed['sample_files']:,} of {speed['files']:,} files, "
            f"{speed['text_bytes']:,} bytes of text"
        )
        console.print(table, highlight=False)
        if speed["rules_left_out"]:
            console.print(
                f"not measured, their classifier is not trained: {', '.join(speed['rules_left_out'])}", style="yellow"
            )
        hours = speed["whole_core_hours"]
        console.print(
            f"all of it: {speed['whole_text_bytes'] / 1e9:,.3f} GB of text, {hours:,.2f} core-hours, "
            f"{hours / cores:,.2f} hours on {cores:,} cores, {hours * price:,.2f} at {price:g} per core-hour\n",
            highlight=False,
        )
