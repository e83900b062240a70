"""The report's page: plain values (`report.json`) in, one self-contained HTML page out.

Numbers are written for people here and nowhere else: thousands separated, with units, errors beside values.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.evaluation import figures
from tasks.evaluation.canvas import COLOURS, SOURCE_COLOURS
from tasks.evaluation.figures import Line, Point
from tasks.evaluation.sankey import FlowStep, sankey

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
}
"""Stage to colour name; stages that are not named here make data or measure."""

CURVES = {
    "accuracy": "share of pairs with the chosen answer ahead",
    "margin": "margin between chosen and rejected",
    "score": "mean reward of sampled answers",
    "correct": "share of sampled answers that are correct",
    "kl": "KL to the reference, nats per token",
    "answer_tokens": "tokens per answer",
}
"""Logged metrics that get a panel beside the loss, with what they are."""

LOG_SPAN = 30
"""A curve from an initialisation is drawn over log steps when its last step is this many times its first."""

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def render_page(report: dict[str, Any]) -> str:
    """The page for the values of `report.json`. Equal values give equal bytes."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=count, amount=amount, size=size, memory=memory, seconds=duration, power=power, day=day,
        score=score, points=points, signed=signed, fine=fine,
        dictvalues=lambda table: list(table.values()),
    )  # fmt: skip
    pictures = {
        "scores": _score_panels(report),
        "soup": _soup_panel(report),
        "ranking": _ranking_panel(report),
        "losses": _loss_panels(report),
        "metrics": _metric_panels(report),
        "data": _funnel_panels(report) + _mix_panels(report),
    }
    page = environment.get_template(TEMPLATE)
    return page.render(
        r=report,
        pictures=pictures,
        palette=COLOURS,
        stage_colour=stage_colour,
        ranked=ranked_benchmark(report) if report["ranking"] else None,
        source_colours=source_colours(report),
    )


def stage_colour(stage: str) -> str:
    """Colour name of a stage."""
    return STAGE_COLOURS.get(stage, "data")


def source_colours(report: dict[str, Any]) -> dict[str, str]:
    """Colour name of every source of the mixes, in order of appearance."""
    sources = dict.fromkeys(source for mix in report["mixes"] for source in mix["shares"])
    return {source: SOURCE_COLOURS[index % len(SOURCE_COLOURS)] for index, source in enumerate(sources)}


# -- numbers for people ----------------------------------------------------------------------------------


def count(value: float) -> str:
    """12345 -> 12,345"""
    return f"{value:,.0f}"


def amount(value: float) -> str:
    """3421000 -> 3.42 M; below ten thousand in full."""
    if abs(value) < 10_000:
        return count(value)
    return _scaled(value, 1000, ("", " k", " M", " B", " T"))


def size(value: float) -> str:
    """Bytes in decimal units: 31200000 -> 31.2 MB."""
    return _scaled(value, 1000, (" B", " kB", " MB", " GB", " TB", " PB"))


def memory(value: float) -> str:
    """Bytes in binary units: 2147483648 -> 2.00 GiB."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def duration(value: float) -> str:
    """Seconds in the two largest fitting units: 492 -> 8 min 12 s."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def power(value: float) -> str:
    """1.234e14 -> 1.23 × 10¹⁴; zero is a dash."""
    if value == 0:
        return "–"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def day(value: str) -> str:
    """ISO time to minutes: 2025-11-22T00:14:09+00:00 -> 2025-11-22 00:14"""
    return value[:16].replace("T", " ")


def score(value: float, benchmark: dict[str, Any]) -> str:
    """A share in percent, bits per byte as they are: 41.0 or 2.714"""
    scale, digits = _scale(benchmark)
    return f"{scale * value:.{digits}f}"


def points(value: float, benchmark: dict[str, Any]) -> str:
    """A difference of two scores in the same unit, signed: +37.9"""
    scale, digits = _scale(benchmark)
    return signed(scale * value, digits)


def signed(value: float, digits: int = 1) -> str:
    """With a true minus sign; never a signed zero."""
    text = f"{value:+.{digits}f}"
    return (text[1:] if float(text) == 0 else text).replace("-", "−")


def fine(value: float) -> str:
    """A plain number to four significant digits."""
    return f"{value:.4g}".replace("-", "−")


def _scale(benchmark: dict[str, Any]) -> tuple[float, int]:
    return (1.0, 3) if benchmark["lower_is_better"] else (100.0, 1)


def _unit(benchmark: dict[str, Any]) -> str:
    return f"{benchmark['metric']}, lower is better" if benchmark["lower_is_better"] else "percent"


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    index = 0
    # Rounding may not carry a number to four digits before the point.
    while abs(value) >= base * 0.9995 and index < len(units) - 1:
        value, index = value / base, index + 1
    digits = 0 if index == 0 else 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:,.{digits}f}{units[index]}"


