"""The report's panels about data: the funnel, the scores that decided, the mixes."""

from tasks.evaluation.reporting import figures
from tasks.evaluation.reporting.canvas import SOURCE_COLOURS
from tasks.evaluation.reporting.histogram import Histogram, score_histogram
from tasks.evaluation.reporting.report_values import ReportValues
from tasks.evaluation.reporting.sankey import FlowStep, sankey
from tasks.evaluation.reporting.words import count, size


def source_colours(report: ReportValues) -> dict[str, str]:
    """Colour name of every source of the mixes, in order of appearance."""
    sources = dict.fromkeys(source for mix in report["mixes"] for source in mix["shares"])
    return {source: SOURCE_COLOURS[index % len(SOURCE_COLOURS)] for index, source in enumerate(sources)}


def funnel_panels(report: ReportValues) -> list[tuple[str, str]]:
    """What each curation step kept and dropped, in documents and in bytes."""
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


def mix_panels(report: ReportValues) -> list[tuple[str, str]]:
    """What every mix is made of."""
    if not report["mixes"]:
        return []
    colours = source_colours(report)
    rows = [(mix["label"], mix["shares"]) for mix in report["mixes"]]
    return [("Mixes", figures.shares("Share of each source in every mix", rows, colours))]


def histogram_panels(report: ReportValues) -> list[tuple[str, str]]:
    """How every score that decided was distributed, with its limits."""
    panels = []
    for step in report["funnel"]:
        for row in step["histograms"]:
            title = f"{step['label']}: {row['rule']}" + ("" if row["label"] == row["rule"] else f", {row['label']}")
            limits = [limit for limit in (row["least"], row["most"]) if limit is not None and limit > 0]
            scores = Histogram(row["edges"], row["kept"], row["dropped"], limits)
            panels.append((title, score_histogram(f"Documents by score, {title}", scores, row["label"])))
    return panels
