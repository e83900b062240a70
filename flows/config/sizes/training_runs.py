"""The size of every training stage of a recipe, told before it runs: updates, rows, tokens and FLOPs.

`olmo2 plan` shows these numbers and `olmo2 plan --gpus` prices them, so both say the same. They follow from the recipe alone, or
from what its stages have made already, which is more exact. FLOPs per token: RECIPE A.7.

Example: `sum(run.tokens or 0 for run in training_runs(load("laptop")))`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType

from flows.config.parts import Reinforcement, StartPoint
from flows.config.recipe_config import RecipeConfig
from flows.config.sizes.known_sizes import prompts_of, rows_of, total_of
from infra.execution.plan import PlanRow
from infra.records.artifact import Artifact
from infra.session import StageEstimate
from infra.settings import ComputeSettings
from model.config import ModelConfig, Precision
from model.data.chat_batches import steps_for
from model.parallel.work_split import Shape, cut_micro_batches
from model.training.measuring.memory import Memory, memory_of
from tasks.artifacts import Chats, Mix, Preferences
from tasks.data.mix import MixConfig
from tasks.data.post_training.chats import SyntheticChats
from tasks.data.post_training.pairs import PairsConfig
from tasks.training.anneal import AnnealConfig
from tasks.training.ppo import PPOConfig, ppo_rollouts
from tasks.training.pretrain import PretrainConfig
from tasks.training.rlvr import rollouts_of

_Made = Mapping[str, Artifact]
"""Artifacts that exist already, by the label of their stage."""

BEFORE: dict[StartPoint, tuple[str, ...]] = {
    "base": ("pretrain",),
    "soup": ("pretrain", "anneal"),
    "sft": ("pretrain", "anneal", "sft"),
    "dpo": ("pretrain", "anneal", "sft", "dpo", "reward"),
    "reward": ("reward",),
    "rlvr": ("pretrain", "anneal", "sft", "dpo", "reward"),
}
"""Stages that a recipe which starts at a given checkpoint does not run."""

TRIALS = ("pretrain:trial-unfiltered", "pretrain:trial-filtered")
"""Trainings of the trial of curation (`flows/phases/curation_trial.py`)."""

FORWARD = 1 / 3
"""Share of the forward pass in a training step's FLOPs."""


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
    """Models that an update trains: 2 where a value model is trained with the policy."""
    reference: str = ""
    """Where the frozen reference of reinforcement learning is (`execution.reference`); empty where there is none."""
    samples: bool = False
    """Whether the model writes what it learns from."""
    together: int = 1
    """Rows that stay on one GPU: 2 where pairs are compared."""

    def reference_bytes(self, model: ModelConfig, shards: int) -> float:
        """fp32 weights of a frozen reference where it is: a process's shard, or the whole on a device of its own."""
        if not self.reference:
            return 0.0
        return 4.0 * model.parameters / (shards if self.reference in ("policy", "host") else 1)

    @property
    def tokens(self) -> int | None:
        """Trained tokens."""
        return None if self.steps is None else self.steps * self.rows * self.longest

    def flops(self, model: ModelConfig) -> float | None:
        """FLOPs of the whole stage for a model of this shape (RECIPE A.7)."""
        return None if self.tokens is None else self.work * self.tokens * model.flops_per_token(self.longest)

    def estimate(self, model: ModelConfig) -> StageEstimate:
        """What a plan says of the stage before it runs; `tokens_at_most` where rows may be shorter than their limit."""
        known: StageEstimate = {"parameters": model.parameters, "flops_per_token": model.flops_per_token(self.longest)}
        if self.tokens is None:
            return known
        known["steps"], known["flops"] = self.steps, self.flops(model)
        known["tokens_at_most" if self.at_most else "tokens"] = self.tokens
        return known

    def memory(self, model: ModelConfig, shards: int, tokens: int) -> Memory:
        """Memory of a GPU whose state is one of so many shards, with so many tokens going through it at once."""
        # A reference that is elsewhere takes nothing here while gradients are held: a pass that brings it from the host comes
        # before they are made, and takes less than they do.
        return memory_of(
            model,
            self.precision,
            shards,
            tokens,
            trained_models=self.trained_models,
            frozen_models=int(self.reference == "policy"),
            samples=self.samples,
        )

    @property
    def most_gpus(self) -> int:
        """GPUs that an update can be shared by."""
        return self.rows // self.together

    def tokens_at_once(self, gpus: int) -> int:
        """Tokens of one pass through one of so many GPUs: never less than what stays together."""
        least, units = self.together * self.longest, self.most_gpus
        together = min(units, max(1, self.pass_tokens // least)) if self.pass_tokens else units
        # Windows of a pass are spread over the devices, and a device has at least one.
        pieces = cut_micro_batches((Shape(together, least),) * math.ceil(units / together), gpus)
        return least * math.ceil(together / pieces[0].parts)


def training_runs(config: RecipeConfig, made: _Made = MappingProxyType({})) -> Iterator[Run]:
    """The training stages of a recipe under the labels that its plan has; those before its `start` are left out.

    Sizes are those of `made`, artifacts by label, where these exist, else what the recipe alone says.
    """
    given = {name for place in config.start for name in BEFORE[place]}
    # Where the recipe starts at a reinforced model, its first stage of reinforcement is that model.
    first = {"rlvr", "ppo"} if "rlvr" in config.start else set()
    for run in chain(_all_runs(config, made), _grid_runs(config, made)):
        if run.label.partition(":")[0] not in given and run.label not in first:
            yield run


def _grid_runs(config: RecipeConfig, made: _Made) -> Iterator[Run]:
    """Every combination and seed of the grids: what the stage would be with these settings."""
    for section, grid in config.grid.items():
        for name, how in grid.points(getattr(config, section)).items():
            # Without grids, or a grid's own runs would be counted again for each of its points.
            alone = config.model_copy(update={section: how, "grid": {}})
            stages = {section, "ppo"} if section == "rlvr" else {section}
            # The first stage of reinforcement is named `rlvr` or `ppo` by its algorithm.
            run = next(run for run in _all_runs(alone, made) if run.label in stages)
            for suffix in grid.labels(name):
                yield replace(run, label=f"{run.label}:{suffix}")


def trained_model(config: RecipeConfig, label: str) -> ModelConfig:
    """The model that a training of the plan trains."""
    if config.curation_trial and label in TRIALS:
        return config.curation_trial.pretrain.model
    compared = config.comparison.trainings.get(label) if config.comparison else None
    return (compared or config.pretrain).model


def with_estimates(rows: Iterable[PlanRow], config: RecipeConfig) -> list[PlanRow]:
    """The rows of a plan, those of trainings with what is known of their size (see `Run.estimate`)."""
    rows = list(rows)
    made = {row.label: row.artifact for row in rows if row.artifact is not None}
    sizes = {run.label: run.estimate(trained_model(config, run.label)) for run in training_runs(config, made)}
    return [replace(row, estimate=sizes.get(row.label, row.estimate)) for row in rows]


def _all_runs(config: RecipeConfig, made: _Made) -> Iterator[Run]:
    pretraining, annealing = config.execution.compute("pretrain"), config.execution.compute("anneal")
    mix = made.get("mix:pretrain", config.pretraining_mix)
    if config.comparison:
        for label, how in config.comparison.trainings.items():
            yield _window_run(label, how, mix, pretraining)
        return
    yield _window_run("pretrain", config.pretrain, mix, pretraining)
    if config.curation_trial:
        # Its steps are given, so no mix has to say how many there are.
        for label in TRIALS:
            yield _window_run(label, config.curation_trial.pretrain, mix, pretraining)
    yield from _trial_runs(config, made, annealing)
    shared = made.get("mix:anneal", config.annealing_mix(config.anneal_mix))
    for seed in config.anneal_seeds:
        yield _window_run(f"anneal:{seed}", config.anneal, shared, annealing)
    for item in config.further_ingredients:
        mix = made.get(f"mix:anneal-{item.name}", config.annealing_mix(item.mix))
        yield _window_run(f"anneal:{item.name}", item.anneal(config.anneal), mix, annealing)
    yield from _tuning_runs(config, made)


def _trial_runs(config: RecipeConfig, made: _Made, annealing: ComputeSettings) -> Iterator[Run]:
    """Every candidate with every budget and seed: what no budget before it has stopped."""
    sweep = config.microanneal
    for tokens in sweep.every_budget:
        for candidate in config.candidates:
            mix = made.get(f"mix:{sweep.suffix(candidate.name, tokens)}", config.candidate_mix(candidate, tokens))
            for seed in sweep.every_seed:
                label = f"anneal:{sweep.suffix(candidate.name, tokens, seed)}"
                yield _window_run(label, sweep.anneal, mix, annealing)


def _window_run(
    label: str, stage: PretrainConfig | AnnealConfig, mix: MixConfig | Artifact, compute: ComputeSettings
) -> Run:
    """A training on a mix: `steps` updates, or one pass over what is not held out of it."""
    if isinstance(mix, Mix):
        tokens, sources = mix.tokens, len(mix.shares)
    else:
        assert isinstance(mix, MixConfig), mix
        tokens, sources = mix.rounded_tokens, len(mix.sources)
    steps = stage.steps
    if steps is None and tokens is not None:
        # Whole windows only; those held out for the in-loop loss are read by no step.
        steps = (tokens // stage.sequence_length - sources * stage.in_loop.windows) // stage.batch_size
    limit = compute.micro_instances * stage.sequence_length
    return Run(label, steps, stage.batch_size, stage.sequence_length, limit, stage.optim.activations)


def _tuning_runs(config: RecipeConfig, made: _Made) -> Iterator[Run]:
    window = config.pretrain.model.max_sequence_length
    sft, dpo, reward = config.sft, config.dpo, config.reward

    def limit(stage: str) -> int:
        return config.execution.compute(stage).pass_tokens

    chats = chats_of(config, made)
    steps = None if chats is None else steps_for(chats, sft.batch_size, sft.epochs)
    rows = sft.batch_size if chats is None else min(sft.batch_size, chats)
    yield Run("sft", steps, rows, min(sft.max_tokens, window), limit("sft"), sft.precision, at_most=True)
    pairs = pairs_of(config, made)
    # The reward model holds at least one pair out, whatever its share says.
    trained = None if pairs is None else pairs - max(1, round(reward.held_out * pairs))
    # DPO reads the reference's log-probabilities once for all epochs: one forward pass, shared by them.
    for label, stage, count, work in (("dpo", dpo, pairs, 1 + FORWARD / dpo.epochs), ("reward", reward, trained, 1.0)):
        steps = None if count is None else steps_for(count, stage.batch_size, stage.epochs)
        # A pair is two rows, the chosen and the rejected answer.
        rows = 2 * (stage.batch_size if count is None else min(stage.batch_size, count))
        shape = (label, steps, rows, min(stage.max_tokens, window), limit(label), stage.precision)
        yield Run(*shape, at_most=True, work=work, together=2)
    yield _reinforcement_run("", config.rlvr, window, config.execution.compute)
    for item in config.further_rlvr:
        yield _reinforcement_run(f":{item.name}", item.rlvr, window, config.execution.compute)


def _reinforcement_run(name: str, how: Reinforcement, window: int, compute: Callable[[str], ComputeSettings]) -> Run:
    longest = min(how.max_prompt_tokens + how.max_new_tokens, window)
    if isinstance(how, PPOConfig):
        answers, updates = how.prompts_per_rollout, ppo_rollouts(how) * how.mini_batches * how.epochs
        # Two models are trained. An answer is sampled once and seen once by policy, reference and value model before.
        stage, work, models = "ppo", 2 + 4 * FORWARD / how.epochs, 2
    else:
        answers, updates = how.prompts_per_rollout * how.samples, rollouts_of(how) * how.mini_batches * how.epochs
        # Every answer is sampled once and gets log-probabilities under policy and reference: three forward passes.
        stage, work, models = "rlvr", 1 + 3 * FORWARD / how.epochs, 1
    settings = compute(stage)
    return Run(
        f"{stage}{name}", updates, answers // how.mini_batches, longest, settings.pass_tokens, how.precision,
        at_most=True, work=work, trained_models=models, reference=settings.reference, samples=True,
    )  # fmt: skip


def chats_of(config: RecipeConfig, made: _Made) -> int | None:
    """Finetuning chats: those that are made, else those that are asked for, else the rows that are read."""
    for label in ("decontaminate_chats", "chats"):
        if isinstance(found := made.get(label), Chats):
            return found.chats
    return total_of(
        source.count if isinstance(source, SyntheticChats) else rows_of(source.rows) for source in config.chats.sources
    )


def pairs_of(config: RecipeConfig, made: _Made) -> int | None:
    """Preference pairs: those that are made, else one a prompt at most, or the rows that are read."""
    for label in ("decontaminate_pairs", "pairs", "preferences"):
        if isinstance(found := made.get(label), Preferences):
            return found.pairs
    if isinstance(config.preferences, PairsConfig):
        return rows_of(config.preferences.rows)
    assert config.preference_prompts is not None
    return prompts_of(config.preference_prompts)
