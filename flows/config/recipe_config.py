"""The recipe as configuration: the stages' configs put together, one top-level name per stage.

Defaults are the published 7B values where a stage has them. A recipe file gives what differs (flows/config/files.py reads it).
"""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from flows.config.parts import (
    PAST_MIDTRAINING,
    CandidateConfig,
    FurtherRLVRConfig,
    IngredientConfig,
    MicroannealConfig,
    PreferenceSource,
    Reinforcement,
    StartPoint,
    named_by_key,
)
from flows.config.phases.comparison_config import ComparisonConfig, with_variants
from flows.config.phases.curation_trial import CurationTrialConfig
from flows.config.phases.evaluation_config import EvaluationConfig
from flows.config.phases.grid_config import GridConfig, Gridded
from flows.phases.synthesis import Synthesis
from infra.settings import Execution
from model.config import Config
from tasks.data.classifying.classifier import ClassifierConfig
from tasks.data.classifying.label import LabelConfig
from tasks.data.collect import Source
from tasks.data.dedup import DedupConfig
from tasks.data.encode import EncodeConfig
from tasks.data.filter import FilterConfig
from tasks.data.filters.overlap import DecontaminateConfig
from tasks.data.mix import MixConfig, MixSource
from tasks.data.post_training.chats import ChatsConfig
from tasks.data.post_training.prompts import PromptsConfig
from tasks.evaluation.rank import RankConfig
from tasks.training.anneal import AnnealConfig
from tasks.training.answers.model_judge import LanguageModelJudge
from tasks.training.dpo import DPOConfig
from tasks.training.fitting.mix_windows import MixTrainingConfig
from tasks.training.preferences import PreferencesConfig
from tasks.training.pretrain import PretrainConfig
from tasks.training.reward import RewardConfig
from tasks.training.rlvr import RLVRConfig
from tasks.training.sft import SFTConfig
from tasks.training.soup import SoupConfig


class RecipeConfig(Config):
    """Everything that decides what a recipe makes, and (`execution`) how it runs here."""

    name: str
    """Name of the recipe; the file's name when not given."""
    execution: Execution = Execution()
    """Where and how: never part of an identity."""
    start: dict[StartPoint, str] = Field(default_factory=dict, max_length=2)
    """Begin at a checkpoint of the store, such as {base: ID}: it takes that place, and what only leads there is not run. A
    reward model may be given with it, {dpo: ID, reward: ID}, or alone."""
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
    """A small model on filtered against unfiltered text, alongside pre-training: what curation brings; none by default."""
    grid: dict[Gridded, GridConfig] = Field(default_factory=dict)
    """By training stage, settings that are tried; the recipe goes on with what the grid's rule chooses."""
    comparison: ComparisonConfig | None = None
    """Variants of `pretrain` that are trained side by side and drawn, and nothing after them."""
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

    @model_validator(mode="before")
    @classmethod
    def _write_variants_out(cls, data: Any) -> Any:
        return with_variants(data)

    @property
    def asked_prompts(self) -> PromptsConfig:
        """The prompts to sample preference pairs for; a language model judges answers without a ground truth too."""
        assert self.preference_prompts is not None and isinstance(self.preferences, PreferencesConfig)
        if isinstance(self.preferences.judge, LanguageModelJudge):
            return self.preference_prompts.model_copy(update={"ground_truth": "optional"})
        return self.preference_prompts

    def classifier_sources(self, name: str) -> list[str]:
        """The sources that a classifier's examples come from: those it names, or all collected ones where a class names none."""
        return list(self.classifiers[name].sources) or list(self.collect)

    def begins_at(self, places: Iterable[str]) -> bool:
        """Whether one of these places is given."""
        return not self.start.keys().isdisjoint(places)

    @property
    def starts_after_midtraining(self) -> bool:
        """Whether the recipe begins with a checkpoint that is ready for post-training, or past its beginning."""
        return self.begins_at(PAST_MIDTRAINING)

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

    def candidate_mix(self, candidate: CandidateConfig, tokens: int | None = None) -> MixConfig:
        """The mix of one micro-anneal, of the largest budget unless another is given."""
        sweep = self.microanneal
        mix = MixConfig(
            sources=(
                MixSource(source=sweep.web, ratio=1 - candidate.ratio, max_repetition_ratio=sweep.max_repetition),
                MixSource(source=candidate.name, ratio=candidate.ratio, max_repetition_ratio=sweep.max_repetition),
            ),
            requested_tokens=tokens or sweep.tokens,
            fill=sweep.web,
        )
        return read_by(sweep.anneal, mix)

    def grid_evaluation(self, section: Gridded) -> EvaluationConfig:
        """What the models of a grid are asked. Raises ValueError where its `by` names nothing."""
        return self.evaluation.only(self.grid[section].by, field=f"grid.{section}.by")

    @property
    def sweep_evaluation(self) -> EvaluationConfig:
        """What the candidates of the sweep are asked. Raises ValueError where `microanneal.rank_by` names nothing."""
        return self.evaluation.only(self.microanneal.rank_by, self.microanneal.benchmarks)

    def rank(self, candidates: Iterable[str], tokens: int) -> RankConfig:
        """How these candidates of the sweep are ranked at a token budget."""
        sweep = self.microanneal
        return RankConfig(
            benchmark=sweep.rank_by,
            candidates=tuple(candidates),
            seeds=len(sweep.every_seed),
            tokens=tokens,
        )


def read_by(training: MixTrainingConfig, mix: MixConfig) -> MixConfig:
    """A mix in the windows and batches of the training that reads it."""
    return mix.read_in(training.sequence_length, training.batch_size)
