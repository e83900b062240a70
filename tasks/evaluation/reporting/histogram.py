"""The report's distribution of a score: documents per bin, kept and dropped, with the limits drawn.

Bins are equally wide on the page whatever the scale they were cut by (even, powers of ten or of two); a limit stands where it
falls between the edges of its bin. Counts are drawn by their square root, so that few dropped documents next to many kept
ones are seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tasks.evaluation.reporting.canvas import light, panel, quiet, to_svg, write_text


@dataclass(frozen=True)
class Histogram:
    """Documents per bin; `edges` has one more entry than the counts."""

    edges: Sequence[float]
    kept: Sequence[int]
    dropped: Sequence[int]
    limits: Sequence[float]


def score_histogram(title: str, scores: Histogram, unit: str) -> str:
    """Bars of kept documents with the dropped ones on top, and a line at each limit."""
    first, last = shown_bins(scores)
    figure, axes = panel(150, left=42, bottom=36, right=24, top=22)
    places = range(first, last)
    kept = [scores.kept[place] ** 0.5 for place in places]
    # Square roots: 10 dropped documents next to 100,000 kept ones are seen.
    tops = [(scores.kept[place] + scores.dropped[place]) ** 0.5 for place in places]
    axes.bar(places, kept, width=0.92, align="edge", color=light("data"))
    axes.bar(
        places, [top - low for top, low in zip(tops, kept, strict=True)], bottom=kept, width=0.92, align="edge",
        color=light("dpo"), alpha=0.7,
    )  # fmt: skip
    reach = max([*tops, 1e-9])
    for limit in scores.limits:
        place = position(limit, scores.edges)
        axes.plot([place, place], [0, reach * 1.04], color=light("ink"), linewidth=1.2, dashes=(3, 2))
        write_text(axes, place, reach * 1.11, f"{limit:g}", "ink", ha="center", size=10)
    axes.set_xlim(first, last)
    axes.set_ylim(0, reach * 1.06)
    quiet(axes, y_axis=True)
    marks = sorted({0.0, reach / 2, reach})
    axes.set_yticks(marks, labels=[f"{mark**2:,.0f}" for mark in marks])
    ticks = [first + round(step * (last - first) / 4) for step in range(5)]
    axes.set_xticks(ticks, labels=[short_number(scores.edges[tick]) for tick in ticks])
    axes.set_xlabel(unit, color=light("muted"), fontsize=10)
    return to_svg(figure, title)


def shown_bins(scores: Histogram) -> tuple[int, int]:
    """First bin and the one past the last that hold documents or a limit."""
    held = [
        place for place, (kept, dropped) in enumerate(zip(scores.kept, scores.dropped, strict=True)) if kept or dropped
    ]
    held += [min(len(scores.kept) - 1, int(position(limit, scores.edges))) for limit in scores.limits]
    return min(held, default=0), max(held, default=len(scores.kept) - 1) + 1


def position(value: float, edges: Sequence[float]) -> float:
    """Where a value stands among bins of equal width: bin number and share of the bin. Outside it is the nearest edge."""
    # The first edge above the value closes its bin.
    for place, (low, high) in enumerate(pairwise(edges)):
        if value < high:
            return place + max(0.0, value - low) / (high - low)
    return float(len(edges) - 1)


def short_number(value: float) -> str:
    """Two digits, or the whole number from a hundred on."""
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"
