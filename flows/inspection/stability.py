"""Training stability drawn and counted: curves, spikes and norms of runs, growth through the depth at initialisation.

Source: paper section 3.2 (Figures 2 to 10), RECIPE D; the measures are `model/training/measuring/diagnostics.py`. Scores are
of the values in a run's `metrics.jsonl`, which has those of every step; `judged` says how many there were to judge. A run's
figures are `curves` (loss and gradient norm, every run in one), `norms-<id>` (parameters, gradients and updates per
layer) and `in-loop-<id>` (what was evaluated while it trained), the last two where it logged them.
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from flows.config.errors import nearest
from flows.inspection.artifacts import find_record
from flows.inspection.plots import fit_scale, inks, legend, panels, shades, write_figure
from infra.json_values import JsonObject
from infra.records.reader import Reader
from infra.records.record import Record
from infra.storage.store import Store
from model.config import OLMO_0424, ModelConfig, mlp_width
from model.network.transformer import Transformer
from model.training.measuring.diagnostics import (
    MONITOR_STEPS,
    MONITOR_WINDOW,
    growth_exponent,
    monitor_spike_score,
    spike_score,
)
from tasks.artifacts import METRICS, PERPLEXITY, TASK

VARIANTS: dict[str, JsonObject] = {
    "olmo2": {},
    "olmo-0424": OLMO_0424,
    "olmo-0424-normal-init": OLMO_0424 | {"init": "normal"},
    "olmo2-scaled-init": {"init": "scaled"},
    "olmo2-pre-norm": {"norm_placement": "input"},
    "olmo2-no-qk-norm": {"qk_norm": "none"},
}
"""OLMo 2, the paper's baseline, and either with one choice of the other (section 3.2 compares the two inits)."""
HEAD_DIM = 32
_VOCABULARY = 512
DOCUMENTS, DOCUMENT_TOKENS = 50, 64
"""The paper judges growth on 50 random documents; ours are of this many random tokens."""
_SEED = 6198
GROWTH = {
    "activations": "residual stream",
    "contributions": "what a layer adds",
    "gradients": "gradients",
}
NORMS = {
    "param_norm": "norm of parameters",
    "grad_norm": "norm of gradients before clipping",
    "update_norm": "norm of updates",
}
_CURVES = {"loss": "training loss", "grad_norm": "gradient norm before clipping"}
IN_LOOP = {PERPLEXITY: "perplexity of held-out windows", TASK: "score on a task"}
DRAWN = 4000
"""Most points of a curve. Of a longer one the lowest and the highest value of each piece are drawn, so no spike is lost."""
Series = tuple[array, array]
"""Steps and values of one metric: 16 bytes a step, since a long run has a million."""
Drawn = tuple[list[int], list[float]]
"""Steps and values as they are drawn and written next to the figure."""


class Judged(TypedDict):
    """Curves and spike scores of a run."""

    series: dict[str, Series]
    logged: int
    """Steps that it logged."""
    window: int
    judged: int
    """Steps that had a whole window before them."""
    spikes: dict[str, float]
    """Percent of the judged steps, by metric (the paper's definition)."""
    monitor_judged: int
    monitor_spikes: float | None
    """Percent by OLMo-core's monitor; None where it cannot judge."""
    monitor_recent_spikes: float | None


class JudgedRun(Judged):
    """The same with whose it is."""

    id: str
    label: str


class RunDiagnosis(TypedDict):
    """What was found of runs, and the figures that show it."""

    runs: list[JsonObject]
    """As JudgedRun, without the series."""
    curves_files: list[str]
    norms_files: NotRequired[list[str]]
    in_loop_files: NotRequired[list[str]]


class GrowthDiagnosis(TypedDict):
    """What was found of initialisations, and the figures that show it."""

    growth: list[JsonObject]
    """A variant at a width, with its growth exponents."""
    growth_files: list[str]


def diagnose_runs(store: Store, ids: list[str], out: Path, window: int) -> RunDiagnosis:
    """Figures and spike scores of trainings in a folder; returns the scores and the paths.

    Raises ValueError for an artifact without logged metrics.
    """
    records = [find_record(store, id) for id in ids]
    if window < 2:
        raise ValueError(f"--window {window}: a standard deviation needs at least 2 values; the paper's window is 1000")
    logs = [_logged(store, record) for record in records]
    runs: list[JudgedRun] = [
        {"id": record.id, "label": record.label, **judged(logged, window)}
        for record, logged in zip(records, logs, strict=True)
    ]
    found: RunDiagnosis = {"runs": [_without_series(run) for run in runs], "curves_files": draw_curves(runs, out)}
    for run, logged in zip(runs, logs, strict=True):
        details = _draw_details(run, logged, out)
        for name in ("norms_files", "in_loop_files"):
            if name in details:
                found[name] = found.get(name, []) + details[name]
    return found


def _logged(store: Store, record: Record) -> dict[str, Series]:
    if METRICS not in record.files:
        raise ValueError(f"{record.label} {record.id} ({record.kind}) has no {METRICS}; diagnose a trained checkpoint")
    return series_of(Reader(store).read_jsonl(record.artifact(), METRICS))


