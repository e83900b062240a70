"""Figures of the diagnosis: panels, inks, and files whose bytes depend on nothing but the values."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOG_SPAN = 30
"""Curves that span more than this factor are drawn on a log axis: a sum of losses next to a mean, or a spike."""
INKS = ("#4a5f86", "#b4533b", "#1d776b", "#b27a1c", "#77396a", "#717a52")
SHADES = ("#b9c9e6", "#22344f")
"""First and last of a row of things in order, such as layers."""


def panels(count: int) -> "tuple[Figure, list[Axes]]":
    """A figure with so many panels side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * count, 3.6), layout="constrained")
    # Without pyplot, which keeps every figure open and picks a backend by the display.
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, count, place + 1) for place in range(count)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def inks(count: int) -> list[str]:
    """Colours of unlike things."""
    return [INKS[place % len(INKS)] for place in range(count)]


def shades(count: int) -> list[str]:
    """Colours of things in order, light to dark."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    scale = LinearSegmentedColormap.from_list("shades", SHADES)
    return [to_hex(scale(place / max(1, count - 1))) for place in range(count)]


def fit_scale(axis: "Axes", values: Sequence[float]) -> None:
    """A log axis where positive values span more than `_LOG_SPAN`."""
    if values and min(values) > 0 and max(values) > _LOG_SPAN * min(values):
        axis.set_yscale("log")


def legend(axis: "Axes", columns: int = 1) -> None:
    """Names of the lines, small and without a frame."""
    axis.legend(frameon=False, fontsize=8, ncols=columns)


def write_figure(figure: "Figure", out: Path, name: str, values: Mapping[str, object]) -> list[str]:
    """`<name>.json` with the values, `.png` and `.svg` in a folder; returns their paths."""
    import matplotlib
    from matplotlib.text import Text

    # Names of runs, sources and tasks are no formulas, whatever dollar signs they hold.
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_bytes(orjson.dumps(values, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    figure.savefig(out / f"{name}.png", dpi=150)
    # Without salt and date, equal values would give different bytes.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    return [str(out / f"{name}.{end}") for end in ("json", "png", "svg")]
