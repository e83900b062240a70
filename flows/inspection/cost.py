"""What a recipe would cost on given GPUs: steps, tokens, FLOPs, memory, hours, energy, CO2, water and money of each training
stage.

Source: FLOPs per token RECIPE A.7; energy, CO2 and water RECIPE J, paper section 6.5 and Table 19 (oracle
tests/golden/environment_table19.json). Everything follows from the recipe alone, so no store and no network is needed.

Simplifications: electricity is the devices' rated power over the whole time, times what a node draws over it; where the length
of texts is not known before they exist, tokens are the most there can be; sampling runs at the same MFU as training, which
flatters reinforcement learning.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from flows.config.known_sizes import prompts_of, rows_of, total_of
from flows.config.recipe_config import RecipeConfig, Reinforcement, StartPoint
from infra.settings import SiteSettings
from model.config import ModelConfig, Precision
from model.data.chat_batches import steps_for
from model.parallel.work_split import Shape, cut
from model.training.memory import Memory, memory_of
from model.training.throughput import PEAK_FLOPS
from tasks.data.chats import SyntheticChats
from tasks.data.mix import MixConfig
from tasks.data.pairs import PairsConfig
from tasks.training.anneal import AnnealConfig
from tasks.training.ppo import PPOConfig, ppo_rollouts
from tasks.training.pretrain import PretrainConfig
from tasks.training.rlvr import rollouts_of

BEFORE: dict[StartPoint, tuple[str, ...]] = {
    "base": ("pretrain",),
    "soup": ("pretrain", "anneal"),
    "sft": ("pretrain", "anneal", "sft"),
    "dpo": ("pretrain", "anneal", "sft", "dpo", "reward"),
    "reward": ("reward",),
    "rlvr": ("pretrain", "anneal", "sft", "dpo", "reward"),
}
"""Stages that a recipe which starts at a given checkpoint does not run."""

DEFAULT_GPU = "h100"
"""GPU of a plan that names none."""
DEFAULT_MFU = 0.4
"""Share of the peak FLOP/s that training reaches, where a plan names none."""

NODE_FACTOR = 1.38
"""Electricity of whole nodes over the rated power of their GPUs: Table 19's 131 MWh for the 7B, which was measured at the nodes,
over the 95 MWh that its pre-training and mid-training are at rated power and an MFU of 0.4 on H100."""

FORWARD = 1 / 3
"""Share of the forward pass in a training step's FLOPs."""


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
class Run:
    """One training stage, as far as cost goes."""

    label: str
    """The stage's label in the plan."""
    steps: int | None
    """Updates; None where they depend on data that does not exist yet."""
    rows: int
    """Windows, chats or answers of an update."""
    longest: int
    """Tokens of a row at most."""
    pass_tokens: int
    """Tokens that go through one GPU at once at most; 0 for its whole share."""
    precision: Precision
    at_most: bool = False
    """Whether rows are shorter than `longest`, so that tokens, and all that follows, are upper bounds."""
    work: float = 1.0
    """FLOPs over those of training on each token once."""
    trained_models: int = 1
    """Models that an update trains: 2 where a value model is trained beside the policy."""
    frozen_models: int = 0
    """Further copies of the weights in memory: the reference of reinforcement learning."""
    samples: bool = False
    """Whether the model writes what it learns from."""
    together: int = 1
    """Rows that stay on one GPU: 2 where pairs are compared."""

    @property
    def tokens(self) -> int | None:
        """Trained tokens."""
        return None if self.steps is None else self.steps * self.rows * self.longest

    @property
    def most_gpus(self) -> int:
        """GPUs that an update can be shared by."""
        return self.rows // self.together

    def tokens_at_once(self, gpus: int) -> int:
        """Tokens of one pass through one of so many GPUs: never less than what stays together."""
        least, units = self.together * self.longest, self.most_gpus
        together = min(units, max(1, self.pass_tokens // least)) if self.pass_tokens else units
        pieces = cut((Shape(together, least),) * math.ceil(units / together), gpus)
        return least * math.ceil(together / pieces[0].parts)


@dataclass(frozen=True)
class Cost:
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


def recipe_costs(config: RecipeConfig, hardware: Hardware) -> list[Cost]:
    """Cost of every training stage in the order of the flow."""
    return [cost(run, config.pretrain.model, hardware) for run in training_runs(config)]


def cost(run: Run, model: ModelConfig, hardware: Hardware) -> Cost:
    """One stage on the GPUs; those that its rows do not reach stay idle and are not counted."""
    gpus = min(hardware.gpus, run.most_gpus)
    flops = hours = kwh = co2 = water = money = None
    if run.tokens is not None:
        flops = run.work * run.tokens * model.flops_per_token(run.longest)
        hours = flops / (gpus * hardware.device.peak_flops * hardware.mfu) / 3600
        kwh = hardware.device.watts * hardware.node_factor * hours * gpus / 1000
        co2, water = environment(kwh / 1000, hardware.site)
        money = None if hardware.price is None else hardware.price * hours * gpus
    return Cost(
        run.label,
        run.steps,
        run.tokens,
        run.at_most,
        gpus,
        memory_of(
            model,
            run.precision,
            gpus,
            run.tokens_at_once(gpus),
            trained_models=run.trained_models,
            frozen_models=run.frozen_models,
            samples=run.samples,
        ),
        flops,
        hours,
        kwh,
        co2,
        water,
        money,
    )


def environment(megawatt_hours: float, site: SiteSettings) -> tuple[float, float]:
    """Tonnes of CO2 and kilolitres of water for electricity at the machines (paper section 6.5)."""
    drawn = megawatt_hours * site.pue
    return drawn * site.carbon, drawn * site.water


def training_runs(config: RecipeConfig) -> Iterator[Run]:
    """The training stages of a recipe under the labels that its plan has; those before its `start` are left out."""
    given = {name for place in config.start for name in BEFORE[place]}
    first = {"rlvr", "ppo"} if "rlvr" in config.start else set()
    yield from (run for run in _all_runs(config) if run.label.partition(":")[0] not in given and run.label not in first)


def _all_runs(config: RecipeConfig) -> Iterator[Run]:
    yield _window_run("pretrain", config.pretrain, config.pretrain_mix)
    shape = config.microanneal.anneal
    for candidate in config.candidates:
        yield _window_run(f"anneal:try-{candidate.name}", shape, config.candidate_mix(candidate))
    for seed in config.anneal_seeds:
        yield _window_run(f"anneal:{seed}", config.anneal, config.anneal_mix)
    for item in config.further_ingredients:
        yield _window_run(f"anneal:{item.name}", item.anneal(config.anneal), item.mix)
    yield from _tuning_runs(config)


def _window_run(label: str, stage: PretrainConfig | AnnealConfig, mix: MixConfig) -> Run:
    steps = stage.steps
    if steps is None and mix.requested_tokens is not None:
        tokens = math.ceil(mix.requested_tokens / mix.batch_tokens) * mix.batch_tokens
        steps = tokens // (stage.batch_size * stage.sequence_length)
    limit = stage.micro_instances * stage.sequence_length
    return Run(label, steps, stage.batch_size, stage.sequence_length, limit, stage.optim.precision)


def _tuning_runs(config: RecipeConfig) -> Iterator[Run]:
    window = config.pretrain.model.max_sequence_length
    sft, dpo, reward = config.sft, config.dpo, config.reward
    chats = total_of(
        source.count if isinstance(source, SyntheticChats) else rows_of(source.rows) for source in config.chats.sources
    )
    steps = None if chats is None else steps_for(chats, sft.batch_size, sft.epochs)
    yield Run("sft", steps, sft.batch_size, min(sft.max_tokens, window), sft.pass_tokens, sft.precision, at_most=True)
    pairs = pairs_of(config)
    trained = None if pairs is None else pairs - max(1, round(reward.held_out * pairs))
    for label, stage, count, work in (("dpo", dpo, pairs, 1 + FORWARD / dpo.epochs), ("reward", reward, trained, 1.0)):
        steps = None if count is None else steps_for(count, stage.batch_size, stage.epochs)
        longest = min(stage.max_tokens, window)
        shape = (label, steps, 2 * stage.batch_size, longest, stage.pass_tokens, stage.precision)
        yield Run(*shape, at_most=True, work=work, together=2)
    yield _reinforcement_run("", config.rlvr, window)
    for item in config.further_rlvr:
        yield _reinforcement_run(f":{item.name}", item.rlvr, window)


def _reinforcement_run(name: str, how: Reinforcement, window: int) -> Run:
    longest = min(how.max_prompt_tokens + how.max_new_tokens, window)
    if isinstance(how, PPOConfig):
        answers, updates = how.prompts_per_rollout, ppo_rollouts(how) * how.mini_batches * how.epochs
        # Two models are trained. An answer is sampled once and seen once by policy, reference and value model before.
        label, work, models = f"ppo{name}", 2 + 4 * FORWARD / how.epochs, 2
    else:
        answers, updates = how.prompts_per_rollout * how.samples, rollouts_of(how) * how.mini_batches * how.epochs
        # Every answer is sampled once and gets log-probabilities under policy and reference: three forward passes.
        label, work, models = f"rlvr{name}", 1 + 3 * FORWARD / how.epochs, 1
    return Run(
        label, updates, answers // how.mini_batches, longest, how.pass_tokens, how.precision,
        at_most=True, work=work, trained_models=models, frozen_models=1, samples=True,
    )  # fmt: skip


def pairs_of(config: RecipeConfig) -> int | None:
    """Preference pairs where they are known beforehand: one a prompt at most, or the rows that are read."""
    if isinstance(config.preferences, PairsConfig):
        return rows_of(config.preferences.rows)
    assert config.preference_prompts is not None
    return prompts_of(config.preference_prompts)