def series_of(rows: Iterable[dict[str, float]]) -> dict[str, Series]:
    """Steps and values of every metric in rows that have a `step`, in the order in which metrics appear."""
    found: dict[str, Series] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                # 64-bit integers and doubles: lists of Python objects would take eight times the memory.
                steps, values = found.setdefault(name, (array("q"), array("d")))
                steps.append(int(row["step"]))
                values.append(value)
    return found


def judged(logged: dict[str, Series], window: int) -> Judged:
    """Curves and spike scores of what a run logged, by both definitions; OLMo-core's reads the cross-entropy, and the loss
    of a run that has none.
    """
    series = {name: logged.get(name, (array("q"), array("d"))) for name in _CURVES}
    losses, norms = logged.get("ce", series["loss"])[1], series["grad_norm"][1]
    # Two series of unlike length have no common steps to be judged at.
    both = len(losses) == len(norms)
    count = len(series["loss"][0])
    monitor = monitor_spike_score(losses, norms) if both else None
    return {
        "series": series,
        "logged": count,
        "window": window,
        # The first `window` values have nothing before them to be judged by.
        "judged": max(0, count - window),
        "spikes": {name: spike_score(values, window) for name, (_, values) in series.items()},
        "monitor_judged": max(0, count - MONITOR_WINDOW) if both else 0,
        "monitor_spikes": monitor.total if monitor else None,
        "monitor_recent_spikes": monitor.recent if monitor else None,
    }


def _without_series(run: JudgedRun) -> JsonObject:
    return {name: value for name, value in run.items() if name != "series"}


def thinned(series: Series) -> Drawn:
    """What is drawn of a series: all of it, or the extremes of as many pieces as make `DRAWN` points."""
    steps, values = series
    if len(values) <= DRAWN:
        return steps.tolist(), values.tolist()
    numbers = np.asarray(values)
    # Two points of each piece, its lowest and its highest.
    edges = np.linspace(0, len(values), DRAWN // 2 + 1).astype(int)
    places = sorted(
        {
            start + int(extreme(numbers[start:end]))
            for start, end in pairwise(edges)
            for extreme in (np.argmin, np.argmax)
        }
    )
    return [steps[place] for place in places], [values[place] for place in places]


def draw_curves(runs: Sequence[JudgedRun], out: Path, name: str = "curves") -> list[str]:
    """Loss and gradient norm of runs (`judged`, with `label` and `id`), with their spike scores."""
    drawn = [{name: thinned(series) for name, series in run["series"].items()} for run in runs]
    figure, axes = panels(len(_CURVES))
    for axis, (metric, said) in zip(axes, _CURVES.items(), strict=True):
        for run, series, ink in zip(runs, drawn, inks(len(runs)), strict=True):
            steps, values = series[metric]
            if values:
                spikes = f"spikes {run['spikes'][metric]:.3g} %" if run["judged"] else "too short to judge"
                label = f"{run['label']} {run['id'][:8]}: {spikes}"
                axis.plot(steps, values, color=ink, linewidth=0.9, label=label)
        axis.set(xlabel="step", ylabel=said)
        legend(axis)
        fit_scale(axis, [value for series in drawn for value in series[metric][1]])
    return write_figure(
        figure, out, name, {"runs": [{**run, "series": series} for run, series in zip(runs, drawn, strict=True)]}
    )


def _draw_details(run: JudgedRun, logged: dict[str, Series], out: Path) -> dict[str, list[str]]:
    """The figures of one run alone, by the name under which they are reported."""
    short = run["id"][:8]
    details = {}
    for kind, wanted in (("norms", {f"{kind}/": said for kind, said in NORMS.items()}), ("in_loop", IN_LOOP)):
        series = {said: _below(logged, prefix) for prefix, said in wanted.items()}
        if any(series.values()):
            shown = {said: lines for said, lines in series.items() if lines}
            details[f"{kind}_files"] = draw_lines(shown, out, f"{kind.replace('_', '-')}-{short}")
    return details


def _below(logged: dict[str, Series], prefix: str) -> dict[str, Drawn]:
    """What is drawn of every metric below a prefix, in the order of layers."""
    names = [name for name in logged if name.startswith(prefix)]
    # By number, since `blocks.10` stands before `blocks.2` as text.
    ordered = sorted(names, key=lambda name: (int(name.rsplit(".", 1)[1]) if "/blocks." in name else -1, name))
    return {name.removeprefix(prefix): thinned(logged[name]) for name in ordered}


def draw_lines(series: dict[str, dict[str, Drawn]], out: Path, name: str) -> list[str]:
    """A panel per title, a line per name; layers are shaded in their order."""
    figure, axes = panels(len(series))
    for axis, (title, lines) in zip(axes, series.items(), strict=True):
        layers = [line for line in lines if line.startswith("blocks.")]
        colours = dict(zip(layers, shades(len(layers)), strict=True))
        others = [line for line in lines if line not in colours]
        # The first ink looks like a shade of the layers, so others begin with the second.
        colours |= dict(zip(others, inks(len(others) + 1)[1:], strict=True))
        for line, (steps, values) in lines.items():
            # Only the first and the last layer are named; 32 names would cover the panel.
            edge = line not in layers or line in (layers[0], layers[-1])
            axis.plot(steps, values, color=colours[line], linewidth=1.1, label=line if edge else None)
        axis.set(xlabel="step", ylabel=title)
        legend(axis, columns=2)
        fit_scale(axis, [value for _, values in lines.values() for value in values])
    return write_figure(figure, out, name, {"series": series})


def diagnose_initialisation(
    variants: str, widths: str, layers: int, out: Path, name: str = "growth"
) -> GrowthDiagnosis:
    """Growth exponents of variants over widths at initialisation: a `.json`, `.png` and `.svg`; returns them.

    Raises ValueError for a variant that is not known, a width that heads do not divide, or a single layer.
    """
    chosen = _variants(variants)
    sizes = _widths(widths)
    if layers < 2:
        raise ValueError(f"--layers {layers}: growth through the depth needs at least 2 layers")
    rows: list[JsonObject] = [
        {"variant": name, "width": width, **_growth(name, width, layers)._asdict()}
        for name in chosen
        for width in sizes
    ]
    figure, axes = panels(len(GROWTH))
    for axis, (what, said) in zip(axes, GROWTH.items(), strict=True):
        # Above the line signals grow through the depth, below it they vanish.
        axis.axhline(0, color="#6c7075", linewidth=0.8)
        for variant, ink in zip(chosen, inks(len(chosen)), strict=True):
            values = [row[what] for row in rows if row["variant"] == variant]
            axis.plot(sizes, values, "o-", color=ink, linewidth=1.2, markersize=4, label=variant)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, labels=[str(size) for size in sizes])
        axis.set(xlabel="width (d_model)", ylabel=f"growth exponent: {said}")
    # One scale for all panels, so that heights can be compared.
    low, high = min(axis.get_ylim()[0] for axis in axes), max(axis.get_ylim()[1] for axis in axes)
    for axis in axes:
        axis.set_ylim(low, high)
    legend(axes[0])
    facts = {"layers": layers, "documents": DOCUMENTS, "document_tokens": DOCUMENT_TOKENS, "seed": _SEED}
    return {"growth": rows, "growth_files": write_figure(figure, out, name, facts | {"growth": rows})}


