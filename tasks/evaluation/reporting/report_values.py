"""What the report says of models and data, as plain values: from artifacts and records to what `report.json` holds.

The page draws these values and computes none, so page and JSON cannot disagree. Scores are shares from 0 to 1,
sizes are bytes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypedDict

from infra.json_values import JsonObject
from infra.records.artifact import Artifact
from infra.records.footprint import Footprint
from infra.records.record import Record
from tasks.artifacts import (
    PERPLEXITY,
    TASK,
    Checkpoint,
    Documents,
    LimitHistogram,
    RankingTable,
    ReadCounts,
    Scores,
)
from tasks.evaluation.comparing.comparison import Comparison
from tasks.evaluation.comparing.paired import Comparer, Gain
from tasks.evaluation.reporting.compared import ComparisonValues
from tasks.evaluation.scoring.suites import ScoreRow

SOUP = "soup"
"""Stage that averages checkpoints; the checkpoints it was made from are its ingredients."""


@dataclass(frozen=True)
class Bounds:
    """From how many standard errors on a difference is called likely, and clear."""

    likely_from: float
    clear_from: float


@dataclass(frozen=True)
class ReportedBenchmark:
    """A benchmark and its primary metric: a share from 0 to 1, or bits per byte where lower is better."""

    name: str
    metric: str
    n: int
    lower_is_better: bool


@dataclass(frozen=True)
class ReportedDifference:
    """One comparison. `ratio` is difference / stderr, None where no error is known."""

    start: str
    end: str
    benchmark: str
    difference: float
    stderr: float
    ratio: float | None
    verdict: str
    low: float
    high: float
    """The interval that holds the true difference at 95 %."""
    n: int
    """Items that both answered; 0 where none are kept and the errors were taken as independent."""
    discordant: int
    """Items that the two scored differently."""


@dataclass(frozen=True)
class SoupRow:
    """The soup next to its ingredients on one benchmark; `gain` compares it with the ingredients' mean."""

    benchmark: str
    soup: float
    soup_stderr: float
    ingredients: dict[str, float]
    ingredient_stderr: dict[str, float]
    gain: ReportedDifference
    each: list[ReportedDifference]
    """Against every ingredient by itself."""
    best: str
    """The ingredient with the best score."""


@dataclass(frozen=True)
class FunnelStep:
    """One curation step: what it kept, and what it dropped per reason. No documents came in: `bytes_in` is None."""

    label: str
    id: str
    stage: str
    inputs: list[str]
    """Labels of the steps whose documents came in."""
    documents: int
    bytes: int
    bytes_in: int | None
    dropped: dict[str, int]
    sources: dict[str, int]
    histograms: list[LimitHistogram]
    """Per limit of a rule: how its score is distributed over kept and dropped documents."""
    reading: ReadCounts | None = None
    """Of a source: files and rows listed, read, unusable by reason and kept."""


class Headline(TypedDict):
    """The figures of a whole run."""

    parameters: int
    ranks: int
    tokens: int
    flops: float
    seconds: float
    peak_memory_bytes: int
    energy_joules: float | None
    """Of the stages whose energy was counted or stated; None where it was of none."""
    footprint: Footprint
    """CO2 and water of that energy, where the site was stated."""
    stages: int
    final: tuple[str, str]
    """Address and id of the last checkpoint."""


class ScoredModel(TypedDict):
    """A model's scores by benchmark, with their errors."""

    label: str
    stage: str
    id: str
    primary: dict[str, float]
    stderr: dict[str, float]


class ScoreFigures(TypedDict):
    """What the report says of scores; lists are of the dataclasses above, or of their JSON values once they are written."""

    benchmarks: list[Any]
    scores: list[ScoredModel]
    changes: list[Any]
    soup: list[Any]
    gains: dict[str, Gain]


class MixShares(TypedDict):
    """What a mix is made of."""

    label: str
    tokens: int
    shares: dict[str, float]


