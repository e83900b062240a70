"""Training stability drawn and counted: loss and gradient norm of runs, growth through the depth at initialisation.

Source: paper section 3.2 (Figures 2 to 10), RECIPE D; the measures are `model/diagnostics.py`. Scores are of logged
values: a run that logs every k-th step is judged on those, and `judged` says how many there were to judge.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from rich.console import Console
from rich.table import Table

from flows.loading import nearest
from flows.look import find_record
from infra.store import Store
from infra.workspace import open_artifact
from model.config import OLMO_0424, ModelConfig, mlp_width
from model.diagnostics import MONITOR_WINDOW, growth_exponent, monitor_spike_score, spike_score
from tasks.training.run import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VARIANTS: dict[str, dict[str, Any]] = {
    "olmo2": {},
    "olmo-0424": OLMO_0424,
    "olmo-0424-normal-init": OLMO_0424 | {"init": "normal"},
    "olmo2-scaled-init": {"init": "scaled"},
    "olmo2-pre-norm": {"norm_placement": "input"},
    "olmo2-no-qk-norm": {"qk_norm": "none"},
}
"""OLMo 2, the paper's baseline, and either with one choice of the other (section 3.2 compares the two inits)."""
HEAD_DIM = 32
VOCABULARY = 512
DOCUMENTS, DOCUMENT_TOKENS = 50, 64
"""The paper judges growth on 50 random documents; ours are of this many random tokens."""
SEED = 6198
LOG_SPAN = 30
"""Curves that span more than this factor are drawn on a log axis: a sum of losses beside a mean, or a spike."""
INKS = ("#4a5f86", "#b4533b", "#1d776b", "#b27a1c", "#77396a", "#717a52")


def diagnose_runs(store: Store, ids: list[str], out: Path, window: int) -> dict[str, Any]:
    """Curves and spike scores of trainings: `curves.json`, `.png` and `.svg` in a folder; returns the scores.

    Raises ValueError for an artifact without logged metrics.
    """
    runs = [_run(store, id, window) for id in ids]
    names = ("loss", "grad_norm")
    figure, axes = _figure(len(names))
    for axis, name in zip(axes, names, strict=True):
        for run, ink in zip(runs, _inks(len(runs)), strict=True):
            if run[name]:
                spikes = f"spikes {run['spikes'][name]:.3g} %" if run["judged"] else "too short to judge"
                said = f"{run['label']} {run['id'][:8]}: {spikes}"
                axis.plot(run["steps"], run[name], color=ink, linewidth=0.9, label=said)
        axis.set(xlabel="step", ylabel={"loss": "training loss", "grad_norm": "gradient norm before clipping"}[name])
        axis.legend(frameon=False, fontsize=8)
        values = [value for run in runs for value in run[name]]
        if min(values, default=0.0) > 0 and max(values) > LOG_SPAN * min(values):
            axis.set_yscale("log")
    return {"runs": [_without_series(run) for run in runs]} | _write(figure, out, "curves", {"runs": runs})


def _run(store: Store, id: str, window: int) -> dict[str, Any]:
    record = find_record(store, id)
    if METRICS not in record.files:
        raise ValueError(f"{record.label} {record.id} ({record.kind}) has no {METRICS}; diagnose a trained checkpoint")
    rows = list(open_artifact(store).read_jsonl(record.artifact(), METRICS))
    series = {name: [row[name] for row in rows if name in row] for name in ("loss", "grad_norm")}
    both = len(series["loss"]) == len(series["grad_norm"])
    return {
        "id": record.id,
        "label": record.label,
        "steps": [int(row["step"]) for row in rows],
        **series,
        "logged": len(rows),
        "window": window,
        "judged": max(0, len(rows) - window),
        "spikes": {name: spike_score(values, window) for name, values in series.items()},
        "monitor_judged": max(0, len(rows) - MONITOR_WINDOW) if both else 0,
        "monitor_spikes": monitor_spike_score(series["loss"], series["grad_norm"]) if both else None,
    }


