"""The scaling of one training stage as a table and as JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from flows.cli.options import print_whole
from flows.config.files import load
from flows.config.sizes.training_runs import trained_model, training_runs
from flows.inspection.costs.cost_table import find_device
from flows.inspection.costs.scaling import Fabric, Reliability, Scaled, scale, stops_at


def counts_of(text: str) -> list[int]:
    """Numbers of GPUs from text such as "8,64,512", in ascending order. ValueError for anything else."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        # An impossible count, so that both mistakes end in the same message.
        counts = [0]
    if counts[0] < 1:
        raise ValueError(f"--gpus {text!r}: give whole numbers of at least 1 with commas, such as 8,64,512")
    return counts


def scaling_of(
    recipe: str,
    overrides: list[str] | None,
    stage: str,
    counts: Sequence[int],
    gpu: str,
    mfu: float,
    fabric: Fabric,
    reliability: Reliability,
) -> list[Scaled]:
    """A stage of a recipe file on each number of GPUs. ValueError for unknown stages and values out of range."""
    config = load(recipe, overrides)
    runs = {run.label: run for run in training_runs(config)}
    if stage not in runs:
        raise ValueError(f"{stage!r} is no training stage of this recipe; choose one of {', '.join(runs)}")
    if not 0 < mfu <= 1:
        raise ValueError(f"--mfu {mfu:g} is a share of the peak: give a value above 0 and at most 1, such as 0.45")
    positive = {
        "--node-gpus": fabric.node_gpus, "--network": fabric.network_bandwidth,
        "--failure-hours": reliability.failure_hours, "--save-seconds": reliability.save_seconds,
    }  # fmt: skip
    for name, value in positive.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} {value:g}: give a number above 0")
    found = scale(
        runs[stage], trained_model(config, stage), counts, find_device(gpu, None, None), mfu, fabric, reliability
    )
    if not found:
        raise ValueError(
            f"{stage} runs on none of {', '.join(map(str, counts))} GPUs: an update has {runs[stage].most_gpus} rows to "
            "share, and weights, gradients and moments have to fit; ask for other numbers"
        )
    return found


def scaling_rows(found: Sequence[Scaled]) -> dict[str, object]:
    """Everything in seconds, bytes and hours."""
    rows = [asdict(item) | {"step": item.step, "hours": item.hours} for item in found]
    return {"rows": rows, "stops_scaling_at": stops_at(found)}


def _cells(item: Scaled, first: float) -> list[str]:
    layout = f"fsdp {item.shards}" if item.replicas == 1 else f"hsdp {item.replicas}x{item.shards}"
    amounts = [f"{item.step:.3g}", f"{item.exposed:.2g}", f"{item.sent / 1e9:,.0f}", f"{item.memory / 1e9:,.0f}"]
    efficiency = f"{first / (item.step * item.gpus):.0%}"
    interval, failures = f"{item.save_interval / 60:.0f} min", f"+{item.overhead:.1%}"
    days = "?" if item.hours is None else f"{item.hours / 24:,.1f}"
    return [f"{item.gpus:,}", layout, str(item.passes), *amounts, efficiency, interval, failures, days]


def print_scaling(console: Console, found: Sequence[Scaled], fabric: Fabric, reliability: Reliability) -> None:
    """A row for each number of GPUs, and where more of them stop paying."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    titles = "GPUs, layout, passes, step s, waits s, GB sent, GB/GPU, efficiency, save every, failures, days"
    for title in titles.split(", "):
        table.add_column(title, justify="right", no_wrap=True)
    first = found[0].step * found[0].gpus
    for item in found:
        table.add_row(*_cells(item, first))
    print_whole(console, table)
    stop = stops_at(found)
    said = (
        f"below half of the work per GPU at {stop:,} GPUs" if stop else "more than half of the work per GPU everywhere"
    )
    console.print(
        f"\nScaling: {said}, beside {found[0].gpus:,}. Assumed: {fabric.node_gpus} GPUs a node, "
        f"{fabric.node_bandwidth / 1e9:.0f} and {fabric.network_bandwidth / 1e9:.0f} GB/s a GPU within and between nodes at "
        f"{fabric.efficiency:.0%}, {fabric.node_latency * 1e6:.0f} and {fabric.network_latency * 1e6:.0f} microseconds a hop; "
        f"a failure in {reliability.failure_hours:,.0f} hours of a GPU, {reliability.restart_seconds:.0f} s to restart, "
        f"{reliability.save_seconds:g} s a save point. Simulated, not measured.",
        style="dim", highlight=False, markup=False,
    )  # fmt: skip
