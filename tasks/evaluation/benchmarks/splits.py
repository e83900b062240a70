"""All items of a benchmark's data, for decontamination: every row of every split, not only those that are evaluated.

RECIPE C.6 takes the training, validation and test instances of all evaluation tasks. A split is a training split when it is
called `train` and another one is evaluated; few-shot examples count as such.
"""

import sys
from collections.abc import Iterator
from typing import Literal

from tasks.data.sources.rows import RowSource
from tasks.evaluation.benchmarks import Benchmark, load_items
from tasks.evaluation.benchmarks.gsm8k import GSM8KBenchmark
from tasks.evaluation.benchmarks.items import Item
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
    everything = config.model_copy(update={"limit": sys.maxsize})
    yield from _marked("held_out", everything)
    if not isinstance(everything, GSM8KBenchmark):
        # IFEval has a single split, and rendered requests hold the evaluated one only.
        return
    for rows in _other_splits(everything.rows):
        training = rows.split == TRAINING
        if splits == "all" or not training:
            named = everything.model_copy(update={"rows": rows})
            yield from _marked("all" if training else "held_out", named)
    if splits == "all" and everything.shot_rows and everything.shot_rows.paths:
        shots = everything.shot_rows.model_copy(update={"limit": None})
        yield from _marked("all", everything.model_copy(update={"rows": shots}))


def _marked(splits: Splits, config: Benchmark) -> Iterator[tuple[Splits, Item]]:
    for item in load_items(config):
        yield splits, item


def _other_splits(rows: RowSource) -> list[RowSource]:
    """The same dataset's other splits, whole; none of local files."""
    if not rows.dataset:
        return []
    from datasets import get_dataset_split_names

    names = get_dataset_split_names(rows.dataset, rows.subset or None, revision=rows.revision)
    return [rows.model_copy(update={"split": name, "limit": None}) for name in sorted(names) if name != rows.split]
