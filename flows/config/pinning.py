"""Pinning: everything that a recipe will read is named so that it cannot change: versions, file hashes, dataset commits.

Example: `revision: main` of a dataset becomes the commit that `main` is now; a rerun next year reads the same rows.
"""

from typing import TypeVar

from flows.config.needed import needed_sources
from flows.config.parts import PAST_FINETUNING, PAST_PREFERENCES
from flows.config.phases.comparison_config import ComparisonConfig
from flows.config.phases.evaluation_config import EvaluationConfig
from flows.config.recipe_config import RecipeConfig
from tasks.data.post_training.prompts import PromptsConfig
from tasks.training.anneal import AnnealConfig
from tasks.training.dpo import DPOConfig
from tasks.training.ppo import PPOConfig
from tasks.training.preferences import PreferencesConfig
from tasks.training.pretrain import PretrainConfig
from tasks.training.rlvr import RLVRConfig
from tasks.training.sft import SFTConfig

_Training = TypeVar("_Training", bound=PretrainConfig | AnnealConfig | SFTConfig | DPOConfig | RLVRConfig | PPOConfig)


def pin_recipe(config: RecipeConfig) -> RecipeConfig:
    """The recipe with everything pinned that it will read: package versions, file hashes, dataset commits."""
    evaluation = config.evaluation.pinned()
    tried = tuple(benchmark.pinned() for benchmark in config.microanneal.benchmarks)
    asked = (*evaluation.every_benchmark, *tried)
    # Only what is read is pinned: a source that nothing reads may be unreachable today.
    read = needed_sources(config)
    late, tuned = config.starts_after_midtraining, config.begins_at(PAST_FINETUNING)
    return config.model_copy(
        update={
            "collect": {name: source.pinned() if name in read else source for name, source in config.collect.items()},
            "filter": {name: rules.pinned() for name, rules in config.filter.items()},
            "synthesize": {
                name: source.pinned() if name in read else source for name, source in config.synthesize.items()
            },
            "candidates": config.candidates if late else tuple(item.pinned() for item in config.candidates),
            "chats": config.chats if tuned else config.chats.pinned(),
            "preference_prompts": pinned_preference_prompts(config),
            "preferences": config.preferences if config.begins_at(PAST_PREFERENCES) else config.preferences.pinned(),
            "rlvr_prompts": config.rlvr_prompts if "rlvr" in config.start else config.rlvr_prompts.pinned(),
            "further_rlvr": tuple(
                item.model_copy(update={"prompts": item.prompts.pinned(), "rlvr": with_tasks(item.rlvr, evaluation)})
                for item in config.further_rlvr
            ),
            "sft": with_tasks(config.sft, evaluation),
            "dpo": with_tasks(config.dpo, evaluation),
            "rlvr": with_tasks(config.rlvr, evaluation),
            "pretrain": with_tasks(config.pretrain, evaluation),
            "comparison": config.comparison and compared_with_tasks(config.comparison, evaluation),
            "anneal": with_tasks(config.anneal, evaluation),
            "soup": config.soup.filled(evaluation.every_benchmark, evaluation.every_suite),
            "microanneal": config.microanneal.model_copy(
                update={"anneal": with_tasks(config.microanneal.anneal, evaluation), "benchmarks": tried}
            ),
            "evaluation": evaluation,
            "decontaminate": config.decontaminate.model_copy(update={"benchmarks": asked}),
            "decontaminate_messages": config.decontaminate_messages.model_copy(update={"benchmarks": asked}),
        }
    )


def pinned_preference_prompts(config: RecipeConfig) -> PromptsConfig | None:
    """The prompts for preference pairs, pinned where pairs are sampled."""
    prompts = config.preference_prompts
    sampled = isinstance(config.preferences, PreferencesConfig) and not config.begins_at(PAST_PREFERENCES)
    return prompts.pinned() if sampled and prompts else prompts


def with_tasks(training: _Training, evaluation: EvaluationConfig) -> _Training:
    """A training with the benchmarks that it asks on its way, and those that choose among its save points."""
    benchmarks, suites = evaluation.every_benchmark, evaluation.every_suite
    select = training.select and training.select.filled(benchmarks, suites)
    return training.model_copy(update={"in_loop": training.in_loop.filled(benchmarks), "select": select})


def compared_with_tasks(comparison: ComparisonConfig, evaluation: EvaluationConfig) -> ComparisonConfig:
    """A comparison whose trainings have the benchmarks that they ask on their way."""
    variants = {name: with_tasks(training, evaluation) for name, training in comparison.variants.items()}
    return comparison.model_copy(update={"variants": variants})
