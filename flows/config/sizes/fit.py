"""Sharding, recomputation and micro-batches of every training stage, chosen so that it fits a device's memory.

Memory comes from `model/training/measuring/memory.py`, which tests hold to what training really takes. All that is
chosen changes results
by rounding only, so it is `execution`, and a recipe keeps its ids on other devices. What a recipe says itself is kept.

Example: the 7B's pre-training on eight devices of 80 GB is sharded over all of them, one window at a time, nothing recomputed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import psutil
import torch

from flows.config.recipe_config import RecipeConfig
from flows.config.sizes.training_runs import Run, trained_model, training_runs
from infra.settings import Execution, ParallelSettings
from model.config import ModelConfig

HEADROOM = 0.9
"""Share of a device's memory that a plan may fill: the allocator's waste, the runtime and its collectives need the rest."""
ENOUGH_TOKENS = 16_384
"""Tokens of a pass from which matmuls gain nothing from more."""
NODE_DEVICES = 8
"""Devices of a node, which hold one copy of the weights where copies are kept in step between nodes (hsdp)."""
_ON_A_MIX = {"pretrain", "anneal"}
"""Stages whose pass is counted in windows (`micro_instances`); that of the others in tokens (`pass_tokens`)."""


@dataclass(frozen=True)
class Fit:
    """How one training stage runs on the devices."""

    parallel: ParallelSettings
    rows: int
    """Windows, chats or answers of one pass through one device."""
    tokens: int
    """Tokens of that pass at most."""
    memory: float
    """Bytes of a device."""


def fit_run(run: Run, model: ModelConfig, devices: int, memory: float) -> Fit:
    """The quickest way of running a stage that fits: recomputing nothing before recomputing blocks, then whole copies before
    shards within nodes before shards over all devices, then as many rows at once as pay.

    Raises ValueError where one row does not fit on any of them.
    """
    used = min(devices, run.most_gpus)
    least = math.inf
    # The cheaper way first: recomputing blocks costs a third more FLOPs.
    for policy in ("off", "blocks"):
        for parallel in _layouts(used, policy):
            found = None
            for units in _units(run, used):
                fit = _taken(run, model, parallel, units)
                least = min(least, fit.memory)
                # More rows take more memory, so the first that does not fit ends the search.
                if fit.memory > HEADROOM * memory:
                    break
                found = fit
            if found:
                return found
    raise ValueError(
        f"{run.label} needs {least / 1e9:.1f} GB on each of {used} devices for one row of {run.longest:,} tokens; {HEADROOM:.0%} "
        f"of {memory / 1e9:.1f} GB may be used: give more devices or memory, or the stage's own execution.parallel"
    )


def _layouts(devices: int, policy: Literal["off", "blocks"]) -> Iterator[ParallelSettings]:
    yield ParallelSettings(workers=devices, data="ddp", activation_checkpointing=policy)
    if devices == 1:
        return
    if devices > NODE_DEVICES and devices % NODE_DEVICES == 0:
        # A copy within each node: its devices share the fast links, and only gradients cross nodes.
        copies = devices // NODE_DEVICES
        yield ParallelSettings(workers=devices, data="hsdp", replicas=copies, activation_checkpointing=policy)
    yield ParallelSettings(workers=devices, data="fsdp", activation_checkpointing=policy)


def _units(run: Run, devices: int) -> Iterator[int]:
    """Rows, or pairs that stay together, of a pass: 1, 2, 4 ... up to a device's share of an update or enough tokens."""
    # Rounded up: the last device may have less.
    share, units = math.ceil(run.most_gpus / devices), 1
    while True:
        yield units
        if units >= share or 2 * units * run.together * run.longest > ENOUGH_TOKENS:
            return
        units *= 2


def _taken(run: Run, model: ModelConfig, parallel: ParallelSettings, units: int) -> Fit:
    rows = units * run.together
    # With hsdp a copy is spread over the devices of one group only.
    shards = 1 if parallel.data == "ddp" else parallel.workers // parallel.replicas
    memory = run.memory(model, shards, rows * run.longest)
    kept = parallel.activation_checkpointing == "off"
    return Fit(parallel, rows, rows * run.longest, memory.most if kept else memory.least)


def fit_recipe(config: RecipeConfig, devices: int, memory: float) -> dict[str, Fit]:
    """How each training stage, by its name, runs on so many devices with so many bytes each.

    Stages that several steps share, such as the anneals, take the smallest pass of theirs. A stage whose layout the recipe names
    (`execution.parallel`) is left out. Raises ValueError as `fit_run` does.
    """
    if devices < 1 or not memory > 0:
        raise ValueError(f"{devices} devices of {memory:g} bytes: give at least one device, and its memory above 0")
    found: dict[str, Fit] = {}
    for run in training_runs(config):
        name = run.label.partition(":")[0]
        if name in config.execution.parallel:
            continue
        # Without the recipe's own pass size, which is what is sought.
        fit = fit_run(replace(run, pass_tokens=0), trained_model(config, run.label), devices, memory)
        # Stages of one name share their settings, so the one with the least room decides.
        found[name] = min(found.get(name, fit), fit, key=lambda item: item.tokens)
    return found


def fitted_execution(execution: Execution, found: dict[str, Fit]) -> Execution:
    """The settings with those of each stage filled in that the recipe does not name itself.

    Raises ValueError where a reference is on a device that a chosen layout cannot use.
    """
    said = {name: getattr(execution, name) for name in ("parallel", "micro_instances", "pass_tokens")}
    windows = {name: fit.rows for name, fit in found.items() if name in _ON_A_MIX}
    tokens = {name: fit.tokens for name, fit in found.items() if name not in _ON_A_MIX}
    layouts = {name: fit.parallel for name, fit in found.items()}
    chosen = {"parallel": layouts, "micro_instances": windows, "pass_tokens": tokens}
    # What is said stands on the right of the union, so it wins.
    fitted = execution.model_copy(update={name: chosen[name] | said[name] for name in said})
    # A copy is not validated, and the layouts are new.
    fitted.check_references()
    return fitted


def fitted(config: RecipeConfig) -> RecipeConfig:
    """The recipe with `execution.fit` carried out; without it, or on a machine that lacks the device, as it is.

    Raises ValueError where a stage does not fit.
    """
    settings, execution = config.execution.fit, config.execution
    if settings is None:
        return config
    here = devices_here(execution.device)
    devices = settings.devices or (here[0] if here else None)
    memory = settings.memory or (here[1] if here else None)
    # A plan made on another machine shows what it can; a run is refused later, for want of the device.
    if devices is None or memory is None:
        return config
    return config.model_copy(update={"execution": fitted_execution(execution, fit_recipe(config, devices, memory))})


def devices_here(name: str) -> tuple[int, float] | None:
    """Number and bytes of the devices of this kind here; a CPU counts once, with half of its memory. None without one."""
    kind = torch.device(name).type
    if kind == "cpu":
        # A CPU's memory is shared with the system and other stages, so half is counted.
        return 1, psutil.virtual_memory().total / 2
    if kind != "cuda" or not torch.cuda.is_available():
        return None
    # The smallest device decides, since every member of a group holds as much.
    memory = min(torch.cuda.get_device_properties(place).total_memory for place in range(torch.cuda.device_count()))
    return torch.cuda.device_count(), float(memory)