def _without_series(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name not in ("steps", "loss", "grad_norm")}


def diagnose_initialisation(variants: str, widths: str, layers: int, out: Path) -> dict[str, Any]:
    """Growth exponents of variants over widths at initialisation: `growth.json`, `.png` and `.svg`; returns them.

    Raises ValueError for a variant that is not known or a width that heads do not divide.
    """
    chosen = _variants(variants)
    sizes = _widths(widths)
    rows = [
        {"variant": name, "width": width, **_growth(name, width, layers)._asdict()}
        for name in chosen
        for width in sizes
    ]
    figure, axes = _figure(2)
    for axis, what in zip(axes, ("activations", "gradients"), strict=True):
        axis.axhline(0, color="#6c7075", linewidth=0.8)
        for name, ink in zip(chosen, _inks(len(chosen)), strict=True):
            values = [row[what] for row in rows if row["variant"] == name]
            axis.plot(sizes, values, "o-", color=ink, linewidth=1.2, markersize=4, label=name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, labels=[str(size) for size in sizes])
        axis.set(xlabel="width (d_model)", ylabel=f"growth exponent of {what}, per layer")
        axis.legend(frameon=False, fontsize=8)
    facts = {"layers": layers, "documents": DOCUMENTS, "document_tokens": DOCUMENT_TOKENS, "seed": SEED}
    return {"growth": rows} | _write(figure, out, "growth", facts | {"growth": rows})


def _variants(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
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
    import torch

    from model.transformer import Transformer

    heads = width // HEAD_DIM
    config = ModelConfig(
        d_model=width, n_layers=layers, n_heads=heads, n_kv_heads=heads, head_dim=HEAD_DIM, mlp_hidden=mlp_width(width),
        vocab_size=VOCABULARY, max_sequence_length=DOCUMENT_TOKENS, **VARIANTS[variant],
    )  # fmt: skip
    ids = torch.randint(VOCABULARY, (DOCUMENTS, DOCUMENT_TOKENS), generator=torch.Generator().manual_seed(SEED))
    return growth_exponent(Transformer(config, seed=SEED), ids)


def _figure(panels: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * panels, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, panels, place + 1) for place in range(panels)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _inks(count: int) -> list[str]:
    return [INKS[place % len(INKS)] for place in range(count)]


def _write(figure: "Figure", out: Path, name: str, values: dict[str, Any]) -> dict[str, Any]:
    import matplotlib

    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_bytes(orjson.dumps(values, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    figure.savefig(out / f"{name}.png", dpi=150)
    # Without salt and date, equal values would give different bytes.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    return {f"{name}_files": [str(out / f"{name}.{end}") for end in ("json", "png", "svg")]}


def print_diagnosis(console: Console, found: dict[str, Any]) -> None:
    """Scores and exponents as tables, and where the figures are."""
    if "runs" in found:
        table = Table("run", "logged", "judged", "loss spikes %", "gradient spikes %", "judged by monitor", "monitor %",
                      box=None, pad_edge=False)  # fmt: skip
        for run in found["runs"]:
            spikes = [f"{run['spikes'][name]:.3g}" if run["judged"] else "–" for name in ("loss", "grad_norm")]
            monitor = f"{run['monitor_spikes']:.3g}" if run["monitor_judged"] else "–"
            table.add_row(f"{run['label']} {run['id'][:8]}", f"{run['logged']:,}", f"{run['judged']:,}", *spikes,
                          f"{run['monitor_judged']:,}", monitor)  # fmt: skip
        console.print(table)
    if "growth" in found:
        table = Table("variant", "width", "activations", "gradients", box=None, pad_edge=False)
        for row in found["growth"]:
            table.add_row(row["variant"], str(row["width"]), f"{row['activations']:+.4f}", f"{row['gradients']:+.4f}")
        console.print(table)
    for name in ("curves_files", "growth_files"):
        console.print(*found.get(name, []), highlight=False)
