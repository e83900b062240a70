"""The recipe as configuration: the stages' configs put together, one top-level name per stage.

Defaults are the published 7B values where a stage has them. A recipe file gives what differs (flows/loading.py reads it).
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from infra.settings import Execution
from model.config import Config
from tasks.data import chats as chats_stage
from tasks.data import collect as collect_stage
from tasks.data import prompts as prompts_stage
from tasks.data.chats import ChatsConfig
from tasks.data.classifier import ClassifierConfig
from tasks.data.collect import Source
from tasks.data.decontaminate import DecontaminateConfig
from tasks.data.dedup import DedupConfig
from tasks.data.encode import EncodeConfig
from tasks.data.filter import FilterConfig
from tasks.data.mix import MixConfig, MixSource
from tasks.data.prompts import PromptsConfig
from tasks.data.synthesize import SynthesizeConfig
from tasks.evaluation.benchmarks import BenchmarkConfig, resolve_benchmark
from tasks.evaluation.evaluate import EvaluateConfig, SuiteConfig
from tasks.evaluation.rank import RankConfig
from tasks.training.anneal import AnnealConfig
from tasks.training.dpo import DPOConfig
from tasks.training.preferences import PreferencesConfig
from tasks.training.pretrain import PretrainConfig
from tasks.training.reward import RewardConfig
from tasks.training.rlvr import RLVRConfig
from tasks.training.sft import SFTConfig
from tasks.training.soup import SoupConfig

StartPoint = Literal["base", "soup", "sft", "dpo"]
"""Where a recipe may begin with a checkpoint that it does not make itself."""


class CandidateConfig(Config):
    """One source that a micro-anneal tries; exactly one of `synthesize` and `collect` says where it comes from."""

    name: str
    """Name in the ranking and in mixes."""
    synthesize: SynthesizeConfig | None = None
    """Problems made from a seed."""
    collect: Source | None = None
    """Documents read from files, a hub dataset or the installed Python."""
    ratio: float = Field(default=0.5, gt=0, lt=1)
    """Share of the candidate in its mix; the rest is web text (published micro-anneals: half and half)."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.synthesize is None) == (self.collect is None):
            raise ValueError(f"candidate {self.name!r} needs exactly one of synthesize and collect")
        return self

    @property
    def problems(self) -> SynthesizeConfig | None:
        """The synthetic source, under the candidate's name."""
        return self.synthesize and self.synthesize.model_copy(update={"name": self.name})


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
    batch_size: int = Field(default=64, ge=1)
    """Answers generated at once."""

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
    start: dict[StartPoint, str] = Field(default_factory=dict, max_length=1)
    """Begin at a checkpoint of the store, such as {base: ID}: it takes that place, and what only leads there is not run."""
    collect: dict[str, Source] = Field(min_length=1)
    """Raw sources by name."""
    classifier: ClassifierConfig | None = None
    """The quality classifier that filters may use."""
    synthesize: dict[str, SynthesizeConfig] = Field(default_factory=dict)
    """Sources made from a seed that pre-training reads beside the collected ones (stage 1 holds maths too, RECIPE C.2)."""
    filter: dict[str, FilterConfig]
    """Rules per source."""
    dedup: DedupConfig = DedupConfig()
    """Exact duplicates over all sources."""
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    """Overlap with the evaluation sets; which sets is filled in from `evaluation`."""
    encode: EncodeConfig = EncodeConfig()
    """Vocabulary of all token files."""
    pretrain_mix: MixConfig = MixConfig()
    """What pre-training reads."""
    pretrain: PretrainConfig = PretrainConfig()
    """Tokens to base model."""
    candidates: tuple[CandidateConfig, ...] = Field(min_length=1)
    """Sources that micro-anneals compare and mid-training may use."""
    microanneal: MicroannealConfig
    """The sweep over the candidates."""
    anneal_mix: MixConfig
    """What mid-training reads; its `winner` names the candidate, or takes the first of the ranking."""
    anneal: AnnealConfig = AnnealConfig()
    """One ingredient; the seed is each of `anneal_seeds`."""
    anneal_seeds: tuple[int, ...] = Field(default=(42, 42069, 666), min_length=2)
    """Data-order seeds of the soup's ingredients (RECIPE C.9)."""
    soup: SoupConfig = SoupConfig()
    """Uniform average of the ingredients."""
    chats: ChatsConfig = ChatsConfig()
    """Finetuning data."""
    sft: SFTConfig = SFTConfig()
    """Supervised finetuning."""
    preference_prompts: PromptsConfig
    """Prompts that preference pairs are sampled for."""
    preferences: PreferencesConfig = PreferencesConfig()
    """Sampling, judging and pairing."""
    dpo: DPOConfig = DPOConfig()
    """Preference tuning."""
    reward: RewardConfig = RewardConfig()
    """Reward model."""
    rlvr_prompts: PromptsConfig = PromptsConfig()
    """Prompts with verifiable answers."""
    rlvr: RLVRConfig = RLVRConfig()
    """Reinforcement learning with verifiable rewards."""
    evaluation: EvaluationConfig
    """What every checkpoint is asked."""

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if self.collect.keys() != self.filter.keys():
            raise ValueError(
                f"filter has rules for {', '.join(self.filter)}, but the sources are {', '.join(self.collect)}; "
                "give every source its rules (an empty list keeps everything)"
            )
        if self.microanneal.web not in self.collect:
            raise ValueError(
                f"microanneal.web={self.microanneal.web!r} is not a source; they are {', '.join(self.collect)}"
            )
        names = [*self.collect, *self.synthesize, *(candidate.name for candidate in self.candidates)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources and candidates share the names {', '.join(twice)}; every source needs its own")
        self.evaluation.only(self.microanneal.rank_by)
        return self

    def judged(self, name: str) -> bool:
        """Whether a source's rules ask the quality classifier."""
        return any(rule.kind == "quality" for rule in self.filter[name].rules)

    @property
    def starts_after_midtraining(self) -> bool:
        """Whether the recipe begins with a checkpoint that is ready for post-training, or past its beginning."""
        return not self.start.keys().isdisjoint(("soup", "sft", "dpo"))

    def encode_source(self, name: str) -> EncodeConfig:
        """How one source is encoded."""
        return self.encode.model_copy(update={"source": name})

    def candidate_mix(self, candidate: CandidateConfig) -> MixConfig:
        """The mix of one micro-anneal."""
        sweep, shape = self.microanneal, self.microanneal.anneal
        return MixConfig(
            sources=(
                MixSource(source=sweep.web, ratio=1 - candidate.ratio, max_repetition_ratio=sweep.max_repetition),
                MixSource(source=candidate.name, ratio=candidate.ratio, max_repetition_ratio=sweep.max_repetition),
            ),
            requested_tokens=sweep.tokens,
            sequence_length=shape.sequence_length,
            batch_tokens=shape.sequence_length * shape.batch_instances,
        )

    def rank(self) -> RankConfig:
        """How the sweep is ranked."""
        names = tuple(candidate.name for candidate in self.candidates)
        return RankConfig(benchmark=self.microanneal.rank_by, candidates=names)

    def resolved(self) -> "RecipeConfig":
        """The recipe with everything pinned that it will read: package versions, file hashes, dataset commits."""
        evaluation = self.evaluation.model_copy(
            update={"benchmarks": tuple(resolve_benchmark(item) for item in self.evaluation.benchmarks)}
        )
        return self.model_copy(
            update={
                "collect": {name: collect_stage.resolve(source) for name, source in self.collect.items()},
                "candidates": tuple(resolved_candidate(item) for item in self.candidates),
                "chats": chats_stage.resolve(self.chats),
                "preference_prompts": prompts_stage.resolve(self.preference_prompts),
                "rlvr_prompts": prompts_stage.resolve(self.rlvr_prompts),
                "evaluation": evaluation,
                "decontaminate": self.decontaminate.model_copy(update={"benchmarks": evaluation.benchmarks}),
            }
        )


def resolved_candidate(candidate: CandidateConfig) -> CandidateConfig:
    """A candidate with what it will read pinned; its documents carry the candidate's name."""
    if candidate.collect is None:
        return candidate
    named = candidate.collect.model_copy(update={"name": candidate.name})
    return candidate.model_copy(update={"collect": collect_stage.resolve(named)})
