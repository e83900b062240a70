"""The page of one stage on the dashboard, as Markdown: how it stands, its loss curve, its lineage, and how to go on.

The first line says what is the matter: of a failed stage the cause in words, with the traceback folded below. Everything that
data, models and recipes gave is escaped; pictures are drawn here, from numbers alone.
"""

import base64
import math
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from infra.execution.markdown import code, escaped, slug
from infra.execution.pages import page_address, ways_on
from infra.records.record import Record
from infra.secrets import without_secrets
from infra.storage.store import Store

MOST_POINTS = 2_000
"""Points of a curve that are kept; beyond it every second one goes."""
DRAWN_POINTS = 300
WIDTH, HEIGHT, MARGIN = 640, 200, 44
TRACE_CHARACTERS = 8_000


def page_key(label: str) -> str:
    """The key under which the dashboard keeps the page of a stage."""
    return slug(f"{label}-artifact")


@dataclass
class Curve:
    """A metric over the steps of a training."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        """The next point; one that is not finite is left out."""
        if not math.isfinite(value):
            return
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) > MOST_POINTS:
            # Every second point goes, so that a long training costs the page no more than a short one.
            self.steps, self.values = self.steps[::2], self.values[::2]

    def image(self, name: str) -> str:
        """The curve as a Markdown picture; empty for fewer than two points."""
        if len(self.steps) < 2:
            return ""
        data = base64.b64encode(_draw(self.steps, self.values).encode()).decode()
        return f"![{name} by step](data:image/svg+xml;base64,{data})"


def _draw(steps: Sequence[int], values: Sequence[float]) -> str:
    """A curve as SVG: its range on the left, its first and last step below."""
    stride = math.ceil(len(steps) / DRAWN_POINTS)
    # The last point is always drawn, wherever the stride ends.
    xs, ys = [*steps[::stride], steps[-1]], [*values[::stride], values[-1]]
    low, high = min(ys), max(ys)
    # A flat curve has no height; any divisor other than 0 will do.
    across, up = (WIDTH - MARGIN - 8) / max(1, xs[-1] - xs[0]), (HEIGHT - 40) / ((high - low) or 1.0)
    line = " ".join(
        f"{MARGIN + (x - xs[0]) * across:.1f},{16 + (high - y) * up:.1f}" for x, y in zip(xs, ys, strict=True)
    )
    texts = [(2, 20, f"{high:.4g}"), (2, HEIGHT - 22, f"{low:.4g}"), (MARGIN, HEIGHT - 6, f"step {xs[0]:,}")]
    texts.append((WIDTH - 180, HEIGHT - 6, f"step {xs[-1]:,}: {ys[-1]:.4g}"))
    written = "".join(f'<text x="{x}" y="{y}">{text}</text>' for x, y, text in texts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/><polyline points="{line}" fill="none" stroke="#1565c0" '
        f'stroke-width="1.5"/>{written}</svg>'
    )


@dataclass
class StagePage:
    """What is known of a stage that runs in this run."""

    label: str
    store: Store
    again: str = ""
    """The command that goes on where the run is; empty where a form started it."""
    made_from: list[tuple[str, str]] = field(default_factory=list)
    """(label, id) of its inputs."""
    used_by: list[str] = field(default_factory=list)
    """Labels of the stages of this run that take its artifact."""
    progress: tuple[str, float, float, str] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    loss: Curve = field(default_factory=Curve)
    record: Record | None = None
    error: BaseException | None = None
    stopped: str = ""
    began: float = field(default_factory=time.monotonic)

    def text(self) -> str:
        """The page."""
        parts = [self._first_line(), *self._traceback(), *self._progress(), self.loss.image("loss"), *self._metrics()]
        parts += [*self._facts(), *self._lineage(), *self._ways()]
        return "\n\n".join(part for part in parts if part)

    def _first_line(self) -> str:
        name = escaped(self.label)
        if self.error is not None:
            cause = without_secrets(f"{type(self.error).__name__}: {self.error}")
            return f"**{name} failed: {escaped(cause)}.** Mend the cause and start the same run again: what is done is kept."
        if self.stopped:
            return f"**{name} was stopped.** {escaped(self.stopped)}."
        if self.record is not None:
            return f"**{name} is made:** {code(self.record.address)} in {self.record.seconds:,.1f} s."
        return f"**{name} is running.**"

    def _traceback(self) -> list[str]:
        if self.error is None:
            return []
        # The end of a traceback tells the cause, so the beginning is cut.
        text = without_secrets("".join(traceback.format_exception(self.error)))[-TRACE_CHARACTERS:]
        # One block of HTML: it would end at an empty line.
        lines = "\n".join(escape(line) or "&nbsp;" for line in text.splitlines())
        return [f"<details><summary>Traceback</summary><pre>{lines}</pre></details>"]

    def _progress(self) -> list[str]:
        if self.progress is None or self.record is not None:
            return []
        description, done, total, unit = self.progress
        share = f"{escaped(description)}: {done:,.0f} of {total:,.0f} {escaped(unit)} ({done / total:.0%})"
        seconds = time.monotonic() - self.began
        return [f"{share}, {seconds:,.0f} s since it began"]

    def _metrics(self) -> list[str]:
        if not self.metrics or self.record is not None:
            return []
        rows = [f"| {escaped(name)} | {value:,.5g} |" for name, value in self.metrics.items()]
        return ["\n".join([f"| metric | at step {self.step:,} |", "|---|---|", *rows])]

    def _facts(self) -> list[str]:
        if self.record is None:
            return []
        return ["\n".join(["| fact | value |", "|---|---|", *(fact_row(*fact) for fact in self.record.facts.items())])]

    def _lineage(self) -> list[str]:
        up = ", ".join(self._link(label, id) for label, id in self.made_from) or "no other artifact"
        down = ", ".join(self._link(label) for label in dict.fromkeys(self.used_by))
        return [f"Made from {up}.", f"Used by {down}." if down else ""]

    def _link(self, label: str, id: str = "") -> str:
        served = page_address(self.store, id) if id else ""
        there = f" ([artifact]({served}))" if served else ""
        return f"[{escaped(label)}](/artifacts/key/{page_key(label)}){there}"

    def _ways(self) -> list[str]:
        if self.record is not None:
            return [ways_on(self.store, self.record)]
        command = code(self.again) if self.again else "start the same deployment with the same parameters"
        return [f"Go on from here, now or after it was stopped or failed: {command}"]


def fact_row(name: str, value: Any) -> str:
    """A fact as a row of a Markdown table."""
    text = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return f"| {escaped(name)} | {escaped(text[:200])} |"
