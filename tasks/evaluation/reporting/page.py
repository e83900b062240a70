"""The report's page: plain values (`report.json`) in, one self-contained HTML page out.

Numbers are written for people (`report_words`) here and nowhere else: thousands separated, with units, errors next to values.
"""

from dataclasses import replace
from pathlib import Path

from tasks.artifacts import PERPLEXITY, TASK, RankingTable
from tasks.evaluation.benchmarks import LOWER_IS_BETTER
from tasks.evaluation.comparing.paired import Gain
from tasks.evaluation.reporting import figures
from tasks.evaluation.reporting.canvas import COLOURS
from tasks.evaluation.reporting.compared import comparison_panels
from tasks.evaluation.reporting.data_panels import funnel_panels, histogram_panels, mix_panels, source_colours
from tasks.evaluation.reporting.figures import CurveLine, Point
from tasks.evaluation.reporting.report_values import Curve, ReportValues
from tasks.evaluation.reporting.words import (
    Measured,
    amount,
    count,
    day,
    duration,
    energy,
    fine,
    footprint_words,
    mass,
    memory,
    points,
    power,
    scale_of,
    score_words,
    signed,
    size,
    unit_of,
    volume,
)  # fmt: skip

TEMPLATE = "report.html.j2"

STAGE_COLOURS = {
    "pretrain": "base",
    "anneal": "anneal",
    "soup": "soup",
    "sft": "sft",
    "preferences": "dpo",
    "dpo": "dpo",
    "reward": "reward",
    "rlvr": "rlvr",
    "ppo": "rlvr",
}
"""Stage to colour name; stages that are not named here make data or measure."""

_CURVES = {
    "accuracy": "share of pairs with the chosen answer ahead",
    "margin": "margin between chosen and rejected",
    "score": "mean reward of sampled answers",
    "correct": "share of sampled answers that are correct",
    "kl": "KL to the reference, nats per token",
    "rollout_kl": "KL of a rollout to the reference, nats per token",
    "kl_coefficient": "coefficient of the KL",
    "entropy": "entropy of sampled tokens, nats",
    "clip_share": "share of tokens whose ratio is clipped",
    "answer_tokens": "tokens per answer",
    "longest_answer_tokens": "tokens of the longest answer",
    "finished": "share of answers with an end of their own",
    "truncated": "share of answers cut off",
    "hedged": "share of answers with several final answers",
    "zero_std_groups": "share of prompts whose answers all score the same",
    "value_loss": "loss of the value model",
}
"""Logged metrics that get a panel next to the loss, with what they are."""

BY_VERIFIER = "correct/"
"""How the metric of one verifier's answers begins; its name follows."""

TRIED = "try "
"""How the label of a candidate's mix begins; the candidate's name follows."""

_LOG_SPAN = 30
"""A curve from an initialisation is drawn over log steps when its last step is this many times its first."""


def render_page(report: ReportValues) -> str:
    """The page for the values of `report.json`. Equal values give equal bytes."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        # A page that lacks a value is an error, not a gap.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=count, amount=amount, size=size, memory=memory, seconds=duration, power=power, energy=energy, day=day,
        mass=mass, volume=volume, footprint_words=footprint_words,
        score=score_words, points=points, signed=signed, fine=fine,
        dictvalues=lambda table: list(table.values()),
    )  # fmt: skip
    pictures = {
        "scores": _score_panels(report),
        "soup": _soup_panel(report),
        "ranking": _ranking_panel(report),
        "losses": _loss_panels(report),
        "comparison": comparison_panels(report["comparison"]),
        "metrics": _metric_panels(report),
        "data": funnel_panels(report) + mix_panels(report),
        "histograms": histogram_panels(report),
    }
    page = environment.get_template(TEMPLATE)
    return page.render(
        r=report,
        pictures=pictures,
        palette=COLOURS,
        stage_colour=stage_colour,
        ranked=ranked_benchmark(report["ranking"]) if report["ranking"] else None,
        tried=tried_mixes(report) if report["ranking"] else "",
        gains=gain_rows(report),
        source_colours=source_colours(report),
    )


def gain_rows(report: ReportValues) -> list[tuple[str, Gain, float]]:
    """(step, gain, what it is multiplied by for people); a soup's comparisons with its ingredients stand below it."""
    rows: list[tuple[str, Gain, float]] = []
    for step, gain in report["gains"].items():
        # Shares are told in percent points, bits per byte as they are.
        in_bits = gain.get("metric") in LOWER_IS_BETTER
        unit = 1.0 if in_bits else 100.0
        rows.append((step, gain, unit))
        further = {"over_mean": "the ingredients’ mean", "over_best": "the best ingredient"}
        rows += [(f"{step} over {words}", gain[name], unit) for name, words in further.items() if name in gain]
    return rows


def stage_colour(stage: str) -> str:
    """Colour name of a stage."""
    return STAGE_COLOURS.get(stage, "data")


# -- pictures --------------------------------------------------------------------------------------------


def _score_panels(report: ReportValues) -> list[tuple[str, str]]:
    panels = []
    for benchmark in report["benchmarks"]:
        name, scale = benchmark["name"], scale_of(benchmark)[0]
        rows = []
        for row in report["scores"]:
            if name in row["primary"]:
                value, error = row["primary"][name], row["stderr"][name]
                text = f"{score_words(value, benchmark)} ± {score_words(error, benchmark)}"
                rows.append((row["label"], Point(scale * value, scale * error, stage_colour(row["stage"]), text)))
        said = ", ".join(f"{label} {point.label}" for label, point in rows)
        title = f"{name}, {unit_of(benchmark)}, with one standard error: {said}"
        panels.append((name, figures.bars(title, rows)))
    return panels


