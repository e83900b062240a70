"""The costs of a recipe as a table for people and as JSON, and the GPU that the command line names."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, TypedDict

from rich.console import Console
from rich.table import Table

from flows.cli.options import print_whole
from flows.config.files import load
from flows.config.recipe_config import RecipeConfig
from flows.config.sizes.limits import mix_notes
from flows.inspection.costs.cost import (
    DEFAULT_GPU,
    DEFAULT_MFU,
    DEVICES,
    NODE_FACTOR,
    Device,
    Hardware,
    StageCost,
    recipe_costs,
)
from flows.inspection.costs.cost_other import OtherCost, other_costs, plan_labels, stored_by_training
from infra.execution.plan import some
from infra.json_values import JsonObject
from infra.settings import SiteSettings
from model.training.measuring.memory import Memory

SUMS = ("flops", "hours", "kwh", "co2_tonnes", "water_kilolitres", "money")
"""What adds up over stages that run one after another."""
COUNT_UNITS = ("", "K", "M", "B", "T")


class Costs(TypedDict):
    """The costs of a recipe, in bytes, FLOPs, hours, kWh, tonnes, kilolitres and money."""

    hardware: JsonObject
    stages: list[JsonObject]
    """Fields of StageCost of every training, with what it stores."""
    others: list[JsonObject]
    """Fields of OtherCost of every other stage."""
    total: dict[str, float | None]


def plan_costs(console: Console | None, recipe: str, overrides: list[str] | None, gpus: int, **asked: Any) -> Costs:
    """The costs of a recipe file as JSON values; printed too where a console is given. `asked` has fields of `AskedHardware`.

    Nothing that the recipe names is looked up, so published recipes are planned without a network.
    """
    config = load(recipe, overrides)
    hardware = ask_hardware(config.execution.site.planned(), gpus, AskedHardware(**asked))
    costs = recipe_costs(config, hardware)
    rows = plan_labels(config)
    others = other_costs(config, hardware, rows)
    if console is not None:
        print_costs(console, costs, hardware, others, [row.label for row in rows], stored_bytes(config, costs))
        for label, text in mix_notes(config).items():
            console.print(f"{label}: {text}.", style="dim", highlight=False, markup=False)
    return as_json(costs, hardware, others, stored_bytes(config, costs))


def stored_bytes(config: RecipeConfig, costs: list[StageCost]) -> dict[str, float]:
    """Bytes that each training leaves in the store: weights, moments where they are kept, and permanent save points."""
    parameters, every = config.pretrain.model.parameters, config.execution.keep_every
    found = {}
    for item in costs:
        first = item.label.partition(":")[0] == "pretrain"
        # Only a pre-training is long enough for save points that stay to count.
        kept = item.steps // every if first and every and item.steps else 0
        found[item.label] = stored_by_training(parameters, moments=first)
        found[item.label] += kept * stored_by_training(parameters, moments=True)
    return found


class AskedHardware(NamedTuple):
    """What the options of a command say of GPUs and their site; None where they say nothing."""

    gpu: str | None = None
    mfu: float | None = None
    price: float | None = None
    peak_flops: float | None = None
    watts: float | None = None
    pue: float | None = None
    carbon: float | None = None
    water: float | None = None
    node_factor: float | None = None


def ask_hardware(site: SiteSettings, gpus: int, asked: AskedHardware) -> Hardware:
    """What the command line says, at the recipe's site where it says nothing else.

    Raises ValueError for an unknown GPU or a value out of range.
    """
    said = {"pue": asked.pue, "carbon": asked.carbon, "water": asked.water}
    site = site.model_copy(update={name: value for name, value in said.items() if value is not None})
    device = find_device(asked.gpu or DEFAULT_GPU, asked.peak_flops, asked.watts)
    factor = NODE_FACTOR if asked.node_factor is None else asked.node_factor
    return Hardware(gpus, device, DEFAULT_MFU if asked.mfu is None else asked.mfu, site, asked.price, factor)


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
    return Device(
        known.peak_flops if peak_flops is None else peak_flops, known.watts if watts is None else watts, known.memory
    )


def total(costs: Sequence[StageCost | OtherCost]) -> dict[str, float | None]:
    """Sums over the stages whose steps are known; None for what no stage has."""
    sums: dict[str, float | None] = {}
    for name in SUMS:
        values = [value for value in (getattr(item, name) for item in costs) if value is not None]
        sums[name] = sum(values) if values else None
    return sums


def as_json(costs: list[StageCost], hardware: Hardware, others: list[OtherCost], stored: dict[str, float]) -> Costs:
    """Everything, in bytes, FLOPs, hours, kWh, tonnes, kilolitres and money."""
    stages: list[JsonObject] = [
        asdict(item)
        | {"stored_bytes": stored[item.label]}
        | {"memory": asdict(item.memory) | {"most": item.memory.most, "least": item.memory.least}}
        for item in costs
    ]
    described = asdict(hardware) | {"site": hardware.site.model_dump()}
    sums = total([*costs, *others])
    sums["stored_bytes"] = all_stored(others, stored)
    return Costs(hardware=described, stages=stages, others=[asdict(item) for item in others], total=sums)


def all_stored(others: list[OtherCost], stored: dict[str, float]) -> float:
    """Bytes of all that is known to be stored."""
    return sum(stored.values()) + sum(item.stored_bytes for item in others if item.stored_bytes is not None)


def print_costs(
    console: Console,
    costs: list[StageCost],
    hardware: Hardware,
    others: list[OtherCost],
    order: list[str],
    stored: dict[str, float],
) -> None:
    """A line per stage in the flow's order and the total, the memory of a GPU in trainings, and what the columns mean."""
    table = _table(
        "steps", "tokens", "FLOPs", "GPUs", "hours", "kWh", "t CO2", "kL water", "money", "calls", "GB stored"
    )
    cells = {item.label: [*_cells(item), "", separated(stored[item.label] / 1e9)] for item in costs}
    cells |= {item.label: _other_cells(item) for item in others}
    for label in order:
        if label in cells:
            table.add_row(*cells[label])
    sums = total([*costs, *others])
    calls = sum(item.calls for item in others if item.calls)
    summed = ["total", "", "", scientific(sums["flops"]), "", *(separated(sums[name]) for name in SUMS[1:-1])]
    summed.append("" if sums["money"] is None else separated(sums["money"]))
    table.add_row(*summed, f"{calls:,}" if calls else "", separated(all_stored(others, stored) / 1e9), style="bold")
    memory = _table("parameters", "gradients", "moments", "activations", "working", "GB/GPU")
    for item in costs:
        memory.add_row(item.label, *memory_cells(item.memory))
    for drawn in (table, memory):
        print_whole(console, drawn)
        console.print()
    console.print(*_notes(costs, hardware), *assumptions(others), sep="\n", style="dim", highlight=False, markup=False)


