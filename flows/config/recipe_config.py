"""The recipe as configuration: the stages' configs put together, one top-level name per stage.

Defaults are the published 7B values where a stage has them. A recipe file gives what differs (flows/config/files.py reads it).
"""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from flows.config.curation_trial import CurationTrialConfig
from flows.config.needed import PAST_FINETUNING, PAST_MIDTRAINING, PAST_PREFERENCES, begins_at, needed_sources
from flows.config.rules import check_recipe
from flows.synthesis import AnySynthesis, Synthesis, resolve_synthesis
from infra.settings import Execution
from model.config import Config
from tasks.data import chats as chats_stage
from tasks.data import collect as collect_stage
from tasks.data import pairs as pairs_stage
from tasks.data import prompts as prompts_stage
from tasks.data.chats import ChatsConfig
from tasks.data.classifier import ClassifierConfig
from tasks.data.collect import Source
from tasks.data.dedup import DedupConfig
from tasks.data.encode import EncodeConfig
from tasks.data.filter import FilterConfig
from tasks.data.filters.overlap import DecontaminateConfig
from tasks.data.filters.rules import resolved_rule
from tasks.data.label import LabelConfig
from tasks.data.mix import MixConfig, MixSource
from tasks.data.pairs import PairsConfig
from tasks.data.prompts import PromptsConfig
from tasks.data.rewrite import RewriteConfig
from tasks.evaluation.benchmarks import BenchmarkConfig, resolve_benchmark
from tasks.evaluation.evaluate import EvaluateConfig, SuiteConfig
from tasks.evaluation.rank import RankConfig
from tasks.training.anneal import AnnealConfig
from tasks.training.answers.model_judge import LanguageModelJudge
from tasks.training.dpo import DPOConfig
from tasks.training.fitting.mix_windows import MixTrainingConfig
from tasks.training.ppo import PPOConfig
from tasks.training.preferences import PreferencesConfig
from tasks.training.pretrain import PretrainConfig
from tasks.training.reward import RewardConfig
from tasks.training.rlvr import RLVRConfig
from tasks.training.sft import SFTConfig
from tasks.training.soup import SoupConfig

Training = TypeVar("Training", PretrainConfig, AnnealConfig)
StartPoint = Literal["base", "soup", "sft", "dpo", "reward", "rlvr"]
"""Where a recipe may begin with a model that it does not make itself: a checkpoint, or (`reward`) a reward model beside one."""


def _grpo_unless_said(value: Any) -> Any:
    return {"algorithm": "grpo"} | value if isinstance(value, dict) else value


Reinforcement = Annotated[
    Annotated[RLVRConfig | PPOConfig, Field(discriminator="algorithm")], BeforeValidator(_grpo_unless_said)
]
"""Told apart by `algorithm`; without one it is GRPO."""


def _sampled_unless_said(value: Any) -> Any:
    return {"kind": "sampled"} | value if isinstance(value, dict) else value


PreferenceSource = Annotated[
    Annotated[PreferencesConfig | PairsConfig, Field(discriminator="kind")], BeforeValidator(_sampled_unless_said)
]
"""Told apart by `kind`; without one they are sampled and judged here."""


def named_by_key(sources: Any) -> Any:
    """A mapping of sources whose names are their keys. ValueError for a source that is given another name inside."""
    if not isinstance(sources, dict):
        return sources
    for key, source in sources.items():
        if isinstance(source, dict) and source.get("name", key) != key:
            raise ValueError(
                f"{key} has name={source['name']!r}, but a source is called what its key is; leave name out"
            )
    return {key: source | {"name": key} if isinstance(source, dict) else source for key, source in sources.items()}