# -- pictures --------------------------------------------------------------------------------------------


def _score_panels(report: dict[str, Any]) -> list[tuple[str, str]]:
    panels = []
    for benchmark in report["benchmarks"]:
        name, scale = benchmark["name"], _scale(benchmark)[0]
        rows = []
        for row in report["scores"]:
            if name in row["primary"]:
                value, error = row["primary"][name], row["stderr"][name]
                text = f"{score(value, benchmark)} ± {score(error, benchmark)}"
                rows.append((row["label"], Point(scale * value, scale * error, stage_colour(row["stage"]), text)))
        said = ", ".join(f"{label} {point.label}" for label, point in rows)
        title = f"{name}, {_unit(benchmark)}, with one standard error: {said}"
        panels.append((name, figures.bars(title, rows)))
    return panels


def _soup_panel(report: dict[str, Any]) -> str:
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


def ranked_benchmark(report: dict[str, Any]) -> dict[str, Any]:
    """What the sweep was ranked by. The order tells the direction: the best comes first."""
    ranking = report["ranking"]
    first, last = ranking["candidates"][0], ranking["candidates"][-1]
    return {
        "name": ranking["benchmark"],
        "metric": ranking["metric"],
        "lower_is_better": first["score"] < last["score"],
    }


def _ranking_panel(report: dict[str, Any]) -> str:
    if not report["ranking"]:
        return ""
    benchmark = ranked_benchmark(report)
    scale = _scale(benchmark)[0]
    rows = []
    for row in report["ranking"]["candidates"]:
        colour = "soup" if row["rank"] == 1 else "anneal"
        rows.append((row["candidate"], [Point(scale * row["score"], scale * row["stderr"], colour)]))
    title = f"Candidates of the sweep by {benchmark['name']}, best first, with one standard error"
    return figures.dots(title, rows, _unit(benchmark))


def _groups(report: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Curves by stage: the runs of one stage share a panel."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for curve in report["curves"]:
        groups.setdefault(curve["stage"], []).append(curve)
    return list(groups.values())


def _panel(group: list[dict[str, Any]], metric: str, unit: str) -> tuple[str, str]:
    colour = stage_colour(group[0]["stage"])
    lines = [Line(curve["steps"], curve["series"][metric], colour) for curve in group]
    first = group[0]
    rate = Line(first["steps"], first["series"]["lr"], "muted") if "lr" in first["series"] else None
    span = first["steps"][-1] / max(1, first["steps"][0])
    logarithmic = first["from_scratch"] and first["steps"][0] > 0 and span >= LOG_SPAN
    name = first["label"] if len(group) == 1 else f"{first['stage']} × {len(group)}"
    ends = ", ".join(f"{curve['label']} {fine(curve['series'][metric][-1])}" for curve in group)
    title = f"{unit} over steps, {name}; at the last step: {ends}"
    return name, figures.curves(title, lines, unit=unit, rate=rate if metric == "loss" else None, log_steps=logarithmic)


def _loss_panels(report: dict[str, Any]) -> list[tuple[str, str]]:
    with_loss = [[curve for curve in group if "loss" in curve["series"]] for group in _groups(report)]
    return [_panel(group, "loss", "loss") for group in with_loss if group]


def _metric_panels(report: dict[str, Any]) -> list[tuple[str, str]]:
    panels = []
    for group in _groups(report):
        for metric, unit in CURVES.items():
            having = [curve for curve in group if metric in curve["series"]]
            if having:
                panels.append(_panel(having, metric, unit))
    return panels


def _funnel_panels(report: dict[str, Any]) -> list[tuple[str, str]]:
    if not report["funnel"]:
        return []
    documents, flow = [], []
    for step in report["funnel"]:
        gone = sum(step["dropped"].values())
        text = f"{count(gone)} dropped" if gone else ""
        documents.append((step["label"], step["documents"], gone, count(step["documents"]), text))
        lost = max(0, (step["bytes_in"] or 0) - step["bytes"])
        flow.append(
            FlowStep(
                label=step["label"],
                column=step["stage"],
                inputs=step["inputs"],
                taken=step["bytes_in"] or step["bytes"],
                kept=step["bytes"],
                text=size(step["bytes"])
                if step["inputs"]
                else f"{step['label'].removeprefix('collect ')} {size(step['bytes'])}",
                removed_text=f"−{size(lost)}" if lost else "",
            )
        )
    return [
        ("Documents", figures.funnel("Documents kept and dropped per curation step", documents)),
        ("Text", sankey("Flow of bytes of text through curation, with what each step removed", flow)),
    ]


def _mix_panels(report: dict[str, Any]) -> list[tuple[str, str]]:
    if not report["mixes"]:
        return []
    colours = source_colours(report)
    rows = [(mix["label"], mix["shares"]) for mix in report["mixes"]]
    return [("Mixes", figures.shares("Share of each source in every mix", rows, colours))]