class ReportValues(ScoreFigures):
    """What `report.json` holds and the page draws. Dataclasses stand in it as JSON objects of their fields once it is written."""

    recipe: str
    bounds: Any
    headline: Headline
    looks: dict[str, int]
    """Looks at held-out scores, by benchmark."""
    ranking: RankingTable | None
    curves: list[Any]
    conformance: list[dict[str, str]]
    comparison: ComparisonValues | None
    preferences: Mapping[str, object] | None
    """Facts of the artifact, as of the reward model."""
    reward: Mapping[str, object] | None
    funnel: list[Any]
    mixes: list[MixShares]
    costs: list[Any]
    lineage: list[Any]
    versions: Any


@dataclass(frozen=True)
class Curve:
    """The logged metrics of one training stage at (at most some hundreds of) its logged steps."""

    label: str
    stage: str
    id: str
    from_scratch: bool
    steps: list[int]
    series: dict[str, list[float]]
    in_loop: dict[str, tuple[list[int], list[float]]]
    """Steps and values of what was evaluated while training, by metric."""


def judge_difference(
    difference: float, stderr: float, bounds: Bounds, lower_is_better: bool = False
) -> tuple[float | None, str]:
    """(difference / stderr, plain words). Without an error on either side there is nothing to judge by."""
    if difference == 0:
        return (0.0 if stderr > 0 else None), "no change"
    # Without an error on either side there is no scale for a difference.
    if stderr <= 0:
        return None, "no error known"
    ratio = difference / stderr
    if abs(ratio) < bounds.likely_from:
        return ratio, "within noise"
    strength = "clear" if abs(ratio) >= bounds.clear_from else "likely"
    return ratio, f"{strength} {'gain' if (ratio > 0) != lower_is_better else 'loss'}"


def match_scores(checkpoints: Sequence[tuple[str, Checkpoint]], scores: Sequence[Scores]) -> dict[str, Scores]:
    """Scores by label, in the order of the checkpoints. ValueError for scores of another checkpoint, or given twice."""
    digests = {label: checkpoint.digest for label, checkpoint in checkpoints}
    found: dict[str, Scores] = {}
    for score in scores:
        if digests.get(score.label) != score.checkpoint:
            raise ValueError(
                f"scores {score.label!r} are of checkpoint {score.checkpoint[:12]}, but the report has "
                + (f"{score.label!r} = {digests[score.label][:12]}" if score.label in digests else "no such label")
                + f"; its checkpoints are {', '.join(digests)}: label scores as their checkpoints"
            )
        if score.label in found:
            raise ValueError(f"two scores are labelled {score.label!r}; give each checkpoint's scores once")
        found[score.label] = score
    return {label: found[label] for label in digests if label in found}


def benchmarks_of(tables: Iterable[Sequence[ScoreRow]]) -> dict[str, ReportedBenchmark]:
    """Every benchmark by name, in order of first appearance, from the rows of each `scores.json`."""
    found: dict[str, ReportedBenchmark] = {}
    for rows in tables:
        for row in rows:
            found.setdefault(
                row["name"], ReportedBenchmark(row["name"], row["primary"], row["n"], row["lower_is_better"])
            )
    return found


def ingredients_of(records: dict[str, Record]) -> tuple[str, list[str]]:
    """(label of the soup, labels of its ingredients) among labelled records; empty when there is no soup."""
    for label, record in records.items():
        if record.stage == SOUP:
            parents = {item.id for item in record.inputs}
            # An ingredient is a labelled checkpoint that went into the soup.
            return label, [other for other, parent in records.items() if parent.id in parents]
    return "", []


def step_changes(
    main_line: Sequence[str],
    scores: dict[str, Scores],
    benchmarks: dict[str, ReportedBenchmark],
    bounds: Bounds,
    compared: Comparer,
) -> list[ReportedDifference]:
    """Every benchmark's difference between neighbours on the main line (base, soup, sft, ...)."""
    changes = []
    for start, end in pairwise([label for label in main_line if label in scores]):
        before, after = scores[start], scores[end]
        for name in after.primary:
            if name in before.primary:
                changes.append(_difference(start, end, benchmarks[name], compared([before], after, name), bounds))
    return changes


