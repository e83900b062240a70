"""Averages over benchmarks: best of formats, macro or micro, suites of suites, and means over subjects (RECIPE I.1)."""

from collections.abc import Mapping, Sequence
from itertools import chain
from math import sqrt
from operator import mul
from typing import Literal, NotRequired, TypedDict

from model.config import Config
from tasks.evaluation.benchmarks import ItemScore
from tasks.evaluation.benchmarks.items import Estimate, Item, estimate_mean, macro_average
from tasks.evaluation.scoring.best_format import ItemValues, choice_excess


class MetricValue(TypedDict):
    """A metric's mean over items, with its error."""

    value: float
    stderr: float


class GroupMean(TypedDict):
    """The mean of one group of items."""

    score: float
    n: int


class OverlapCounts(TypedDict):
    """Items that share words with the training data, and the mean over the others."""

    items: int
    score_of_others: float | None


class ScoreRow(TypedDict):
    """A row of `scores.json`: a benchmark, or a suite of them."""

    name: str
    primary: str
    """The metric that counts."""
    score: float
    stderr: float
    n: int
    lower_is_better: bool
    truncated_prompts: int
    metrics: NotRequired[dict[str, MetricValue]]
    role: NotRequired[str]
    """dev or held_out."""
    overlap: NotRequired[OverlapCounts]
    """Where somebody looked for overlaps."""
    unread: NotRequired[int]
    """Of a judge: items that it said nothing of which can be read; they count nowhere."""
    groups: NotRequired[dict[str, GroupMean]]
    """Where the score is a mean over groups."""
    corrected: NotRequired[float]
    """Of a suite: without what choosing the best formats adds."""
    formats: NotRequired[list[str]]
    """Of a suite: the benchmarks that it is the mean of."""


class SuiteConfig(Config):
    """A mean over tasks, each the best of its formats (RECIPE I.1: max of MCF and CF, then macro)."""

    name: str
    """Name in scores and reports."""
    tasks: tuple[tuple[str, ...], ...]
    """Per task, the names of the benchmarks that are its formats, or of other suites."""
    average: Literal["macro", "micro"] = "macro"
    """`macro`: every task counts the same. `micro`: every item does."""


def check_suites(names: Sequence[str], suites: Sequence[SuiteConfig]) -> None:
    """Raise ValueError for a name that is used twice, a suite of unknown tasks, or suites that hold each other."""
    every = [*names, *(suite.name for suite in suites)]
    twice = sorted({name for name in every if every.count(name) > 1})
    if twice:
        raise ValueError(f"benchmark names {twice} are used twice; give each its own name")
    for suite in suites:
        unknown = sorted(set(chain(*suite.tasks)) - set(every))
        if unknown or not suite.tasks or not all(suite.tasks):
            raise ValueError(
                f"suite {suite.name!r} names {unknown or 'no tasks'}; the benchmarks are {', '.join(sorted(names))}"
            )
    ordered(suites)


def ordered(suites: Sequence[SuiteConfig]) -> list[SuiteConfig]:
    """The suites, each after those that it holds. Raises ValueError when they hold each other in a circle."""
    waiting, done = list(suites), []
    names = {suite.name for suite in suites}
    while waiting:
        held = {suite.name for suite in waiting}
        # Ready is a suite that holds none of those still waiting.
        ready = [suite for suite in waiting if not set(chain(*suite.tasks)) & held & names]
        if not ready:
            raise ValueError(
                f"suites {', '.join(sorted(held))} hold each other; a suite holds benchmarks and other suites only"
            )
        done += ready
        waiting = [suite for suite in waiting if suite not in ready]
    return done


def members_of(name: str, suites: Sequence[SuiteConfig]) -> list[str]:
    """A suite's name, and those of all suites and benchmarks that it holds; of a benchmark, its own."""
    by_name, found = {suite.name: suite for suite in suites}, [name]
    # The list grows while it is walked, so that suites within suites are reached.
    for one in found:
        if one in by_name:
            found += [member for task in by_name[one].tasks for member in task if member not in found]
    return found


