"""The report stage: what a run made, how well it does, what each step brought and what it cost, on one page.

`report.html` is one self-contained file (styles and figures inline, nothing fetched); `report.json` holds the
same figures. Everything comes from artifacts and their records: no clock, no host, no folder is looked at.
Differences are judged by the standard error of the differences item by item (`comparing/paired.py`), where both sides kept
the items that both answered; else by that of two independent scores. The paper prints no errors; they are ours.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import Field

from infra.records.artifact import Artifact
from infra.records.footprint import footprint
from infra.records.looks import read_looks
from infra.records.record import Record
from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import (
    METRICS,
    Checkpoint,
    Documents,
    LimitHistogram,
    Mix,
    Preferences,
    Ranking,
    RankingTable,
    ReadCounts,
    Report,
    RewardModel,
    Scores,
)
from tasks.evaluation.comparing.paired import comparer
from tasks.evaluation.reporting import costs as report_costs
from tasks.evaluation.reporting import gains as report_gains
from tasks.evaluation.reporting import report_values as numbers
from tasks.evaluation.reporting.compared import ComparisonValues, compared_run
from tasks.evaluation.reporting.page import render_page

HISTOGRAMS = "histograms.json"
_READING = "collect.json"


class ComparedConfig(Config):
    """What the checkpoints are drawn side by side for, when a report is of a comparison."""

    title: str
    """What is compared."""
    paper: str = ""
    """What the paper found."""
    window: int = Field(ge=2)
    """Steps before a value that it is judged against."""
    mixes: dict[str, str] = Field(default_factory=dict)
    """Label of the mix that each checkpoint read, where their vocabularies differ: bits per byte are drawn then."""


class ConformanceRow(Config):
    """One value of the recipe next to the paper's and the released code's, in words."""

    topic: str
    """What it is."""
    paper: str
    """What the paper says; a dash where it does not."""
    code: str
    """What the released code says; a dash likewise."""
    ours: str
    """What the recipe says."""
    verdict: str
    """Which of both it is."""
    why: str
    """Reason of the choice where they disagree."""


class ReportConfig(Config):
    """How the report names things, and when it calls a difference real."""

    recipe: str
    """Name of the recipe, the page's title."""
    checkpoint_labels: list[str] = Field(min_length=1)
    """Name of every checkpoint, in the order given: base, ingredients, soup, sft, dpo, instruct. Scores are named alike."""
    funnel_labels: list[str] = Field(default_factory=list)
    """Name of every curation step, in the order given."""
    mix_labels: list[str] = Field(default_factory=list)
    """Name of every mix, in the order given."""
    likely_stderrs: float = Field(default=2.0, gt=0)
    """Below this many standard errors a difference is called noise (about 1 in 20 by chance)."""
    clear_stderrs: float = Field(default=3.0, gt=0)
    """From this many standard errors on a difference is called clear (about 1 in 370 by chance)."""
    curve_points: int = Field(default=400, ge=2)
    """Most logged steps shown per curve."""
    conformance: tuple[ConformanceRow, ...] = ()
    """The recipe's values next to the published ones, for a model of a published size."""
    compared: ComparedConfig | None = None
    """The comparison that the checkpoints are variants of, if they are."""


