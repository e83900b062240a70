"""What a recipe would cost on given GPUs: steps, tokens, FLOPs, memory, hours, energy, CO2, water and money of each training
stage.

Source: FLOPs per token RECIPE A.7; energy, CO2 and water RECIPE J, paper section 6.5 and Table 19 (oracle
tests/golden/environment_table19.json). Everything follows from the recipe alone, so no store and no network is needed.

Simplifications: electricity is the devices' rated power over the whole time, times what a node draws over it. Where the
length of texts is not known before they exist, tokens are the most there can be. Sampling runs at the same MFU as training,
which flatters reinforcement learning.
"""

import math
from dataclasses import dataclass, field

from flows.config.recipe_config import RecipeConfig
from flows.config.sizes.training_runs import Run, trained_model, training_runs
from infra.records.footprint import impact
from infra.settings import SiteSettings
from model.config import ModelConfig
from model.training.measuring.gpus import PEAK_FLOPS
from model.training.measuring.memory import Memory

DEFAULT_GPU = "h100"
"""GPU of a plan that names none."""
DEFAULT_MFU = 0.4
"""Share of the peak FLOP/s that training reaches, where a plan names none."""

NODE_FACTOR = 1.38
"""Electricity of whole nodes over the rated power of their GPUs. Table 19's 131 MWh for the 7B was measured at the nodes. At
rated power and an MFU of 0.4 on H100, its pre-training and mid-training are 95 MWh."""


@dataclass(frozen=True)
class Device:
    """One GPU."""

    peak_flops: float
    """Dense bf16 FLOP/s, without sparsity."""
    watts: float
    """Rated power."""
    memory: float | None = None
    """Bytes; None where not known."""


DEVICES = {
    "a100": Device(PEAK_FLOPS["A100"], 400.0, 80e9),
    "h100": Device(PEAK_FLOPS["H100"], 700.0, 80e9),
}
"""SXM modules of 80 GB, as in NVIDIA's data sheets "A100 Tensor Core GPU" and "H100 Tensor Core GPU" (1,979 TFLOP/s with
sparsity, 989 without)."""


@dataclass(frozen=True)
class Hardware:
    """What the plan is asked for."""

    gpus: int
    device: Device
    mfu: float = DEFAULT_MFU
    """Share of the peak FLOP/s that training reaches."""
    site: SiteSettings = field(default_factory=SiteSettings)
    """Where."""
    price: float | None = None
    """Money per GPU and hour."""
    node_factor: float = NODE_FACTOR
    """What a node draws, over the rated power of its GPUs."""

    def __post_init__(self) -> None:
        """Raises ValueError for values that mean nothing."""
        if self.gpus < 1:
            raise ValueError(f"gpus={self.gpus}: at least one is needed")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu={self.mfu} is a share of the peak: give a value above 0 and at most 1, such as 0.4")
        for name, value in (("peak_flops", self.device.peak_flops), ("watts", self.device.watts)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value:g}: give a number above 0")
        # Each has its own least: a building cannot draw less than its machines.
        least = {"pue": 1, "carbon": 0, "water": 0, "price": 0, "node_factor": 1}
        given = self.site.model_dump() | {
            "price": 0 if self.price is None else self.price,
            "node_factor": self.node_factor,
        }
        for name, value in given.items():
            if not (value >= least[name] and math.isfinite(value)):
                why = ", since a building draws at least what its machines do" if name == "pue" else ""
                raise ValueError(f"{name}={value:g}: give a number of {least[name]} or more{why}")


@dataclass(frozen=True)
class StageCost:
    """What one stage costs; None where its number of steps is not known."""

    label: str
    steps: int | None
    tokens: int | None
    at_most: bool
    gpus: int
    memory: Memory
    flops: float | None
    hours: float | None
    kwh: float | None
    """Electricity of the nodes; PUE is applied to CO2 and water, as in the paper's table."""
    co2_tonnes: float | None
    water_kilolitres: float | None
    money: float | None
    reference: str = ""
    """Where a frozen reference is; on `policy`, the policy's device, it is part of `memory`. Empty where there is none."""
    reference_bytes: float = 0.0
    """What it takes there for each GPU."""


def recipe_costs(config: RecipeConfig, hardware: Hardware) -> list[StageCost]:
    """Cost of every training stage in the order of the flow."""
    return [cost(run, trained_model(config, run.label), hardware) for run in training_runs(config)]


def cost(run: Run, model: ModelConfig, hardware: Hardware) -> StageCost:
    """One stage on the GPUs; those that its rows do not reach stay idle and are not counted."""
    # An update has only so many rows to share.
    gpus = min(hardware.gpus, run.most_gpus)
    flops = hours = kwh = co2 = water = money = None
    if run.tokens is not None:
        # Every cost below has the FLOPs as a factor, so unknown steps leave all of them unknown.
        flops = run.flops(model) or 0.0
        # MFU is the share of the peak that counts, so time is FLOPs over GPUs, peak and MFU.
        hours = flops / (gpus * hardware.device.peak_flops * hardware.mfu) / 3600
        # Rated power over the whole time: measured draw is lower and depends on the load.
        kwh = hardware.device.watts * hardware.node_factor * hours * gpus / 1000
        co2, water = environment(kwh / 1000, hardware.site)
        money = None if hardware.price is None else hardware.price * hours * gpus
    return StageCost(
        run.label,
        run.steps,
        run.tokens,
        run.at_most,
        gpus,
        run.memory(model, gpus, run.tokens_at_once(gpus)),
        flops,
        hours,
        kwh,
        co2,
        water,
        money,
        run.reference,
        run.reference_bytes(model, gpus),
    )


def environment(megawatt_hours: float, site: SiteSettings) -> tuple[float, float]:
    """Tonnes of CO2 and kilolitres of water for electricity at the machines (paper section 6.5)."""
    # PUE counts here and not in kWh: the table's electricity is that of the machines.
    return impact(megawatt_hours, site.pue, site.carbon), impact(megawatt_hours, site.pue, site.water)
