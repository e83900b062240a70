"""The report's figures, each a function from values to an inline `<svg>` element, drawn with matplotlib on `canvas`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.evaluation.reporting.canvas import FONT, WIDTH, light, panel, quiet, short, to_svg, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_LOG_SPAN = 30
"""Curves of unlike trainings that span more than this factor are drawn on a log axis."""


@dataclass(frozen=True)
class Point:
    """One value with its standard error, in the axis's unit; `label` is written at its side."""

    value: float
    stderr: float
    colour: str
    label: str = ""
    strong: bool = True


@dataclass(frozen=True)
class CurveLine:
    """One curve: y against step, drawn faint as logged and firm as a moving average."""

    steps: Sequence[float]
    values: Sequence[float]
    colour: str


def bars(title: str, rows: Sequence[tuple[str, Point]]) -> str:
    """Horizontal bars from zero with error bars, first row on top. Values and errors in percent points."""
    figure, axes = panel(len(rows) * 24 + 8, left=_label_width(row[0] for row in rows), bottom=2)
    reach = max([point.value + point.stderr for _, point in rows] + [1e-6])
    for row, (label, point) in enumerate(rows):
        axes.barh(row, point.value, height=0.62, color=light(point.colour))
        if point.stderr > 0:
            axes.errorbar(point.value, row, xerr=point.stderr, color=light("ink"), elinewidth=1.1, capsize=2.6)
        write_text(axes, point.value + point.stderr + reach * 0.03, row, point.label, "ink")
        write_text(axes, -reach * 0.03, row, short(label), "ink", ha="right")
    # Reversed: the first row stands on top.
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, reach * 1.55)
    axes.plot([0, 0], [-0.5, len(rows) - 0.5], color=light("muted"), linewidth=0.8)
    axes.set_axis_off()
    return to_svg(figure, title)


