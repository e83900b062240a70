"""All items of a benchmark's data, for decontamination: every row of every split, not only those that are evaluated.

RECIPE C.6 takes the training, validation and test instances of all evaluation tasks. A split is a training split when `train`
is in its name and another one is evaluated; few-shot examples count as such. A local copy has the evaluated split only.
"""

import sys
from collections.abc import Iterator
from typing import Literal

from tasks.data.sources.files.hub_listing import list_hub, split_names
from tasks.data.sources.rows import RowSource, read_good_rows
from tasks.evaluation.benchmarks import Benchmark, load_items
from tasks.evaluation.benchmarks.gsm8k import GSM8KBenchmark
from tasks.evaluation.benchmarks.items import Item
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark, in_group
from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Task
from tasks.evaluation.benchmarks.synthetic import SyntheticBenchmark

Splits = Literal["held_out", "all"]
TRAINING = "train"


def items_of_splits(config: Benchmark, splits: Splits) -> Iterator[tuple[Splits, Item]]:
    """(held_out, or all for a training split; the item) of a pinned benchmark, the evaluated split first.

    Raises ValueError when the data are missing or there are no items.
    """
    if isinstance(config, SyntheticBenchmark):
        yield from _marked("held_out", config)
        return
    # The limit is lifted: items that are not evaluated must not be trained on either.
    everything = config.model_copy(update={"limit": sys.maxsize})
    yield from _marked("held_out", everything)
    # IFEval and IFEval-OOD have a single split, and rendered requests hold the evaluated one only.
    match everything:
        case OlmesBenchmark():
            yield from _further_rows(everything, splits)
        case GSM8KBenchmark():
            for kind, rows in _other_splits(everything.rows, splits):
                yield from _marked(kind, everything.model_copy(update={"rows": rows}))
            if splits == "all" and everything.shot_rows and everything.shot_rows.paths:
                shots = everything.shot_rows.model_copy(update={"limit": None})
                yield from _marked("all", everything.model_copy(update={"rows": shots}))


def _marked(splits: Splits, config: Benchmark) -> Iterator[tuple[Splits, Item]]:
    for item in load_items(config):
        yield splits, item


def _other_splits(rows: RowSource, splits: Splits) -> Iterator[tuple[Splits, RowSource]]:
    """The same dataset's other splits, whole, training splits only for `all`; none of local files."""
    if not rows.dataset:
        return
    for name in split_names(list_hub(rows.dataset, rows.revision), rows.subset):
        training = TRAINING in name
        # The evaluated split has been given above.
        if name != rows.split and (splits == "all" or not training):
            yield "all" if training else "held_out", rows.model_copy(update={"split": name, "limit": None})


def _further_rows(config: OlmesBenchmark, splits: Splits) -> Iterator[tuple[Splits, Item]]:
    """Rows that the task does not ask: of the evaluated split, where it has some rows only, and of the other splits."""
    task = config.facts
    for group, _, _ in task.sources():
        rows = config.pins[f"items:{group}"]
        if task.places is not None:
            asked = set(task.places)
            for place, row in enumerate(read_good_rows(rows)):
                if place not in asked:
                    for item in _row_items(task, group, rows.split, place, row):
                        yield "held_out", item
        for kind, other in _other_splits(rows, splits):
            for place, row in enumerate(read_good_rows(other)):
                for item in _row_items(task, group, other.split, place, row):
                    yield kind, item


def _row_items(task: Task, group: str, split: str, place: int, row: DatasetRow) -> Iterator[Item]:
    """A row of a split that is not asked, as the task reads it. Splits without answers may not fit: then all of its texts."""
    try:
        read = task.read(row, place)
    except (KeyError, IndexError, TypeError, ValueError):
        # A test split without answers lacks fields, and its texts are still to be found.
        yield Item(f"{split}-{group}-{place}", "\n".join(_texts(row)), "")
        return
    for document in [read] if isinstance(read, Document) else read:
        found = in_group(document, group)
        text = f"{found.question}\n{found.answer}"
        yield Item(f"{split}-{found.id}", text, found.answer, {"question": found.question})


def _texts(value: object) -> Iterator[str]:
    """All texts in a row, however deep."""
    match value:
        case str():
            yield value
        case dict():
            for member in value.values():
                yield from _texts(member)
        case list() | tuple():
            for member in value:
                yield from _texts(member)