def score_suites(
    suites: Sequence[SuiteConfig], rows: Sequence[ScoreRow], items: Mapping[str, ItemValues] | None = None
) -> list[ScoreRow]:
    """The rows of the suites, in the order in which the suites are given. `items`: of benchmarks that are formats of one task."""
    known = {row["name"]: row for row in rows}
    for suite in ordered(suites):
        known[suite.name] = score_suite(suite, known, items or {})
    return [known[suite.name] for suite in suites]


def formats_of_tasks(suites: Sequence[SuiteConfig]) -> set[str]:
    """Benchmarks of which the best counts."""
    return {name for suite in suites for task in suite.tasks if len(task) > 1 for name in task}


def excess_of(task: Sequence[str], best: ScoreRow, items: Mapping[str, ItemValues]) -> float:
    """What choosing the best format of a task adds; 0 where there was nothing to choose, or items are not at hand."""
    if len(task) < 2 or not all(name in items for name in task):
        return 0.0
    return choice_excess([items[name] for name in task], best["lower_is_better"])


def score_suite(suite: SuiteConfig, by_name: Mapping[str, ScoreRow], items: Mapping[str, ItemValues]) -> ScoreRow:
    """Best format of each task, then the mean; the error is that of the chosen formats. `corrected` is the same mean without
    what choosing the best formats adds to it (`best_format.py`)."""
    lower = {by_name[name]["lower_is_better"] for task in suite.tasks for name in task}
    if len(lower) > 1:
        raise ValueError(f"suite {suite.name!r} mixes accuracies with bits per byte, which have no common mean")
    direction = -1 if True in lower else 1
    # For bits per byte the smallest score is the best one.
    chosen = [max((by_name[name] for name in task), key=lambda row: direction * row["score"]) for task in suite.tasks]
    corrected = [
        row.get("corrected", row["score"]) - direction * excess_of(task, row, items)
        for row, task in zip(chosen, suite.tasks, strict=True)
    ]
    estimates = [Estimate(row["score"], row["stderr"], row["n"]) for row in chosen]
    average = macro_average(estimates) if suite.average == "macro" else micro_average(estimates)
    weights = [1.0 if suite.average == "macro" else row["n"] for row in chosen]
    return {
        "name": suite.name,
        "primary": f"{suite.average}_average",
        "score": average.value,
        "corrected": sum(map(mul, corrected, weights)) / sum(weights),
        "stderr": average.stderr,
        "n": average.n,
        "lower_is_better": True in lower,
        "role": "held_out" if any(row.get("role") == "held_out" for row in chosen) else "dev",
        "truncated_prompts": sum(row["truncated_prompts"] for row in chosen),
        "metrics": {},
        "formats": [row["name"] for row in chosen],
    }


def micro_average(estimates: Sequence[Estimate]) -> Estimate:
    """Mean over all items of independent estimates."""
    total = sum(estimate.n for estimate in estimates)
    value = sum(estimate.value * estimate.n for estimate in estimates) / total
    # Errors weigh by items, as the values do.
    stderr = sqrt(sum((estimate.stderr * estimate.n) ** 2 for estimate in estimates)) / total
    return Estimate(value, stderr, total)


def over_groups(row: ScoreRow, items: Sequence[Item], scored: Sequence[ItemScore]) -> ScoreRow:
    """The row with the mean over groups (subjects, types) as its score, and every group's own mean."""
    by_group: dict[str, list[ItemScore]] = {}
    for item, score in zip(items, scored, strict=True):
        by_group.setdefault(item.data["group"], []).append(score)
    metrics: dict[str, MetricValue] = {}
    for metric in row.get("metrics", {}):
        means = [estimate_mean([score.metrics[metric] for score in group]) for group in by_group.values()]
        average = macro_average(means)
        metrics[metric] = {"value": average.value, "stderr": average.stderr}
    primary = row["primary"]
    groups: dict[str, GroupMean] = {
        name: {"score": sum(score.metrics[primary] for score in group) / len(group), "n": len(group)}
        for name, group in sorted(by_group.items())
    }
    return {
        **row,
        "score": metrics[primary]["value"],
        "stderr": metrics[primary]["stderr"],
        "metrics": metrics,
        "groups": groups,
    }