def soup_rows(
    soup: str,
    ingredients: Sequence[str],
    scores: dict[str, Scores],
    benchmarks: dict[str, ReportedBenchmark],
    bounds: Bounds,
    compared: Comparer,
) -> list[SoupRow]:
    """The soup against the mean of its ingredients, each of them, and the best one, on the items that all answered."""
    parts = [label for label in ingredients if label in scores]
    if soup not in scores or not parts:
        return []
    rows = []
    for name, value in scores[soup].primary.items():
        # Held-out benchmarks are asked of the soup alone.
        if any(name not in scores[label].primary for label in parts):
            continue
        values = {label: scores[label].primary[name] for label in parts}
        errors = {label: scores[label].stderr[name] for label in parts}
        whole = compared([scores[label] for label in parts], scores[soup], name)
        gain = _difference("ingredients' mean", soup, benchmarks[name], whole, bounds)
        each = [
            _difference(label, soup, benchmarks[name], compared([scores[label]], scores[soup], name), bounds)
            for label in parts
        ]
        sign = -1 if benchmarks[name].lower_is_better else 1
        best = max(parts, key=lambda label: sign * values[label])
        rows.append(SoupRow(name, value, scores[soup].stderr[name], values, errors, gain, each, best))
    return rows


def funnel_step(
    label: str,
    documents: Documents,
    record: Record,
    ancestors: dict[str, Record],
    labels: dict[str, str],
    histograms: list[LimitHistogram],
    reading: ReadCounts | None,
) -> FunnelStep:
    """One step's account; bytes that came in are those of its input documents. `labels` names steps by address."""
    # Only documents bring bytes; a classifier's input has none.
    before = [ancestors[item.address].facts["bytes"] for item in record.inputs if item.kind == Documents.__name__]
    return FunnelStep(
        label=label,
        id=documents.id,
        stage=documents.stage,
        inputs=[labels[item.address] for item in record.inputs if item.address in labels],
        documents=documents.documents,
        bytes=documents.bytes,
        bytes_in=sum(before) if before else None,
        dropped=dict(sorted(documents.dropped.items(), key=lambda item: (-item[1], item[0]))),
        sources=documents.sources,
        histograms=histograms,
        reading=reading,
    )


def curve(label: str, artifact: Artifact, rows: Iterable[JsonObject], parent: str, points: int) -> Curve | None:
    """Every k-th logged row, k the smallest that keeps at most `points`, and the last. None when none was logged.

    Rows of the steps between, which have what is recorded of every step and no learning rate, are left out.
    """
    logged = [row for row in rows if "lr" in row]
    if not logged:
        return None
    stride = max(1, math.ceil(len(logged) / points))
    kept = logged[::stride]
    if kept[-1] is not logged[-1]:
        # The last row replaces the one before it where there is no room for both.
        kept = [*kept[:-1], logged[-1]] if len(kept) >= points else [*kept, logged[-1]]
    names = [name for name in logged[-1] if name != "step"]
    series = {
        name: [float(f"{row[name]:.6g}") for row in kept]
        for name in names
        if all(isinstance(row.get(name), int | float) for row in kept)
    }
    steps = [int(row["step"]) for row in kept]
    evaluated = sorted({name for row in logged for name in row if name.startswith((PERPLEXITY, TASK))})
    in_loop = {
        name: ([int(row["step"]) for row in having], [float(f"{row[name]:.6g}") for row in having])
        for name in evaluated
        if (having := [row for row in logged if name in row])
    }
    return Curve(label, artifact.stage, artifact.id, not parent, steps, series, in_loop)


def _difference(
    start: str, end: str, benchmark: ReportedBenchmark, found: Comparison, bounds: Bounds
) -> ReportedDifference:
    ratio, verdict = judge_difference(found.difference, found.stderr, bounds, benchmark.lower_is_better)
    low, high = found.interval
    return ReportedDifference(
        start, end, benchmark.name, found.difference, found.stderr, ratio, verdict, low, high, found.n, found.discordant
    )