def _soup_panel(report: ReportValues) -> str:
    in_percent = {item["name"] for item in report["benchmarks"] if not item["lower_is_better"]}
    rows = []
    for row in report["soup"]:
        if row["benchmark"] in in_percent:
            gain = row["gain"]
            mean = row["soup"] - gain["difference"]
            others = row["ingredients"].values()
            marks = [Point(100 * (value - mean), 0.0, "anneal", strong=False) for value in others]
            soup = Point(100 * gain["difference"], 100 * gain["stderr"], "soup")
            rows.append((row["benchmark"], [*marks, soup]))
    title = "Soup (diamond, with the error of its difference) and ingredients (dots) against their mean"
    return figures.dots(title, rows, "points from the ingredients’ mean", zero=True) if rows else ""


def ranked_benchmark(ranking: RankingTable) -> Measured:
    """What the sweep was ranked by. The order tells the direction: the best comes first."""
    first, last = ranking["candidates"][0], ranking["candidates"][-1]
    return {
        "name": ranking["benchmark"],
        "metric": ranking["metric"],
        # Best first: where the last has more, less is better.
        "lower_is_better": first["score"] < last["score"],
    }


def tried_mixes(report: ReportValues) -> str:
    """What the candidates were annealed on, from the shares that their mixes really have."""
    shares = {
        mix["label"].removeprefix(TRIED): mix["shares"] for mix in report["mixes"] if mix["label"].startswith(TRIED)
    }
    said: dict[str, list[str]] = {}
    for row in report["ranking"]["candidates"] if report["ranking"] else ():
        if row["candidate"] in shares:
            words = {source: f"{100 * share:.1f} %" for source, share in shares[row["candidate"]].items()}
            own = words.pop(row["candidate"], "0.0 %")
            others = " and ".join(f"{share} {source}" for source, share in words.items())
            said.setdefault(f"{own} candidate and {others}", []).append(row["candidate"])
    if len(said) == 1:
        return f"on a mix of {next(iter(said))}"
    listed = "; ".join(f"{', '.join(names)}: {mix}" for mix, names in said.items())
    return "on a mix of its own" + (f" ({listed})" if listed else "")


def _ranking_panel(report: ReportValues) -> str:
    if not report["ranking"]:
        return ""
    benchmark = ranked_benchmark(report["ranking"])
    scale = scale_of(benchmark)[0]
    rows = []
    for row in report["ranking"]["candidates"]:
        colour = "soup" if row["rank"] == 1 else "anneal"
        rows.append((row["candidate"], [Point(scale * row["score"], scale * row["stderr"], colour)]))
    title = f"Candidates of the sweep by {benchmark['name']}, best first, with one standard error"
    return figures.dots(title, rows, unit_of(benchmark))


def _groups(report: ReportValues) -> list[list[Curve]]:
    """Curves by stage: the runs of one stage share a panel."""
    groups: dict[str, list[Curve]] = {}
    for fields in report["curves"]:
        groups.setdefault(fields["stage"], []).append(Curve(**fields))
    return list(groups.values())


def _panel(group: list[Curve], metric: str, unit: str) -> tuple[str, str]:
    first = group[0]
    colour = stage_colour(first.stage)
    lines = [CurveLine(curve.steps, curve.series[metric], colour) for curve in group]
    rate = CurveLine(first.steps, first.series["lr"], "muted") if "lr" in first.series else None
    span = first.steps[-1] / max(1, first.steps[0])
    # From an initialisation most of the fall lies in the first steps, which a log axis shows.
    logarithmic = first.from_scratch and first.steps[0] > 0 and span >= _LOG_SPAN
    name = first.label if len(group) == 1 else f"{first.stage} × {len(group)}"
    ends = ", ".join(f"{curve.label} {fine(curve.series[metric][-1])}" for curve in group)
    title = f"{unit} over steps, {name}; at the last step: {ends}"
    return name, figures.curves(title, lines, unit=unit, rate=rate if metric == "loss" else None, log_steps=logarithmic)


def _loss_panels(report: ReportValues) -> list[tuple[str, str]]:
    with_loss = [[curve for curve in group if "loss" in curve.series] for group in _groups(report)]
    return [_panel(group, "loss", "loss") for group in with_loss if group]


def _metric_panels(report: ReportValues) -> list[tuple[str, str]]:
    panels = []
    for group in _groups(report):
        for metric, unit in _CURVES.items():
            having = [curve for curve in group if metric in curve.series]
            if having:
                panels.append(_panel(having, metric, unit))
        for metric in sorted({name for curve in group for name in curve.series if name.startswith(BY_VERIFIER)}):
            having = [curve for curve in group if metric in curve.series]
            panels.append(_panel(having, metric, f"share correct, {metric.removeprefix(BY_VERIFIER)}"))
        for metric in sorted({name for curve in group for name in curve.in_loop}):
            having = [_evaluated(curve, metric) for curve in group if metric in curve.in_loop]
            source, benchmark = metric.removeprefix(PERPLEXITY), metric.removeprefix(TASK)
            unit = f"score on {benchmark}" if metric.startswith(TASK) else f"perplexity of held-out {source}"
            panels.append(_panel(having, metric, unit))
    return panels


def _evaluated(curve: Curve, metric: str) -> Curve:
    """The curve of something that was measured at steps of its own."""
    steps, values = curve.in_loop[metric]
    return replace(curve, steps=steps, series={metric: values})