class CandidateConfig(Config):
    """One source that a micro-anneal tries; exactly one of `synthesize` and `collect` says where it comes from."""

    name: str
    """Name in the ranking and in mixes."""
    synthesize: Synthesis | None = None
    """Documents that are made: problems from a seed, worked problems with other numbers, programs that run, or what a
    language model writes for personas."""
    collect: Source | None = None
    """Documents read from files, a hub dataset or the installed Python."""
    rewrite: RewriteConfig | None = None
    """What a language model then makes of these documents; they keep the name that their origin gives them."""
    filter: FilterConfig = FilterConfig(rules=())
    """Rules that its documents must pass, such as the maths classifier (RECIPE C.7); none keeps everything."""
    ratio: float = Field(default=0.5, gt=0, lt=1)
    """Share of the candidate in its mix; the rest is web text (published micro-anneals: half and half). A candidate that is
    too small for it, even read `max_repetition` times, gives what it has, and the share of the web grows."""
    expected_tokens: int | None = Field(default=None, ge=1)
    """Tokens that it will have, as far as that is known (Table 5): for what a plan says of its mix; changes no result."""

    @model_validator(mode="before")
    @classmethod
    def _name_origin(cls, data: Any) -> Any:
        """What is read or made has the candidate's name, unless it is then rewritten and says a name of its own."""
        if not isinstance(data, dict) or "name" not in data:
            return data
        origins = {field: data[field] for field in ("collect", "synthesize") if isinstance(data.get(field), dict)}
        if not data.get("rewrite"):
            for field, origin in origins.items():
                if origin.get("name", data["name"]) != data["name"]:
                    raise ValueError(
                        f"{field}.name={origin['name']!r}, but the documents of candidate {data['name']!r} are called what it "
                        "is called; leave name out"
                    )
        return data | {field: {"name": data["name"]} | origin for field, origin in origins.items()}

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.synthesize is None) == (self.collect is None):
            raise ValueError(f"candidate {self.name!r} needs exactly one of synthesize and collect")
        return self

    @property
    def origin(self) -> AnySynthesis | Source:
        """Where its documents come from, under the candidate's name unless they are then rewritten."""
        origin = self.synthesize or self.collect
        assert origin is not None
        return origin if self.rewrite else origin.model_copy(update={"name": self.name})

    @property
    def rewriting(self) -> RewriteConfig | None:
        """How they are rewritten, under the candidate's name."""
        return self.rewrite and self.rewrite.model_copy(update={"name": self.name})


class IngredientConfig(Config):
    """An ingredient of the soup on a mix of its own; all else is what `anneal` says."""

    name: str = Field(pattern=r"^[\w.-]*[A-Za-z][\w.-]*$")
    """Name in labels and in the report, such as 300b."""
    seed: int
    """Seed of its data order (13B and 32B: 2662; RECIPE C.9)."""
    steps: int | None = Field(default=None, ge=1)
    """Updates (300B tokens in batches of 8.4M: 35,763; RECIPE E); None is one pass over its mix."""
    mix: MixConfig
    """What it reads."""

    def anneal(self, shape: AnnealConfig) -> AnnealConfig:
        """Its training, given that of the others."""
        return shape.model_copy(update={"seed": self.seed, "steps": self.steps})


class FurtherRLVRConfig(Config):
    """Reinforcement that goes on from the stage before, on other prompts (RECIPE H.2, H.3: 1B two stages, 13B three)."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Name in labels, such as math."""
    prompts: PromptsConfig
    """Prompts with verifiable answers."""
    rlvr: Reinforcement = RLVRConfig()
    """How; the KL term is to the checkpoint that this stage starts from."""


class MicroannealConfig(Config):
    """The sweep: what every candidate's anneal has in common (RECIPE E)."""

    web: str = "web"
    """The source that candidates are mixed with, by its name under `collect`."""
    tokens: int = Field(default=1_000_000_000, gt=0)
    """Tokens of each candidate's mix."""
    max_repetition: float = Field(default=4.0, ge=1)
    """Most passes over a candidate (published points: up to 4)."""
    anneal: AnnealConfig = AnnealConfig(seed=7201)
    """One epoch over the mix from the base checkpoint."""
    rank_by: str
    """Benchmark that ranks, by its name under `evaluation`."""


class EvaluationConfig(Config):
    """Benchmarks that every checkpoint is asked."""

    benchmarks: tuple[BenchmarkConfig, ...]
    """In the order they are run and reported."""
    suites: tuple[SuiteConfig, ...] = ()
    """Averages over benchmarks."""
    max_context: int = Field(default=2048, ge=2)
    """Tokens of prompt and answer together (RECIPE I.1)."""

    def of(self, label: str, *, chat: bool = False) -> EvaluateConfig:
        """The evaluation of one checkpoint."""
        return EvaluateConfig(label=label, chat=chat, **self.model_dump())

    def only(self, name: str) -> "EvaluationConfig":
        """The same with a single benchmark. Raises ValueError for a name that is not there."""
        chosen = tuple(benchmark for benchmark in self.benchmarks if benchmark.name == name)
        if not chosen:
            names = ", ".join(benchmark.name for benchmark in self.benchmarks)
            raise ValueError(f"microanneal.rank_by={name!r} is not a benchmark of the recipe; they are {names}")
        return self.model_copy(update={"benchmarks": chosen, "suites": ()})


