"""The surface that the report's figures are drawn on: size, palette, quiet axes, and matplotlib's SVG made inline.

A panel is as wide as a phone's card (310 SVG units, one unit is one CSS pixel there), so that its text stays
readable; the page puts panels side by side where there is room. Colours are the light scheme's, then each is
replaced by its CSS variable, so one drawing serves both schemes. Text stays text: searchable, in the page's font.
Nothing depends on the clock or on the machine: same values, same bytes. matplotlib is imported when first used.
"""

import io
import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 310.0
"""Panel width in SVG units."""
FONT = 11.0
"""Text size in SVG units."""

COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#22262b", "#e6e3dc"),
    "muted": ("#6c7075", "#9a9b9c"),
    "rule": ("#dcd8d0", "#3a3d42"),
    "band": ("#eeebe4", "#2a2d31"),
    "paper": ("#fbfaf7", "#17191c"),
    "card": ("#fffefc", "#1e2125"),
    "data": ("#717a52", "#a8b184"),
    "source2": ("#8a7654", "#c9b48e"),
    "source3": ("#5f717a", "#9fb2bc"),
    "source4": ("#86706f", "#c7adab"),
    "source5": ("#5b6d5f", "#9cb3a1"),
    "source6": ("#77728a", "#b5b0c8"),
    "base": ("#4a5f86", "#93a9d3"),
    "anneal": ("#7fb0a7", "#5d958b"),
    "soup": ("#1d776b", "#5fc0b1"),
    "sft": ("#b27a1c", "#dfae59"),
    "dpo": ("#b4533b", "#e58d75"),
    "reward": ("#a3708e", "#c795b3"),
    "rlvr": ("#77396a", "#c98bbd"),
}
"""Name to (light, dark) colour: neutrals, then one hue per stage, used wherever that stage appears."""

SOURCE_COLOURS = ("data", "source2", "source3", "source4", "source5", "source6")
"""Earth tones for data sources, apart from the stages' hues; the seventh source starts over."""


def panel(height: float, *, left: float, bottom: float, right: float = 8, top: float = 6) -> tuple["Figure", "Axes"]:
    """A figure of this height with one set of axes, margins given, all in SVG units."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="none")
    # The canvas without pyplot, which would keep every figure in a global list.
    FigureCanvasSVG(figure)
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    return figure, figure.add_axes(box, facecolor="none")


def quiet(axes: "Axes", *, y_axis: bool) -> None:
    """Axes that stay behind the data: no frame, hair-thin grid, muted tick labels."""
    from matplotlib.ticker import MaxNLocator

    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=10, labelcolor=light("muted"), pad=4)
    axes.set_axisbelow(True)
    axes.grid(axis="y" if y_axis else "x", color=light("rule"), linewidth=0.7)
    (axes.yaxis if y_axis else axes.xaxis).set_major_locator(MaxNLocator(5))
    if not y_axis:
        axes.set_yticks([])


def write_text(axes: "Axes", x: float, y: float, text: str, colour: str, ha: str = "left", size: float = FONT) -> None:
    """Text in data coordinates."""
    axes.text(x, y, text, color=light(colour), ha=ha, va="center_baseline", fontsize=size, parse_math=False)


def short(label: str) -> str:
    """A label that fits next to a panel."""
    return label if len(label) <= 20 else label[:19] + "…"


def light(name: str) -> str:
    """The light scheme's colour of a name in the palette."""
    return COLOURS[name][0]


def to_svg(figure: "Figure", title: str) -> str:
    """The figure as an `<svg>` that takes width, font and colours from the page and says what it shows."""
    import matplotlib

    raw = io.BytesIO()
    # A fixed salt: element ids, and with them the bytes, are equal in equal reports.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(
            raw, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = raw.getvalue().decode()
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Only ids that something refers to are kept.
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match.group(0) if match.group(1) in used else "", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"font: (?:(bold|700) )?([\d.]+)px [^;\"]*", r"font-size: \2px; font-weight: \1", text)
    # Each colour becomes its variable, so that one drawing serves light and dark.
    for name, (light, _) in COLOURS.items():
        text = text.replace(light, f"var(--{name})")
    box = f"0 0 {WIDTH:g} {figure.get_figheight() * 72:g}"
    head = f'<svg viewBox="{box}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    text = re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
    return re.sub(r"\s*\n\s*", " ", text).replace("xlink:href", "href").strip()
