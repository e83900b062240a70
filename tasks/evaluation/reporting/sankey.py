"""The report's flow of text through curation: bands as wide as their bytes, with what every step removed leaving them.

A step is drawn where its inputs have arrived: sources in rows, steps in columns from left to right. What comes in and
is kept goes on; what is removed bends away below and ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.evaluation.reporting.canvas import SOURCE_COLOURS, WIDTH, light, panel, to_svg, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NODE = 7.0
"""Width of a step's bar, in SVG units."""
GAP = 40.0
"""Between the bands of one column: room for two short texts."""
_BAND = 160.0
"""Height of all the bytes that came in."""
HEAD = 18.0
STUB = 24.0
"""How far a removed band is followed."""


@dataclass(frozen=True)
class FlowStep:
    """A step: its name, its column's heading, the steps it takes from, bytes in and kept, and the texts next to it."""

    label: str
    column: str
    inputs: Sequence[str]
    taken: float
    kept: float
    text: str
    removed_text: str


@dataclass(frozen=True)
class Placed:
    """Where a step's bar stands: left edge, top, heights of what comes in and of what goes on."""

    step: FlowStep
    x: float
    top: float
    taken: float
    kept: float
    colour: str


def sankey(title: str, steps: Sequence[FlowStep]) -> str:
    """The flow as SVG. Steps come after their inputs; those without inputs start a row each."""
    depths = depths_of(steps)
    placed = place(steps, depths)
    height = max(item.top + max(item.taken, item.kept) for item in placed.values()) + STUB + 14
    figure, axes = panel(height, left=0, bottom=0, right=0, top=0)
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    headings = {depth: step.column for step, depth in zip(steps, depths.values(), strict=True)}
    for depth, heading in headings.items():
        write_text(axes, _column(depth, max(depths.values())), 7, heading, "muted", size=10)
    for item in placed.values():
        arrival = item.top
        for name in item.step.inputs:
            giver = placed[name]
            _band(axes, (giver.x + NODE, giver.top), (item.x, arrival), giver.kept, giver.colour, 0.35)
            arrival += giver.kept
    for item in placed.values():
        _node(axes, item)
    return to_svg(figure, title)


def depths_of(steps: Sequence[FlowStep]) -> dict[str, int]:
    """Column of every step: one more than its furthest input's."""
    depths: dict[str, int] = {}
    for step in steps:
        # Inputs come before what takes them, so their columns are known.
        depths[step.label] = 1 + max((depths[name] for name in step.inputs), default=-1)
    return depths


def place(steps: Sequence[FlowStep], depths: dict[str, int]) -> dict[str, Placed]:
    """Bars of all steps: a step of one input lies next to it, one of several where the first of them is."""
    # The widths are shares of all bytes that the sources brought.
    scale = _BAND / max(1e-9, sum(step.taken for step in steps if not step.inputs))
    placed: dict[str, Placed] = {}
    free = HEAD + 16
    for number, step in enumerate(steps):
        if step.inputs:
            givers = [placed[name] for name in step.inputs]
            top, colour = min(giver.top for giver in givers), givers[0].colour if len(givers) == 1 else "data"
        else:
            top, colour = free, SOURCE_COLOURS[number % len(SOURCE_COLOURS)]
            free += max(2.0, step.taken * scale) + GAP
        taken = max(1.0, step.taken * scale)
        x = _column(depths[step.label], max(depths.values()))
        placed[step.label] = Placed(step, x, top, taken, max(0.5, step.kept * scale), colour)
    return placed


def _column(depth: int, last: int) -> float:
    """Left edge of a column; the last one leaves room for its text."""
    return 1 + depth * (WIDTH - 84) / max(1, last)


def _node(axes: "Axes", item: Placed) -> None:
    from matplotlib.patches import Rectangle

    removed = item.taken - item.kept
    axes.add_patch(Rectangle((item.x, item.top), NODE, item.kept, color=light(item.colour), linewidth=0))
    write_text(axes, item.x, item.top - 8, item.step.text, "ink", size=9.5)
    if removed > 0.2:
        start = item.top + item.kept
        axes.add_patch(Rectangle((item.x, start), NODE, removed, color=light("dpo"), linewidth=0))
        left = item.x + NODE
        _band(axes, (left, start), (left + STUB, start + STUB), removed, "dpo", 0.45, end=0.35)
    if item.step.removed_text:
        low = item.top + max(item.taken, item.kept)
        write_text(axes, item.x, low + 9, item.step.removed_text, "dpo", size=9.5)


def _band(
    axes: "Axes",
    start: tuple[float, float],
    to: tuple[float, float],
    height: float,
    colour: str,
    alpha: float,
    end: float = 1.0,
) -> None:
    """A band of one height from one edge, at (x, top), to another, horizontal at both; it thins to `end` of its height."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    (x, top), (to_x, to_top) = start, to
    middle = (x + to_x) / 2
    bottom, to_bottom = top + height, to_top + height * end
    points = [(x, top), (middle, top), (middle, to_top), (to_x, to_top), (to_x, to_bottom), (middle, to_bottom),
              (middle, bottom), (x, bottom), (x, top)]  # fmt: skip
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    axes.add_patch(PathPatch(Path(points, codes), facecolor=light(colour), alpha=alpha, linewidth=0))
