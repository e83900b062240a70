"""Trainings that differ in one thing, drawn on the same axes: loss and gradient norm with their spike scores (RECIPE D).

Of a long run the extremes of each piece are drawn, so that no spike is lost.
"""

from collections.abc import Iterable
from itertools import pairwise
from math import log
from typing import TypedDict

import numpy as np

from infra.json_values import JsonObject
from model.training.measuring.diagnostics import spike_score
from tasks.evaluation.reporting.figures import CurveLine, together
from tasks.evaluation.reporting.words import fine

_COMPARED = {
    "loss": "training loss",
    "bits_per_byte": "training loss in bits per byte",
    "grad_norm": "gradient norm before clipping",
}
"""Metrics that are drawn, with what they are; bits per byte in the place of the loss where vocabularies differ."""
_COLOURS = ("base", "dpo", "soup", "sft", "rlvr", "data")
"""Of the variants, in their order; the seventh starts over."""
LAST = 0.2
"""Part of a run at its end whose mean and median stand for it."""


class ComparedRun(TypedDict):
    """Values of one training of a comparison."""

    label: str
    steps: int
    judged: int
    """Values that have enough before them to be judged."""
    spikes: dict[str, float]
    """Spike scores in percent."""
    token_bytes: float | None
    last_loss: float
    """Mean over the last fifth."""
    last_grad_norm: float
    """Median over the last fifth."""
    series: dict[str, tuple[list[int], list[float]]]
    """Steps and values as they are drawn, by metric."""


class ComparisonValues(TypedDict):
    """A comparison: its runs, and what they are judged by."""

    title: str
    paper: str
    window: int
    runs: list[ComparedRun]


def compared_run(
    label: str, rows: Iterable[JsonObject], window: int, points: int, token_bytes: float | None = None
) -> ComparedRun:
    """Values of one training: its spike scores in percent, its last fifth, and what is drawn of it. With the mean bytes of a
    token, cross-entropies become bits per byte of text, which do not depend on the vocabulary.
    """
    drawn = {"loss": ("loss", 1.0), "grad_norm": ("grad_norm", 1.0)}
    if token_bytes is not None:
        drawn = {"bits_per_byte": ("ce", 1 / (log(2) * token_bytes)), "grad_norm": ("grad_norm", 1.0)}
    series: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in drawn}
    for row in rows:
        for name, (metric, factor) in drawn.items():
            if metric in row:
                series[name][0].append(int(row["step"]))
                series[name][1].append(float(row[metric]) * factor)
    lossy, norms = next(iter(drawn)), series["grad_norm"][1]
    losses = series[lossy][1]
    last = max(1, int(LAST * len(losses)))
    return {
        "label": label,
        "steps": len(losses),
        "judged": max(0, len(norms) - window),
        "spikes": {"loss": spike_score(losses, window), "grad_norm": spike_score(norms, window)},
        "token_bytes": token_bytes,
        "last_loss": float(np.mean(losses[-last:])),
        "last_grad_norm": float(np.median(norms[-last:])),
        "series": {name: extremes(steps, values, points) for name, (steps, values) in series.items()},
    }


def extremes(steps: list[int], values: list[float], points: int) -> tuple[list[int], list[float]]:
    """At most so many points: all of them, or the lowest and the highest of each of as many pieces as make them."""
    if len(values) <= points:
        return steps, values
    numbers = np.asarray(values)
    # Half as many pieces as points: each gives its lowest and its highest.
    edges = np.linspace(0, len(values), points // 2 + 1).astype(int)
    places: set[int] = set()
    for start, end in pairwise(edges.tolist()):
        places |= {start + int(np.argmin(numbers[start:end])), start + int(np.argmax(numbers[start:end]))}
    ordered = sorted(places)
    return [steps[place] for place in ordered], [values[place] for place in ordered]


def comparison_panels(comparison: ComparisonValues | None) -> list[tuple[str, str]]:
    """A panel per metric with a curve of every variant."""
    if comparison is None:
        return []
    panels = []
    for metric, unit in _COMPARED.items():
        if metric not in comparison["runs"][0]["series"]:
            continue
        lines = {}
        for place, run in enumerate(comparison["runs"]):
            steps, values = run["series"][metric]
            lines[run["label"]] = CurveLine(steps, values, _COLOURS[place % len(_COLOURS)])
        judged = "grad_norm" if metric == "grad_norm" else "loss"
        said = ", ".join(f"{run['label']} {fine(run['spikes'][judged])} % spikes" for run in comparison["runs"])
        panels.append((unit, together(f"{comparison['title']}: {unit} over steps; {said}", lines, unit=unit)))
    return panels
