"""Parts of a recipe that no single stage has: candidates, the sweep, ingredients, further reinforcement."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from flows.phases.synthesis import AnySynthesis, Synthesis
from model.config import Config
from tasks.data.collect import Source
from tasks.data.filter import FilterConfig
from tasks.data.mix import MixConfig
from tasks.data.post_training.pairs import PairsConfig
from tasks.data.post_training.prompts import PromptsConfig
from tasks.data.synthesis.rewrite import RewriteConfig
from tasks.evaluation.benchmarks import BenchmarkConfig
from tasks.training.anneal import AnnealConfig
from tasks.training.ppo import PPOConfig
from tasks.training.preferences import PreferencesConfig
from tasks.training.rlvr import RLVRConfig

PAST_MIDTRAINING = ("soup", "sft", "dpo", "rlvr")
PAST_FINETUNING = ("sft", "dpo", "rlvr")
PAST_PREFERENCES = ("dpo", "rlvr")
"""Start points behind a phase: a recipe that begins there has no need of it."""
StartPoint = Literal["base", "soup", "sft", "dpo", "reward", "rlvr"]
"""Where a recipe may begin with a model that it does not make itself: a checkpoint, or (`reward`) a reward model with one."""


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
        # A rewritten source may have a name of its own, since the rewriting then carries the candidate's.
        if not data.get("rewrite"):
            for field, origin in origins.items():
                if origin.get("name", data["name"]) != data["name"]:
                    raise ValueError(
                        f"{field}.name={origin['name']!r}, but the documents of candidate {data['name']!r} are called what it "
                        "is called; leave name out"
                    )
        # What was said stays: the default name stands on the left of the union.
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

    def pinned(self) -> Self:
        """The candidate with what it will read pinned."""
        found = {"filter": self.filter.pinned()}
        origins = {name: origin.pinned() for name in ("collect", "synthesize") if (origin := getattr(self, name))}
        return self.model_copy(update=found | origins)


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
    seeds: tuple[int, ...] = ()
    """Data-order seeds with which each candidate is annealed: the spread between them is the noise floor of the ranking. None is
    `anneal.seed` alone, as published, and then chance between seeds is not known."""
    budgets: tuple[int, ...] = ()
    """Smaller token budgets, rising, that are tried before `tokens`. What is hopeless at one is not tried with the next."""
    rank_by: str
    """Benchmark or suite that ranks, by its name under `evaluation` or below."""
    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """Further benchmarks, which candidates alone are asked: such as bits per byte, which tell small models apart."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        rising = [*self.budgets, self.tokens]
        if rising != sorted(set(rising)) or min(rising) < 1:
            raise ValueError(
                f"budgets={', '.join(map(str, self.budgets))} and then tokens={self.tokens:,} do not rise; give each budget "
                "once, from the smallest, below tokens"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} has one twice, which would count one training as two; give each once")
        return self

    @property
    def every_seed(self) -> tuple[int, ...]:
        """The seeds of each candidate's anneals."""
        return self.seeds or (self.anneal.seed,)

    @property
    def every_budget(self) -> tuple[int, ...]:
        """Token budgets in the order in which they are tried."""
        return (*self.budgets, self.tokens)

    def suffix(self, candidate: str, tokens: int, seed: int | None = None) -> str:
        """What tells the stages of one trial apart, in their labels: budgets and seeds are named where there are several."""
        parts = [f"try-{candidate}"]
        parts += [f"{tokens}"] if tokens != self.tokens else []
        parts += [f"seed-{seed}"] if seed is not None and len(self.every_seed) > 1 else []
        return "-".join(parts)

    def trial(self, seed: int) -> AnnealConfig:
        """One candidate's anneal with a seed."""
        return self.anneal.model_copy(update={"seed": seed})