def write_report(
    ws: Workspace,
    funnel: list[Documents],
    mixes: list[Mix],
    checkpoints: list[Checkpoint],
    single: list[RewardModel | Preferences | Ranking],
    scores: list[Scores],
    trial: list[Scores],
    config: ReportConfig,
) -> Report:
    """Write `report.html` and `report.json`. What is empty has no section. `single` has
    at most one of each kind. `trial`: scores of a small model on unfiltered
    and on filtered text, or none.

    ValueError when labels and artifacts do not fit together, or scores belong to another checkpoint.
    """
    # Refused before anything is drawn: a label on the wrong artifact would mislead silently.
    steps = _labelled("funnel_labels", config.funnel_labels, funnel)
    step_labels = {item.address: label for label, item in steps}
    named_mixes = _labelled("mix_labels", config.mix_labels, mixes)
    named = _labelled("checkpoint_labels", config.checkpoint_labels, checkpoints)
    reward, preferences = _only(RewardModel, single), _only(Preferences, single)
    ranking = _only(Ranking, single)
    ancestors = _ancestors(ws, [*funnel, *mixes, *checkpoints, *single, *scores, *trial])
    records = list(ancestors.values())
    order = list(ancestors)
    # In the order in which they were made, not in which they were given.
    trained = sorted(
        named + ([("reward model", reward)] if reward else []), key=lambda item: order.index(item[1].address)
    )
    bounds = numbers.Bounds(config.likely_stderrs, config.clear_stderrs)
    cost = report_costs.costs(records)
    ranks: RankingTable | None = ws.read_json(ranking, "ranking.json") if ranking else None
    figures: numbers.ReportValues = {
        "recipe": config.recipe,
        "bounds": bounds,
        "headline": _headline(checkpoints, records, cost),
        **_score_figures(ws, named, scores, bounds, ranked_by=ranks["metric"] if ranks else ""),
        "looks": _looks(ws, scores),
        "ranking": ranks,
        "curves": _curves(ws, trained, config.curve_points),
        "conformance": [row.model_dump() for row in config.conformance],
        "comparison": _comparison(ws, named, dict(named_mixes), config.compared, config.curve_points),
        "preferences": preferences.facts() if preferences else None,
        "reward": reward.facts() if reward and reward.pairs_held_out else None,
        "funnel": [
            numbers.funnel_step(
                label, item, ws.record(item), ancestors, step_labels, _histograms(ws, item), _reading(ws, item)
            )
            for label, item in steps
        ],
        "mixes": [{"label": label, "tokens": mix.tokens, "shares": mix.shares} for label, mix in named_mixes],
        "costs": cost,
        "lineage": [report_costs.node(record) for record in records],
        "versions": report_costs.versions(records),
    }
    figures["gains"] = report_gains.in_order(
        figures["gains"]
        | {
            "curation": report_gains.curation_gain(ws, trial, comparer(ws)),
            "sweep": report_gains.sweep_gain(ranks) if ranks else None,
            "reward": report_gains.reward_gain(reward) if reward else None,
        }
    )
    plain = _plain(figures)
    ws.write_json("report.json", plain)
    ws.write("report.html", render_page(plain).encode())
    return ws.artifact(Report, summary=_summary(plain), gains=plain["gains"])


A = TypeVar("A", bound=Artifact)


def _only(kind: type[A], artifacts: Sequence[Artifact]) -> A | None:
    """The artifact of a kind, if there is one. ValueError if there are several."""
    found = [item for item in artifacts if isinstance(item, kind)]
    if len(found) > 1:
        raise ValueError(f"the report takes one {kind.__name__} and got {len(found)}")
    return found[0] if found else None


def _labelled(field: str, labels: list[str], artifacts: list[Any]) -> list[tuple[str, Any]]:
    if len(labels) != len(artifacts) or len(set(labels)) != len(labels):
        raise ValueError(
            f"report.{field} has {len(labels)} names ({', '.join(labels)}) for {len(artifacts)} artifacts; "
            "give every artifact one name of its own"
        )
    return list(zip(labels, artifacts, strict=True))


def _ancestors(ws: Workspace, artifacts: list[Artifact]) -> dict[str, Record]:
    """Records of all artifacts and all they were made from, by address, inputs before what uses them."""
    found: dict[str, Record] = {}
    for artifact in artifacts:
        # Inputs come first in a lineage, so every parent is known before its child.
        for record in ws.lineage(artifact):
            found.setdefault(record.address, record)
    return found


def _histograms(ws: Workspace, documents: Documents) -> list[LimitHistogram]:
    """The distributions of the scores that decided, where the step has any."""
    return ws.read_json(documents, HISTOGRAMS) if HISTOGRAMS in ws.files(documents) else []


def _reading(ws: Workspace, documents: Documents) -> ReadCounts | None:
    """What a source's files held and what of it was read; None for a step that reads none."""
    return ws.read_json(documents, _READING) if _READING in ws.files(documents) else None