class RecipeConfig(Config):
    """Everything that decides what a recipe makes, and (`execution`) how it runs here."""

    name: str
    """Name of the recipe; the file's name when not given."""
    execution: Execution = Execution()
    """Where and how: never part of an identity."""
    start: dict[StartPoint, str] = Field(default_factory=dict, max_length=2)
    """Begin at a checkpoint of the store, such as {base: ID}: it takes that place, and what only leads there is not run. A
    reward model may be given beside it, {dpo: ID, reward: ID}, or alone."""
    collect: Annotated[dict[str, Source], BeforeValidator(named_by_key)] = Field(min_length=1)
    """Raw sources by name: the key is the name that documents, mixes and the report give a source."""
    classifiers: dict[str, ClassifierConfig] = Field(default_factory=dict)
    """fastText classifiers that rules may ask, by name: `quality` is the rule's default, `education` that of fineweb_edu."""
    label: dict[str, LabelConfig] = Field(default_factory=dict)
    """Labels of a language model for a sample of the sources, by the classifier that then learns from that sample alone."""
    synthesize: Annotated[dict[str, Synthesis], BeforeValidator(named_by_key)] = Field(default_factory=dict)
    """Sources that are made, by name; pre-training reads them with the collected ones (stage 1 holds maths too, RECIPE C.2)."""
    filter: dict[str, FilterConfig]
    """Rules per source."""
    dedup: DedupConfig = DedupConfig()
    """Duplicates over all sources."""
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    """Overlap with the evaluation sets; which sets is filled in from `evaluation`."""
    decontaminate_messages: DecontaminateConfig = DecontaminateConfig(direction="item", max_overlap=0.5)
    """The same for chats, prompts and preference pairs (not published for them; half of an item's n-grams is our choice)."""
    encode: EncodeConfig = EncodeConfig()
    """Vocabulary of all token files."""
    pretrain_mix: MixConfig = MixConfig()
    """What pre-training reads."""
    pretrain: PretrainConfig = PretrainConfig()
    """Tokens to base model."""
    curation_trial: CurationTrialConfig | None = None
    """A small model on filtered against unfiltered text, beside pre-training: what curation brings; none by default."""
    candidates: tuple[CandidateConfig, ...] = Field(min_length=1)
    """Sources that micro-anneals compare and mid-training may use."""
    microanneal: MicroannealConfig
    """The sweep over the candidates."""
    anneal_mix: MixConfig
    """What mid-training reads; its `winner` names the candidate, or takes the first of the ranking."""
    anneal: AnnealConfig = AnnealConfig()
    """One ingredient; the seed is each of `anneal_seeds`."""
    anneal_seeds: tuple[int, ...] = Field(default=(42, 42069, 666), min_length=1)
    """Data-order seeds of the soup's ingredients (RECIPE C.9). With a single ingredient there is no soup: post-training
    starts at that anneal (1B: 42)."""
    further_ingredients: tuple[IngredientConfig, ...] = ()
    """Ingredients on other mixes than `anneal_mix` (13B and 32B: one on 300B tokens)."""
    soup: SoupConfig = SoupConfig()
    """Uniform average of the ingredients."""
    chats: ChatsConfig = ChatsConfig()
    """Finetuning data."""
    sft: SFTConfig = SFTConfig()
    """Supervised finetuning."""
    preference_prompts: PromptsConfig | None = None
    """Prompts that preference pairs are sampled for; released pairs need none."""
    preferences: PreferenceSource = PreferencesConfig()
    """Sampling, judging and pairing, or with `kind: pairs` the rows to read instead."""
    dpo: DPOConfig = DPOConfig()
    """Preference tuning."""
    reward: RewardConfig = RewardConfig()
    """Reward model."""
    rlvr_prompts: PromptsConfig = PromptsConfig()
    """Prompts with verifiable answers."""
    rlvr: Reinforcement = RLVRConfig()
    """Reinforcement learning with verifiable rewards, by GRPO (1B, 32B) or with `algorithm: ppo` (7B, 13B)."""
    further_rlvr: tuple[FurtherRLVRConfig, ...] = ()
    """Stages of reinforcement after the first, each from where the one before ended."""
    evaluation: EvaluationConfig
    """What every checkpoint is asked."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        check_recipe(self)
        return self

    @property
    def asked_prompts(self) -> PromptsConfig:
        """The prompts to sample preference pairs for; a language model judges answers without a ground truth too."""
        assert self.preference_prompts is not None and isinstance(self.preferences, PreferencesConfig)
        if isinstance(self.preferences.judge, LanguageModelJudge):
            return self.preference_prompts.model_copy(update={"ground_truth": "optional"})
        return self.preference_prompts

    def _pinned_preference_prompts(self) -> PromptsConfig | None:
        """The prompts for preference pairs, pinned where pairs are sampled."""
        sampled = isinstance(self.preferences, PreferencesConfig) and not begins_at(self, PAST_PREFERENCES)
        return (
            prompts_stage.resolve(self.preference_prompts)
            if sampled and self.preference_prompts
            else self.preference_prompts
        )

    def classifier_sources(self, name: str) -> list[str]:
        """The sources that a classifier's examples come from: those it names, or all collected ones where a class names none."""
        return list(self.classifiers[name].sources) or list(self.collect)

    @property
    def starts_after_midtraining(self) -> bool:
        """Whether the recipe begins with a checkpoint that is ready for post-training, or past its beginning."""
        return begins_at(self, PAST_MIDTRAINING)

    def encode_source(self, name: str) -> EncodeConfig:
        """How one source is encoded."""
        return self.encode.model_copy(update={"source": name})

    @property
    def pretraining_mix(self) -> MixConfig:
        """What pre-training reads, in its windows and batches."""
        return read_by(self.pretrain, self.pretrain_mix)

    def annealing_mix(self, mix: MixConfig) -> MixConfig:
        """What an ingredient of the soup reads, in the windows and batches of all of them."""
        return read_by(self.anneal, mix)

    def candidate_mix(self, candidate: CandidateConfig) -> MixConfig:
        """The mix of one micro-anneal."""
        sweep = self.microanneal
        mix = MixConfig(
            sources=(
                MixSource(source=sweep.web, ratio=1 - candidate.ratio, max_repetition_ratio=sweep.max_repetition),
                MixSource(source=candidate.name, ratio=candidate.ratio, max_repetition_ratio=sweep.max_repetition),
            ),
            requested_tokens=sweep.tokens,
            fill=sweep.web,
        )
        return read_by(sweep.anneal, mix)

    def rank(self) -> RankConfig:
        """How the sweep is ranked."""
        names = tuple(candidate.name for candidate in self.candidates)
        return RankConfig(benchmark=self.microanneal.rank_by, candidates=names)

    def resolved(self) -> "RecipeConfig":
        """The recipe with everything pinned that it will read: package versions, file hashes, dataset commits."""
        evaluation = self.evaluation.model_copy(
            update={"benchmarks": tuple(resolve_benchmark(item) for item in self.evaluation.benchmarks)}
        )
        read = needed_sources(self)
        late, tuned = self.starts_after_midtraining, begins_at(self, PAST_FINETUNING)
        return self.model_copy(
            update={
                "collect": {
                    name: collect_stage.resolve(source) if name in read else source
                    for name, source in self.collect.items()
                },
                "filter": {name: resolved_filter(rules) for name, rules in self.filter.items()},
                "synthesize": {
                    name: resolve_synthesis(source) if name in read else source
                    for name, source in self.synthesize.items()
                },
                "candidates": self.candidates if late else tuple(resolved_candidate(item) for item in self.candidates),
                "chats": self.chats if tuned else chats_stage.resolve(self.chats),
                "preference_prompts": self._pinned_preference_prompts(),
                "preferences": self.preferences
                if begins_at(self, PAST_PREFERENCES)
                else resolved_preferences(self.preferences),
                "rlvr_prompts": self.rlvr_prompts if "rlvr" in self.start else prompts_stage.resolve(self.rlvr_prompts),
                "further_rlvr": tuple(
                    item.model_copy(update={"prompts": prompts_stage.resolve(item.prompts)})
                    for item in self.further_rlvr
                ),
                "pretrain": with_tasks(self.pretrain, evaluation),
                "anneal": with_tasks(self.anneal, evaluation),
                "microanneal": self.microanneal.model_copy(
                    update={"anneal": with_tasks(self.microanneal.anneal, evaluation)}
                ),
                "evaluation": evaluation,
                "decontaminate": self.decontaminate.model_copy(update={"benchmarks": evaluation.benchmarks}),
                "decontaminate_messages": self.decontaminate_messages.model_copy(
                    update={"benchmarks": evaluation.benchmarks}
                ),
            }
        )


