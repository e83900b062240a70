"""The costs of a recipe as a table for people and as JSON, and the GPU that the command line names."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from flows.config import RecipeConfig
from flows.cost import DEVICES, Cost, Device, Hardware, Site, recipe_costs
from flows.loading import load

SUMS = ("flops", "hours", "kwh", "co2_tonnes", "water_kilolitres", "money")
"""What adds up over stages that run one after another."""
COUNT_UNITS = ("", "K", "M", "B", "T")


def plan_costs(console: Console | None, recipe: str, overrides: list[str] | None, hardware: Hardware) -> dict[str, Any]:
    """The costs of a recipe file as JSON values; printed too where a console is given.

    Nothing that the recipe names is looked up, so published recipes are planned without a network.
    """
    costs = recipe_costs(load(RecipeConfig, recipe, overrides), hardware)
    if console is not None:
        print_costs(console, costs, hardware)
    return as_json(costs, hardware)


def ask_hardware(
    gpus: int,
    gpu: str,
    mfu: float,
    price: float | None,
    peak_flops: float | None,
    watts: float | None,
    pue: float,
    carbon: float,
    water: float,
) -> Hardware:
    """What the command line says. Raises ValueError for an unknown GPU or a value out of range."""
    return Hardware(gpus, find_device(gpu, peak_flops, watts), mfu, Site(pue, carbon, water), price)


def find_device(name: str, peak_flops: float | None, watts: float | None) -> Device:
    """A device by name, with its peak and power overridden where given.

    Raises ValueError for a name that is not in the table unless both are given.
    """
    known = DEVICES.get(name.lower())
    if known is None and (peak_flops is None or watts is None):
        raise ValueError(
            f"GPU {name!r} is not in the table ({', '.join(DEVICES)}); give its dense bf16 --peak-flops and its --watts"
        )
    if known is None:
        assert peak_flops is not None and watts is not None
        return Device(peak_flops, watts)
    return Device(peak_flops or known.peak_flops, watts or known.watts, known.memory)


def total(costs: list[Cost]) -> dict[str, float | None]:
    """Sums over the stages whose steps are known; None for what no stage has."""
    sums: dict[str, float | None] = {}
    for name in SUMS:
        values = [value for value in (getattr(item, name) for item in costs) if value is not None]
        sums[name] = sum(values) if values else None
    return sums


def as_json(costs: list[Cost], hardware: Hardware) -> dict[str, Any]:
    """Everything, in bytes, FLOPs, hours, kWh, tonnes, kilolitres and money."""
    stages = [
        asdict(item) | {"memory": asdict(item.memory) | {"most": item.memory.most, "least": item.memory.least}}
        for item in costs
    ]
    return {"hardware": asdict(hardware), "stages": stages, "total": total(costs)}


def print_costs(console: Console, costs: list[Cost], hardware: Hardware) -> None:
    """A line per stage, the total, and what the columns mean."""
    titles = ["stage", "steps", "tokens", "FLOPs", "GPUs", "GB/GPU", "hours", "kWh", "t CO2", "kL water"]
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for title in [*titles, *(["money"] if hardware.price is not None else [])]:
        table.add_column(title, justify="left" if title == "stage" else "right", no_wrap=True)
    for item in costs:
        table.add_row(*_cells(item, hardware))
    sums = total(costs)
    cells = ["total", "", "", scientific(sums["flops"]), "", ""]
    cells += [plain(sums[name]) for name in SUMS[1:] if name != "money" or hardware.price is not None]
    table.add_row(*cells, style="bold")
    # Numbers cut to fit a narrow terminal would be no numbers.
    table.width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.print(table, crop=False)
    console.print(*_notes(costs, hardware), sep="\n", style="dim", highlight=False, markup=False)


def _cells(item: Cost, hardware: Hardware) -> list[str]:
    bound = "≤ " if item.at_most and item.tokens is not None else ""
    least, most = item.memory.least / 1e9, item.memory.most / 1e9
    cells = [
        item.label,
        "?" if item.steps is None else f"{item.steps:,}",
        bound + scaled(item.tokens),
        scientific(item.flops),
        f"{item.gpus:,}",
        f"{least:.3g}-{most:.3g}",
    ]
    cells += [plain(getattr(item, name)) for name in SUMS[1:] if name != "money" or hardware.price is not None]
    return cells


def _notes(costs: list[Cost], hardware: Hardware) -> list[str]:
    device, site = hardware.device, hardware.site
    notes = [
        f"{hardware.gpus:,} GPUs of {device.peak_flops / 1e12:,.0f} TFLOP/s and {device.watts:,.0f} W at MFU "
        f"{hardware.mfu:g}; PUE {site.pue:g}, {site.carbon:g} kg CO2 and {site.water:g} L water per kWh. kWh is before PUE.",
        "GB/GPU: fp32 weights, gradients and moments sharded over the GPUs, and one pass; the first number recomputes "
        "blocks in backward, the second keeps everything.",
    ]
    if any(item.at_most for item in costs):
        notes.append(
            "≤: as if every text were as long as it may be, in all columns; rlvr's sampling is counted at the MFU."
        )
    unknown = [item.label for item in costs if item.steps is None]
    if unknown:
        notes.append(f"?: depends on data not made yet, left out of the total: {', '.join(unknown)}.")
    tight = [item.label for item in costs if device.memory is not None and item.memory.least > device.memory]
    if tight:
        notes.append(f"More memory than the device has, even when recomputing: {', '.join(tight)}; use more GPUs.")
    return notes


def scaled(count: int | None) -> str:
    """Three digits and a unit."""
    if count is None:
        return "?"
    power = min(len(COUNT_UNITS) - 1, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g}{COUNT_UNITS[power]}"


def scientific(value: float | None) -> str:
    """Three digits and a power of ten."""
    return "?" if value is None else f"{value:.2e}"


def plain(value: float | None) -> str:
    """A number of three digits or more, with separators."""
    if value is None:
        return "?"
    if 0 < value < 0.01:
        return "<0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