def dots(title: str, rows: Sequence[tuple[str, Sequence[Point]]], unit: str, zero: bool = False) -> str:
    """Per row any number of points on one axis, strong ones with error bars; `zero` draws a line there."""
    figure, axes = panel(len(rows) * 28 + 44, left=_label_width(row[0] for row in rows), bottom=36)
    points = [point for _, row in rows for point in row]
    low = min(point.value - point.stderr for point in points)
    high = max(point.value + point.stderr for point in points)
    # 1e-9: a panel of equal values still needs an axis of some length.
    pad = 0.08 * (high - low) + 1e-9
    if zero:
        axes.axvline(0, color=light("muted"), linewidth=0.9, zorder=0)
    for row, (label, marks) in enumerate(rows):
        axes.axhline(row, color=light("rule"), linewidth=0.8, zorder=0)
        for point in sorted(marks, key=lambda mark: mark.strong):
            if point.strong and point.stderr > 0:
                axes.errorbar(point.value, row, xerr=point.stderr, color=light(point.colour), elinewidth=1.6)
            axes.plot(point.value, row, "D" if point.strong else "o", color=light(point.colour), markersize=6.0)
        axes.annotate(
            short(label),
            (0, row),
            xycoords=("axes fraction", "data"),
            xytext=(-8, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=light("ink"),
            fontsize=FONT,
            parse_math=False,
        )
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(low - pad, high + pad)
    quiet(axes, y_axis=False)
    axes.set_xlabel(unit, color=light("muted"), fontsize=10)
    return to_svg(figure, title)


def curves(
    title: str, lines: Sequence[CurveLine], *, unit: str, rate: CurveLine | None = None, log_steps: bool = False
) -> str:
    """Curves over steps; with `rate` the learning rate is drawn as a strip under them on the same steps."""
    strip = 30 if rate else 0
    figure, axes = panel(180 + strip, left=42, bottom=36 + strip + (14 if rate else 0), right=50, top=22)
    for line in lines:
        colour = light(line.colour)
        axes.plot(line.steps, line.values, color=colour, linewidth=0.8, alpha=0.4)
        axes.plot(line.steps, _smooth(line.values), color=colour, linewidth=1.9, solid_capstyle="round")
    ends = [_smooth(line.values)[-1] for line in lines]
    for line, end in zip(lines, ends, strict=True):
        axes.plot(line.steps[-1], end, "o", color=light(line.colour), markersize=4.5, clip_on=False)
    mean = sum(ends) / len(ends)
    figure_of_end = f"{mean:.3g}" if abs(mean) >= 0.01 else f"{mean:.1g}"
    axes.annotate(
        figure_of_end.replace("-", "−") + ("" if len(lines) == 1 else "\naverage"),
        (1, mean),
        xycoords=("axes fraction", "data"),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        color=light(lines[0].colour),
        fontsize=FONT if len(lines) == 1 else 10,
        parse_math=False,
    )
    axes.text(0, 1.05, unit, transform=axes.transAxes, color=light("muted"), fontsize=10, parse_math=False)
    quiet(axes, y_axis=True)
    lowest = axes
    if rate:
        lowest = _rate_strip(figure, axes, rate, strip)
        axes.tick_params(labelbottom=False)
    _step_axis(lowest, axes, lines, log_steps)
    return to_svg(figure, title)


def together(title: str, lines: dict[str, CurveLine], *, unit: str) -> str:
    """Curves of unlike trainings on one pair of axes, as logged, each named in its colour above."""
    names = 15 * len(lines)
    figure, axes = panel(180 + names, left=42, bottom=36, right=14, top=22 + names)
    for place, (label, line) in enumerate(lines.items()):
        axes.plot(line.steps, line.values, color=light(line.colour), linewidth=0.9, alpha=0.85)
        axes.annotate(
            label, (0, 1), xycoords="axes fraction", xytext=(0, 18 + 15 * (len(lines) - 1 - place)),
            textcoords="offset points", color=light(line.colour), fontsize=FONT, parse_math=False,
        )  # fmt: skip
    values = [value for line in lines.values() for value in line.values]
    if min(values) > 0 and max(values) > _LOG_SPAN * min(values):
        axes.set_yscale("log")
    axes.text(0, 1.03, unit, transform=axes.transAxes, color=light("muted"), fontsize=10, parse_math=False)
    if axes.get_yscale() == "linear":
        quiet(axes, y_axis=True)
    else:
        axes.spines[:].set_visible(False)
    _step_axis(axes, axes, list(lines.values()), log_steps=False)
    return to_svg(figure, title)


def funnel(title: str, steps: Sequence[tuple[str, float, float, str, str]]) -> str:
    """Bars of what came into each step: rows (label, kept, removed, text of kept, text of removed)."""
    figure, axes = panel(len(steps) * 42 + 8, left=2, bottom=4, top=4, right=2)
    reach = max([kept + removed for _, kept, removed, _, _ in steps] + [1e-9])
    for row, (label, kept, removed, kept_text, removed_text) in enumerate(steps):
        axes.barh(row + 0.22, kept, height=0.34, color=light("data"))
        axes.barh(row + 0.22, removed, left=kept, height=0.34, color=light("dpo"), alpha=0.55)
        write_text(axes, 0, row - 0.18, label, "ink")
        axes.annotate(
            kept_text, (1, row - 0.18), xycoords=("axes fraction", "data"), ha="right", va="center",
            color=light("ink"), fontsize=FONT, parse_math=False,
        )  # fmt: skip
        if removed_text:
            write_text(axes, reach * 0.5, row - 0.18, removed_text, "dpo", ha="center", size=10)
    axes.set_xlim(0, reach)
    axes.set_ylim(len(steps) - 0.5, -0.45)
    axes.set_axis_off()
    return to_svg(figure, title)


def shares(title: str, rows: Sequence[tuple[str, dict[str, float]]], colours: dict[str, str]) -> str:
    """One bar per mix, cut by the share of each source; a cut is labelled where its name and share fit."""
    figure, axes = panel(len(rows) * 46 + 6, left=2, bottom=2, top=4, right=2)
    for row, (label, parts) in enumerate(rows):
        write_text(axes, 0, row - 0.24, label, "ink")
        start = 0.0
        for source, share in parts.items():
            axes.barh(row + 0.2, share, left=start, height=0.44, color=light(colours[source]), linewidth=1.5,
                      edgecolor=light("card"))  # fmt: skip
            text = f"{source} {share:.0%}"
            # A text wider than its cut would cover its neighbours.
            if share * WIDTH > len(text) * 6.4 + 6:
                write_text(axes, start + share / 2, row + 0.2, text, "card", ha="center")
            start += share
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_axis_off()
    return to_svg(figure, title)


def _rate_strip(figure: "Figure", axes: "Axes", rate: CurveLine, height: float) -> "Axes":
    box = axes.get_position()
    total = figure.get_figheight() * 72
    strip = figure.add_axes((box.x0, 36 / total, box.width, height / total), sharex=axes)
    strip.fill_between(rate.steps, rate.values, color=light("band"), linewidth=0)
    strip.plot(rate.steps, rate.values, color=light("muted"), linewidth=1.0)
    top = max(rate.values) or 1.0
    strip.set_ylim(0, top * 1.1)
    quiet(strip, y_axis=True)
    strip.set_yticks([top], labels=[f"{top:.1e}".replace(".0e", "e").replace("e-0", "e-")])
    strip.grid(False)
    strip.annotate(
        "learning\nrate",
        (1, 0.5),
        xycoords="axes fraction",
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=light("muted"),
        fontsize=9.5,
    )
    return strip


def _step_axis(lowest: "Axes", axes: "Axes", lines: Sequence[CurveLine], log_steps: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    first = min(step for line in lines for step in line.steps)
    last = max(step for line in lines for step in line.steps)
    if log_steps:
        axes.set_xscale("log")
        lowest.xaxis.set_major_locator(LogLocator(subs=(1.0,) if last > 200 * max(first, 1) else (1.0, 2.0, 5.0)))
        lowest.xaxis.set_minor_locator(NullLocator())
    else:
        lowest.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlim(first, max(last, first + 1))
    lowest.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    lowest.set_xlabel("step (log scale)" if log_steps else "step", color=light("muted"), fontsize=10)


def _smooth(values: Sequence[float]) -> list[float]:
    """Centred moving average over about a twentieth of the curve, without lag where it begins."""
    reach = len(values) // 40 + (len(values) > 10)
    out = []
    for index in range(len(values)):
        # Narrower at the ends, so that the average has no lag where the curve begins.
        side = min(reach, index)
        window = values[index - side : index + side + 1]
        out.append(sum(window) / len(window))
    return out


def _label_width(labels: Iterable[str]) -> float:
    return 14 + 6.3 * max((len(short(label)) for label in labels), default=0)
