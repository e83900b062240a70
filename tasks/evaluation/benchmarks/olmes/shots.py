"""Shots of a task: curated rows that ship with it, or the first rows of a split of its data set (RECIPE I.2, I.3).

`shots/<kind>/<task>.json` holds the rows in the schema of the data set, with their source and licence. They are the ones that
OLMES names (golden/fewshot_identity.json), in its order.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tasks.data.sources.rows import RowSource, read_good_rows
from tasks.evaluation.benchmarks.olmes.task import Document, Task

_FOLDERS = ("shots/choices", "shots/answers", "shots/reasoning")
"""Below this file's folder, so that the files count as part of the code (infra/execution/fingerprint.py)."""


def shots_by_group(task: Task, count: int, pinned: Mapping[str, RowSource]) -> dict[str, list[Document]]:
    """The shots of each group, or of the group "" where all items have the same ones.

    Raises ValueError when there are fewer rows than shots.
    """
    if count == 0:
        return {}
    if task.shot_split:
        return _first_rows(task, count, pinned)
    found: dict[str, list[Document]] = {}
    for group, rows in curated_rows(task.name).items():
        if len(rows) < count:
            raise ValueError(
                f"{task.name} has {len(rows)} curated shots and is asked with {count}; use at most {len(rows)}"
            )
        # The first rows are the published shots; a larger count than there are is refused above.
        found[group] = [one(task.read(row, place)) for place, row in enumerate(rows[:count])]
    return found


def one(read: Document | Sequence[Document]) -> Document:
    """The document of a shot's row."""
    return read if isinstance(read, Document) else read[0]


def _first_rows(task: Task, count: int, pinned: Mapping[str, RowSource]) -> dict[str, list[Document]]:
    """The first rows of each group in the shots' split."""
    found: dict[str, list[Document]] = defaultdict(list)
    for group, _, _ in task.sources():
        for place, row in enumerate(read_good_rows(pinned[f"shots:{group}"])):
            document = one(task.read(row, place))
            # The split is read once, and each group keeps its first rows.
            if len(found[document.group or group]) < count:
                found[document.group or group].append(document)
    short = {group: len(rows) for group, rows in found.items() if len(rows) < count}
    if short or not found:
        raise ValueError(
            f"split {task.shot_split!r} of {task.name} has too few rows for {count} shots: {short or 'none'}"
        )
    return dict(found)


@cache
def curated_rows(name: str) -> Mapping[str, Sequence[Mapping[str, object]]]:
    """Rows by group of the task's file. Several tasks may share one: the file names them."""
    here = Path(__file__).parent
    # Sorted, so that a task found in two files gets the same one everywhere.
    for file in sorted(path for folder in _FOLDERS for path in (here / folder).glob("*.json")):
        content = json.loads(file.read_text("utf-8"))
        if name in content["tasks"]:
            return content["groups"]
    raise ValueError(f"task {name!r} has no file of curated shots in {here / 'shots'}; give one or set shots: 0")