def assumptions(others: list[OtherCost]) -> list[str]:
    """What the rows of stages that do not train assume, one line for rows that assume the same."""
    alike: dict[str, list[str]] = {}
    # Stages that assume the same share a line, by the text itself.
    for item in others:
        alike.setdefault(item.assumption, []).append(item.label)
    return [f"{some(labels)}: {assumption}." for assumption, labels in alike.items()]


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("stage", no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _other_cells(item: OtherCost) -> list[str]:
    amounts = [item.hours, item.kwh, item.co2_tonnes, item.water_kilolitres]
    # 0 means that it does not apply and shows nothing; None shows a question mark.
    shown = ["" if item.tokens == 0 else scaled(item.tokens), "" if item.flops == 0 else scientific(item.flops)]
    shown += ["" if amount == 0 else separated(amount) for amount in amounts]
    shown.append("" if item.money is None else separated(item.money))
    calls = "?" if item.calls is None else f"{item.calls:,}" if item.calls else ""
    stored = separated(None if item.stored_bytes is None else item.stored_bytes / 1e9) if item.stored_bytes != 0 else ""
    return [item.label, "", *shown[:2], f"{item.gpus:,}" if item.gpus else "", *shown[2:], calls, stored]


def _cells(item: StageCost) -> list[str]:
    bound = "≤ " if item.at_most and item.tokens is not None else ""
    cells = [
        item.label,
        "?" if item.steps is None else f"{item.steps:,}",
        bound + scaled(item.tokens),
        scientific(item.flops),
        f"{item.gpus:,}",
    ]
    money = "" if item.money is None else separated(item.money)
    return [*cells, *(separated(getattr(item, name)) for name in SUMS[1:-1]), money]


def memory_cells(memory: Memory) -> list[str]:
    """Gigabytes of each kind and of all; of what depends on it, with blocks recomputed and without."""
    few, all_kept = memory.recomputed, memory.kept
    pairs = [(few.activations, all_kept.activations), (few.working, all_kept.working), (memory.least, memory.most)]
    state = [memory.parameters, memory.gradients, memory.moments]
    return [f"{value / 1e9:.3g}" for value in state] + [
        f"{least / 1e9:.3g} / {most / 1e9:.3g}" for least, most in pairs
    ]


def _notes(costs: list[StageCost], hardware: Hardware) -> list[str]:
    device, site = hardware.device, hardware.site
    notes = [
        f"{hardware.gpus:,} GPUs of {device.peak_flops / 1e12:,.4g} TFLOP/s and {device.watts:,.4g} W at MFU "
        f"{hardware.mfu:g}; PUE {site.pue:g}, {site.carbon:g} kg CO2 and {site.water:g} L water per kWh. kWh is of whole nodes, "
        f"{hardware.node_factor:g} times the GPUs' rated power (Table 19: 131 MWh for the 7B), before PUE.",
        "GB of a GPU when most is in use: fp32 parameters, gradients and moments are sharded over the GPUs; working is gathered "
        "weights, gradients on their way, the loss, and weights to sample with. Before the stroke blocks are recomputed in "
        "backward, after it everything is kept.",
    ]
    if any(item.at_most for item in costs):
        notes.append(
            "≤: as if every text were as long as it may be, in all columns; rlvr's sampling is counted at the MFU."
        )
    for item in costs:
        if item.reference not in ("", "policy"):
            where = "of the host, for each GPU" if item.reference == "host" else f"of {item.reference}"
            notes.append(
                f"{item.label}: its frozen reference takes {item.reference_bytes / 1e9:.3g} GB {where}, which is not above."
            )
    unknown = [item.label for item in costs if item.steps is None]
    if unknown:
        notes.append(f"?: depends on data not made yet, left out of the total: {', '.join(unknown)}.")
    tight = [item.label for item in costs if device.memory is not None and item.memory.least > device.memory]
    if tight:
        notes.append(
            f"More memory than the device has, even when recomputing: {', '.join(tight)}; use more GPUs (what samples holds "
            "a copy of the weights on each, however many there are)."
        )
    return notes


def scaled(count: int | None) -> str:
    """Three digits and a unit."""
    if count is None:
        return "?"
    # The number of thousands follows from the digits, without a logarithm's rounding.
    power = min(len(COUNT_UNITS) - 1, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g}{COUNT_UNITS[power]}"


def scientific(value: float | None) -> str:
    """Three digits and a power of ten."""
    return "?" if value is None else f"{value:.2e}"


def separated(value: float | None) -> str:
    """A number of three digits or more, with separators."""
    if value is None:
        return "?"
    if 0 < value < 0.01:
        return "<0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
