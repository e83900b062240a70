"""Sizes against what is asked of them, before a run: answers and prompts in a context, prompts of a rollout, tokens of a mix.

The arithmetic is the stages' own, called here with what is known of their inputs beforehand.
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from flows.config.parts import PAST_MIDTRAINING, CandidateConfig
from flows.config.recipe_config import RecipeConfig
from flows.config.sizes.known_sizes import prompts_of, source_tokens
from infra.execution.fingerprint import digest_of, fingerprint_of
from infra.storage.cache import cache_folder
from tasks.data.mix import MixConfig, granted
from tasks.data.post_training.prompts import PromptsConfig
from tasks.evaluation.benchmarks import Benchmark
from tasks.evaluation.benchmarks.synthetic import SyntheticBenchmark, draw_problems_of
from tasks.evaluation.scoring.room import context_of, longest_answer, prompt_room
from tasks.training.ppo import PPOConfig
from tasks.training.preferences import PreferencesConfig
from tasks.training.rlvr import RLVRConfig

UNBOUNDED = 1 << 40
"""Window of a model that is not known before its checkpoint is read."""


def check_limits(config: RecipeConfig) -> None:
    """Raise ValueError for the first thing that cannot fit."""
    window = model_window(config)
    named = {"benchmarks": config.evaluation.benchmarks}
    named |= {f"{name}.benchmarks": part.benchmarks for name, part in config.evaluation.parts.items()}
    for field, benchmarks in named.items():
        for benchmark in benchmarks:
            _check_problems(f"evaluation.{field}.{benchmark.name}", benchmark)
            context = context_of(benchmark, config.evaluation.max_context, window)
            _check_room(f"evaluation.{field}.{benchmark.name}", longest_answer(benchmark), context, window)
    for benchmark in config.microanneal.benchmarks:
        _check_problems(f"microanneal.benchmarks.{benchmark.name}", benchmark)
    if isinstance(config.preferences, PreferencesConfig) and not config.begins_at(("dpo", "rlvr")):
        _check_room("preferences", config.preferences.max_new_tokens, window, window)
    for name, how, asked in reinforcements(config):
        _check_room(name, how.max_new_tokens, window, window)
        _check_prompts(name, how, asked)
    for name, mix in _mixes(config):
        check_mix(name, mix, known_tokens(config))


def model_window(config: RecipeConfig) -> int:
    """Tokens that the model reads at most; of a given checkpoint that is not known here."""
    given = config.begins_at(("base", *PAST_MIDTRAINING))
    return UNBOUNDED if given else config.pretrain.model.max_sequence_length


def _check_problems(name: str, benchmark: Benchmark) -> None:
    """The ranges of generated problems may hold fewer than are asked for."""
    # Through JSON, because `lru_cache` needs a key that can be hashed.
    if isinstance(benchmark, SyntheticBenchmark) and (missing := _too_few_problems(benchmark.model_dump_json())):
        raise ValueError(f"{name}.items={benchmark.items:,}: {missing}")


# Drawing thousands of problems takes time, and one recipe is checked several times.
@lru_cache(maxsize=64)
def _too_few_problems(benchmark: str) -> str:
    """What drawing all problems of a benchmark, given as JSON, says; empty if there are enough.

    That there are enough is kept in the user's cache, by the benchmark and the code that draws: it takes up to a second.
    """
    known = _enough_file(benchmark)
    if known.exists():
        return ""
    try:
        draw_problems_of(SyntheticBenchmark.model_validate_json(benchmark))
    except ValueError as error:
        return str(error)
    with suppress(OSError):  # without a cache they are drawn each time
        known.parent.mkdir(parents=True, exist_ok=True)
        known.touch()
    return ""


def _enough_file(benchmark: str) -> Path:
    key = f"{benchmark} {digest_of(fingerprint_of(draw_problems_of))}"
    return cache_folder() / "enough-problems" / hashlib.sha256(key.encode()).hexdigest()[:24]


def _check_room(name: str, max_new_tokens: int, context: int, window: int) -> None:
    try:
        prompt_room(max_new_tokens, context)
    except ValueError as error:
        bound = f" (pretrain.model.max_sequence_length={window:,} bounds it)" if context == window else ""
        raise ValueError(f"{name}.{error}{bound}, or raise the context") from error


def reinforcements(config: RecipeConfig) -> Iterator[tuple[str, RLVRConfig | PPOConfig, PromptsConfig]]:
    """(name of the section, how, on which prompts) of every stage of reinforcement."""
    yield "rlvr", config.rlvr, config.rlvr_prompts
    for item in config.further_rlvr:
        yield f"further_rlvr.{item.name}.rlvr", item.rlvr, item.prompts


def _check_prompts(name: str, how: RLVRConfig | PPOConfig, asked: PromptsConfig) -> None:
    """A rollout has no more prompts than there are, so fewer answers than updates may be left."""
    count = prompts_of(asked)
    prompts = how.prompts_per_rollout if count is None else min(how.prompts_per_rollout, count)
    answers = prompts * (1 if isinstance(how, PPOConfig) else how.samples)
    if answers < how.mini_batches:
        raise ValueError(
            f"{name}.mini_batches={how.mini_batches:,} are more than the {answers:,} answers of a rollout to {prompts:,} "
            "prompts; lower it, or give more prompts"
        )
    if answers < 2:
        raise ValueError(f"{name}: rollouts of {answers:,} answer show no difference; give more prompts or samples")


def _mixes(config: RecipeConfig) -> Iterator[tuple[str, MixConfig]]:
    if config.begins_at(PAST_MIDTRAINING):
        return
    if "base" not in config.start:
        yield "pretrain_mix", config.pretrain_mix
    yield "anneal_mix", config.anneal_mix
    for item in config.further_ingredients:
        yield f"further_ingredients.{item.name}.mix", item.mix
    for candidate in config.candidates:
        yield f"candidates, {candidate.name}", config.candidate_mix(candidate)


def known_tokens(config: RecipeConfig) -> dict[str, int]:
    """Tokens of the sources and candidates of which they are known or stated."""
    found = {name: source_tokens(source) for name, source in config.collect.items()}
    found |= {candidate.name: candidate_tokens(candidate) for candidate in config.candidates}
    return {name: tokens for name, tokens in found.items() if tokens is not None}


def candidate_tokens(candidate: CandidateConfig) -> int | None:
    """Tokens that a candidate will have, where that is stated or its data set is a released one."""
    if candidate.expected_tokens is not None or candidate.collect is None or candidate.rewrite is not None:
        return candidate.expected_tokens
    return source_tokens(candidate.collect)


def check_mix(name: str, mix: MixConfig, sizes: dict[str, int]) -> dict[str, int]:
    """Tokens of each source in a mix, empty where a size is not known. Raises ValueError for a source too small."""
    if not all(wish.source in sizes for wish in mix.sources):
        return {}
    try:
        return granted(sizes, mix.sources, mix)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def mix_notes(config: RecipeConfig) -> dict[str, str]:
    """By the label of its mix, what a candidate that is too small for its share changes."""
    if config.begins_at(PAST_MIDTRAINING):
        return {}
    sizes, notes = known_tokens(config), {}
    for candidate in config.candidates:
        mix = config.candidate_mix(candidate)
        given = check_mix(candidate.name, mix, sizes)
        total = sum(given.values())
        if given and given[candidate.name] < int(candidate.ratio * total):
            notes[f"mix:try-{candidate.name}"] = (
                f"{candidate.name} has about {sizes[candidate.name]:,} tokens; read {config.microanneal.max_repetition:g} "
                f"times they are {given[candidate.name] / total:.2%} of the mix instead of {candidate.ratio:.0%}, so "
                f"{config.microanneal.web} is {given[config.microanneal.web] / total:.2%}"
            )
    return notes
