"""Two evaluations side by side, by the items that both answered.

Two models that answer the same items make errors together, so the standard error of their difference comes from the items'
differences, not from two independent errors. `p_holm` is corrected for the number of benchmarks (Holm 1979).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from infra.records.reader import Reader
from tasks.artifacts import Scores
from tasks.evaluation.comparing.comparison import compare, holm


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better the second evaluation is on one benchmark."""

    benchmark: str
    metric: str
    first: float
    second: float
    difference: float
    """Mean of second minus first over the common items."""
    stderr: float
    low: float
    high: float
    items: int
    discordant: int
    """Items on which the two differ."""
    detectable: float
    """The smallest difference that this many such items can show."""
    p: float
    p_holm: float
    lower_is_better: bool


def compare_scores(reader: Reader, first: Scores, second: Scores) -> list[Difference]:
    """Every benchmark that both evaluations have with items. Raises ValueError when there is none."""
    tables = [
        {row["name"]: row for row in reader.read_json(one, "scores.json")["benchmarks"]} for one in (first, second)
    ]
    found = []
    for name, row in tables[0].items():
        file = f"items/{name}.jsonl.zst"
        # Suites keep no items of their own.
        if name not in tables[1] or not all(file in reader.files(one) for one in (first, second)):
            continue
        metric = row["primary"]
        values = [_item_values(reader, one, file, metric) for one in (first, second)]
        if values[0].keys() & values[1].keys():
            found.append(paired(name, metric, values[0], values[1], row["lower_is_better"]))
    if not found:
        raise ValueError(
            f"{first.label} and {second.label} have no benchmark with common items: {', '.join(sorted(tables[0]))} and "
            f"{', '.join(sorted(tables[1]))}"
        )
    return with_holm(found)


def _item_values(reader: Reader, scores: Scores, file: str, metric: str) -> dict[str, tuple[float, str]]:
    """(value, group) of every item. ValueError when the items lack the metric."""
    rows = list(reader.read_jsonl(scores, file))
    if lacking := [row["id"] for row in rows if metric not in row["metrics"]]:
        raise ValueError(f"{scores.label}: item {lacking[0]} of {file} has no metric {metric!r}; evaluate it again")
    return {row["id"]: (row["metrics"][metric], row.get("group", "")) for row in rows}


def paired(
    name: str,
    metric: str,
    first: Mapping[str, tuple[float, str]],
    second: Mapping[str, tuple[float, str]],
    lower_is_better: bool = False,
) -> Difference:
    """The paired difference over the common items, with an error clustered by their groups where they have some."""
    groups = {id: group for id, (_, group) in first.items()}
    common = [id for id in first if id in second]
    # One cluster for all would leave a single draw and no error.
    clustered = all(groups[id] for id in common) and len({groups[id] for id in common}) > 1
    before, after = ({id: value for id, (value, _) in side.items()} for side in (first, second))
    found = compare(before, after, groups if clustered else None)
    low, high = found.interval
    return Difference(
        benchmark=name,
        metric=metric,
        first=sum(before[id] for id in common) / len(common),
        second=sum(after[id] for id in common) / len(common),
        difference=found.difference,
        stderr=found.stderr,
        low=low,
        high=high,
        items=found.n,
        discordant=found.discordant,
        detectable=found.smallest_shown,
        p=found.p_value,
        p_holm=found.p_value,
        lower_is_better=lower_is_better,
    )


def with_holm(found: Sequence[Difference]) -> list[Difference]:
    """The same with p-values corrected for their number."""
    corrected = holm([one.p for one in found])
    return [replace(one, p_holm=p) for one, p in zip(found, corrected, strict=True)]


class DifferingItem(TypedDict):
    """An item on which two models differ, with both answers."""

    benchmark: str
    id: str
    question: str
    gold: str
    first: str
    second: str
    first_score: float
    second_score: float


def differing_items(reader: Reader, first: Scores, second: Scores, benchmark: str) -> list[DifferingItem]:
    """The items of a benchmark on which the two differ in its primary metric, with both answers."""
    file = f"items/{benchmark}.jsonl.zst"
    rows = {row["name"]: row for row in reader.read_json(first, "scores.json")["benchmarks"]}
    metric = rows[benchmark]["primary"]
    others = {row["id"]: row for row in reader.read_jsonl(second, file)}
    return [
        {
            "benchmark": benchmark,
            "id": row["id"],
            "question": row["question"],
            "gold": row["gold"],
            "first": row["answer"],
            "second": others[row["id"]]["answer"],
            "first_score": row["metrics"][metric],
            "second_score": others[row["id"]]["metrics"][metric],
        }
        for row in reader.read_jsonl(first, file)
        if row["id"] in others and row["metrics"][metric] != others[row["id"]]["metrics"][metric]
    ]