def _headline(
    checkpoints: list[Checkpoint], records: list[Record], cost: list[report_costs.ReportedCost]
) -> numbers.Headline:
    return {
        "parameters": checkpoints[-1].parameters,
        "ranks": checkpoints[-1].ranks,
        "tokens": sum(row.tokens for row in cost),
        "flops": sum(row.flops for row in cost),
        "seconds": sum(row.seconds for row in cost),
        "peak_memory_bytes": max(row.peak_memory_bytes for row in cost),
        "energy_joules": report_costs.energy_of(records),
        "footprint": footprint(records),
        "stages": len(records),
        "final": (checkpoints[-1].address, checkpoints[-1].id),
    }


def _score_figures(
    ws: Workspace,
    named: list[tuple[str, Checkpoint]],
    scores: list[Scores],
    bounds: numbers.Bounds,
    ranked_by: str,
) -> numbers.ScoreFigures:
    """The score table, the change per step of the main line, and the soup next to its ingredients."""
    matched = numbers.match_scores(named, scores)
    soup, ingredients = numbers.ingredients_of({label: ws.record(checkpoint) for label, checkpoint in named})
    main_line = [label for label, _ in named if label not in ingredients]
    stages = {label: checkpoint.stage for label, checkpoint in named}
    rows: list[numbers.ScoredModel] = [
        {
            "label": label,
            "stage": stages[label],
            "id": score.id,
            "primary": score.primary,
            "stderr": score.stderr,
        }
        for label, score in matched.items()
    ]
    tables = [ws.read_json(score, "scores.json")["benchmarks"] for score in matched.values()]
    benchmarks = numbers.benchmarks_of(tables)
    compared = comparer(ws)
    return {
        "benchmarks": list(benchmarks.values()),
        "scores": rows,
        "changes": numbers.step_changes(main_line, matched, benchmarks, bounds, compared),
        "soup": numbers.soup_rows(soup, ingredients, matched, benchmarks, bounds, compared),
        "gains": report_gains.stage_gains(
            main_line, stages, ingredients, matched, benchmarks, compared, ranked_by=ranked_by
        ),
    }


def _looks(ws: Workspace, scores: list[Scores]) -> dict[str, int]:
    """How often held-out scores of these evaluations had been looked at when the report was made, by benchmark."""
    found = Counter(
        name for score in scores for look in read_looks(ws.store, score.address) for name in look.benchmarks
    )
    return dict(sorted(found.items()))


def _curves(ws: Workspace, named: list[tuple[str, Any]], points: int) -> list[numbers.Curve]:
    """Curves of everything that was trained and logged; a soup has none."""
    found = []
    for label, artifact in named:
        # A soup and an adopted checkpoint have no log.
        if METRICS in ws.files(artifact):
            rows = ws.read_jsonl(artifact, METRICS)
            found.append(numbers.curve(label, artifact, rows, artifact.parent, points))
    return [curve for curve in found if curve is not None]


def _comparison(
    ws: Workspace,
    named: list[tuple[str, Checkpoint]],
    mixes: dict[str, Mix],
    config: ComparedConfig | None,
    points: int,
) -> ComparisonValues | None:
    """Every variant's loss and gradient norm over the steps, with its spike scores; None without a comparison."""
    if config is None:
        return None
    runs = []
    for label, item in named:
        mix = mixes.get(config.mixes.get(label, ""))
        size = mix.bytes / mix.tokens if mix else None
        runs.append(compared_run(label, ws.read_jsonl(item, METRICS), config.window, points, size))
    return {"title": config.title, "paper": config.paper, "window": config.window, "runs": runs}


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and dicts as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _summary(plain: numbers.ReportValues) -> dict[str, float]:
    """The few figures that the artifact itself carries."""
    totals = {name: float(plain["headline"][name]) for name in ("parameters", "tokens", "flops", "seconds")}
    # The last score is that of the final model.
    final = plain["scores"][-1] if plain["scores"] else {"primary": {}}
    return totals | {f"score/{name}": value for name, value in final["primary"].items()}


report = stage(write_report, name="report", version=11)