def _variants(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--init {text!r} names no variant; there are {', '.join(VARIANTS)}")
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"--init {name!r} is not a variant{nearest(name, list(VARIANTS))}")
    return list(dict.fromkeys(names))


def _widths(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if not word.isdigit() or int(word) % HEAD_DIM or not int(word)]
    if wrong or not words:
        raise ValueError(f"--widths {text!r}: {', '.join(wrong) or 'nothing'} is not a multiple of {HEAD_DIM}")
    return sorted({int(word) for word in words})


def _growth(variant: str, width: int, layers: int):
    heads = width // HEAD_DIM
    config = ModelConfig(
        d_model=width, n_layers=layers, n_heads=heads, n_kv_heads=heads, head_dim=HEAD_DIM, mlp_hidden=mlp_width(width),
        vocab_size=_VOCABULARY, max_sequence_length=DOCUMENT_TOKENS, **VARIANTS[variant],
    )  # fmt: skip
    # Drawn from a seed, so that all variants see the same documents.
    ids = torch.randint(_VOCABULARY, (DOCUMENTS, DOCUMENT_TOKENS), generator=torch.Generator().manual_seed(_SEED))
    return growth_exponent(Transformer(config, seed=_SEED), ids)


def print_diagnosis(console: Console, runs: RunDiagnosis | None, growth: GrowthDiagnosis | None) -> None:
    """Scores and exponents as tables, and where the figures are."""
    files: list[list[str]] = []
    if runs:
        table = Table("run", "values", "judged", "loss spikes %", "gradient spikes %", "judged by monitor", "monitor %",
                      f"last {MONITOR_STEPS:,} %", box=None, pad_edge=False)  # fmt: skip
        for run in runs["runs"]:
            spikes = [f"{run['spikes'][name]:.3g}" if run["judged"] else "–" for name in _CURVES]
            wanted = ("monitor_spikes", "monitor_recent_spikes")
            monitor = [f"{run[name]:.3g}" if run["monitor_judged"] else "–" for name in wanted]
            table.add_row(f"{run['label']} {run['id'][:8]}", f"{run['logged']:,}", f"{run['judged']:,}", *spikes,
                          f"{run['monitor_judged']:,}", *monitor)  # fmt: skip
        console.print(table)
        files += [runs["curves_files"], runs.get("norms_files", []), runs.get("in_loop_files", [])]
    if growth:
        table = Table("variant", "width", *GROWTH, box=None, pad_edge=False)
        for row in growth["growth"]:
            table.add_row(row["variant"], str(row["width"]), *(f"{row[what]:+.4f}" for what in GROWTH))
        console.print(table)
        files.append(growth["growth_files"])
    for paths in filter(None, files):
        console.print(*paths, highlight=False)
