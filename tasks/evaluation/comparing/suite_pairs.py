"""Differences between candidates on a benchmark or on a suite, paired over items wherever both kept the same ones.

A suite's score is a mean over tasks (RECIPE I.1), so its difference is the mean of its tasks' paired differences, and the error
follows from theirs. Where two sides took different formats of a task, or kept no items, the errors are independent.
"""

from collections.abc import Sequence
from math import fsum, hypot, sqrt

from infra.records.reader import Reader
from tasks.artifacts import Scores
from tasks.evaluation.comparing.comparison import Comparison, compare
from tasks.evaluation.comparing.paired import read_items
from tasks.evaluation.comparing.runs import Floor, RunsCompared, mean_over_runs
from tasks.evaluation.scoring.suites import ScoreRow

Leaves = list[tuple[str, float]]
"""Benchmarks that a score is a weighted mean of, with their weights."""


def difference_of_runs(
    reader: Reader, first: Sequence[Scores], second: Sequence[Scores], name: str, floor: Floor | None
) -> RunsCompared:
    """Second candidate minus first, each given by the scores of its runs."""
    shares = 1 / len(first) + 1 / len(second)
    tables = [_rows(reader, score) for score in (*first, *second)]
    parts = [leaves(table, name) for table in tables]
    # Suites may have chosen different formats of a task; then no item is common.
    if all(part == parts[0] for part in parts):
        found = [_paired(reader, first, second, leaf) for leaf, _ in parts[0]]
        if all(one is not None for one in found):
            weighed = [(one, weight) for one, (_, weight) in zip(found, parts[0], strict=True) if one is not None]
            return RunsCompared(_weighted(weighed), floor, shares)
    rows = [table[name] for table in tables]
    return RunsCompared(_independent(rows[: len(first)], rows[len(first) :]), floor, shares)


def leaves(table: dict[str, ScoreRow], name: str) -> Leaves:
    """The benchmarks below a suite with their weights; a benchmark is its own only one."""
    row = table[name]
    members = row.get("formats")
    if not members:
        return [(name, 1.0)]
    micro = str(row["primary"]).startswith("micro")
    # In a micro average a benchmark counts by its items.
    total = sum(table[member]["n"] for member in members) if micro else len(members)
    return [
        (leaf, weight * (table[member]["n"] if micro else 1) / total)
        for member in members
        for leaf, weight in leaves(table, member)
    ]


def _rows(reader: Reader, score: Scores) -> dict[str, ScoreRow]:
    return {row["name"]: row for row in reader.read_json(score, "scores.json")["benchmarks"]}


def _paired(reader: Reader, first: Sequence[Scores], second: Sequence[Scores], benchmark: str) -> Comparison | None:
    """Of one benchmark, over the items' means over runs; None where a run kept no items."""
    found = [read_items(reader, score, benchmark) for score in (*first, *second)]
    sides = [one for one in found if one is not None]
    if len(sides) < len(found):
        return None
    before = mean_over_runs([items for items, _ in sides[: len(first)]])
    after = mean_over_runs([items for items, _ in sides[len(first) :]])
    if before.keys() != after.keys():
        raise ValueError(f"candidates answered different items of {benchmark!r}; evaluate them with one config")
    return compare(before, after, sides[0][1])


def _weighted(parts: Sequence[tuple[Comparison, float]]) -> Comparison:
    if len(parts) == 1:
        return parts[0][0]
    return Comparison(
        fsum(weight * one.difference for one, weight in parts),
        sqrt(fsum((weight * one.stderr) ** 2 for one, weight in parts)),
        sum(one.n for one, _ in parts),
        sum(one.discordant for one, _ in parts),
    )


def _independent(first: Sequence[ScoreRow], second: Sequence[ScoreRow]) -> Comparison:
    """From means and their errors; runs of one candidate answered the same items, so more runs do not lower those."""

    def mean(rows: Sequence[ScoreRow], field: str) -> float:
        return fsum(row[field] for row in rows) / len(rows)

    return Comparison(
        mean(second, "score") - mean(first, "score"), hypot(mean(first, "stderr"), mean(second, "stderr")), 0, 0
    )