def read_by(training: MixTrainingConfig, mix: MixConfig) -> MixConfig:
    """A mix in the windows and batches of the training that reads it."""
    return mix.read_in(training.sequence_length, training.batch_size)


def with_tasks(training: Training, evaluation: EvaluationConfig) -> Training:
    """A training with the benchmarks that it asks on its way."""
    return training.model_copy(update={"in_loop": training.in_loop.filled(evaluation.benchmarks)})


def resolved_candidate(candidate: CandidateConfig) -> CandidateConfig:
    """A candidate with what it will read pinned."""
    candidate = candidate.model_copy(update={"filter": resolved_filter(candidate.filter)})
    if candidate.synthesize:
        return candidate.model_copy(update={"synthesize": resolve_synthesis(candidate.synthesize)})
    assert candidate.collect is not None
    return candidate.model_copy(update={"collect": collect_stage.resolve(candidate.collect)})


def resolved_preferences(config: PreferencesConfig | PairsConfig) -> PreferencesConfig | PairsConfig:
    """Preferences with the rows pinned that are read instead of sampled."""
    return pairs_stage.resolve(config) if isinstance(config, PairsConfig) else config


def resolved_filter(config: FilterConfig) -> FilterConfig:
    """Rules with the lists and checkpoints that they read pinned."""
    return config.model_copy(update={"rules": tuple(resolved_rule(rule) for rule in config.rules)})
