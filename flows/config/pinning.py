"""Pinning: everything that a recipe will read is named so that it cannot change: versions, file hashes, dataset commits.

Example: `revision: main` of a dataset becomes the commit that `main` is now; a rerun next year reads the same rows.
"""

from typing import TypeVar

from flows.config.comparison_config import ComparisonConfig
from flows.config.needed import needed_sources
from flows.config.parts import (
    PAST_FINETUNING,
    PAST_PREFERENCES,
    CandidateConfig,
    EvaluationConfig,
)
from flows.config.recipe_config import RecipeConfig
from flows.synthesis import resolve_synthesis
from tasks.data import chats as chats_stage
from tasks.data import collect as collect_stage
from tasks.data import pairs as pairs_stage
from tasks.data import prompts as prompts_stage
from tasks.data.filter import FilterConfig
from tasks.data.filters.rules import resolved_rule
from tasks.data.pairs import PairsConfig
from tasks.data.prompts import PromptsConfig
from tasks.evaluation.benchmarks import resolve_benchmark
from tasks.training.anneal import AnnealConfig
from tasks.training.preferences import PreferencesConfig
from tasks.training.pretrain import PretrainConfig

Training = TypeVar("Training", PretrainConfig, AnnealConfig)


def resolved(config: RecipeConfig) -> RecipeConfig:
    """The recipe with everything pinned that it will read: package versions, file hashes, dataset commits."""
    evaluation = config.evaluation.model_copy(
        update={"benchmarks": tuple(resolve_benchmark(item) for item in config.evaluation.benchmarks)}
    )
    read = needed_sources(config)
    late, tuned = config.starts_after_midtraining, config.begins_at(PAST_FINETUNING)
    return config.model_copy(
        update={
            "collect": {
                name: collect_stage.resolve(source) if name in read else source
                for name, source in config.collect.items()
            },
            "filter": {name: resolved_filter(rules) for name, rules in config.filter.items()},
            "synthesize": {
                name: resolve_synthesis(source) if name in read else source
                for name, source in config.synthesize.items()
            },
            "candidates": config.candidates if late else tuple(resolved_candidate(item) for item in config.candidates),
            "chats": config.chats if tuned else chats_stage.resolve(config.chats),
            "preference_prompts": pinned_preference_prompts(config),
            "preferences": config.preferences
            if config.begins_at(PAST_PREFERENCES)
            else resolved_preferences(config.preferences),
            "rlvr_prompts": config.rlvr_prompts
            if "rlvr" in config.start
            else prompts_stage.resolve(config.rlvr_prompts),
            "further_rlvr": tuple(
                item.model_copy(update={"prompts": prompts_stage.resolve(item.prompts)}) for item in config.further_rlvr
            ),
            "pretrain": with_tasks(config.pretrain, evaluation),
            "comparison": config.comparison and compared_with_tasks(config.comparison, evaluation),
            "anneal": with_tasks(config.anneal, evaluation),
            "microanneal": config.microanneal.model_copy(
                update={"anneal": with_tasks(config.microanneal.anneal, evaluation)}
            ),
            "evaluation": evaluation,
            "decontaminate": config.decontaminate.model_copy(update={"benchmarks": evaluation.benchmarks}),
            "decontaminate_messages": config.decontaminate_messages.model_copy(
                update={"benchmarks": evaluation.benchmarks}
            ),
        }
    )


def pinned_preference_prompts(config: RecipeConfig) -> PromptsConfig | None:
    """The prompts for preference pairs, pinned where pairs are sampled."""
    prompts = config.preference_prompts
    sampled = isinstance(config.preferences, PreferencesConfig) and not config.begins_at(PAST_PREFERENCES)
    return prompts_stage.resolve(prompts) if sampled and prompts else prompts


def with_tasks(training: Training, evaluation: EvaluationConfig) -> Training:
    """A training with the benchmarks that it asks on its way."""
    return training.model_copy(update={"in_loop": training.in_loop.filled(evaluation.benchmarks)})


def compared_with_tasks(comparison: ComparisonConfig, evaluation: EvaluationConfig) -> ComparisonConfig:
    """A comparison whose trainings have the benchmarks that they ask on their way."""
    variants = {name: with_tasks(training, evaluation) for name, training in comparison.variants.items()}
    return comparison.model_copy(update={"variants": variants})


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
