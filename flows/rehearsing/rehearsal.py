"""The rule that makes a rehearsal of a recipe: the same graph, kinds and settings, at sizes that two cores finish in minutes.

A rehearsal has every stage of its recipe with the stage's own kind of source, format, filter, mix, optimizer, algorithm and
benchmark. Only amounts change, by the rules below: the model, rows, lengths, batches, steps, episodes and items. Lengths are all
divided by one number, so what does not fit in its context at full size does not fit here either.
"""

from pathlib import Path
from typing import Any

from flows.config.files import checked_recipe
from flows.config.phases.evaluation_config import EvaluationConfig
from flows.config.recipe_config import RecipeConfig
from flows.rehearsing.local_rows import with_local_rows
from infra.json_values import JsonObject
from model.config import ModelConfig
from model.tokens.tokenizer import Tokenizer
from tasks.data.mix import MixConfig
from tasks.evaluation.benchmarks import Benchmark
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark
from tasks.evaluation.scoring.room import context_of, longest_answer
from tasks.training.preferences import PreferencesConfig
from tasks.training.pretrain import PretrainConfig

RANKS = 1_500
"""Ordinary tokens of the vocabulary."""
HEADS, HEAD_DIM, LAYERS = 4, 16, 3
"""Query heads where queries are not grouped; width of a head; blocks."""
LENGTHS = 8
"""Every length in tokens is divided by this."""
ROWS = 48
"""Rows read of each source, from the first."""
WINDOWS = 4
"""Windows of a training step."""
STEPS = {"pretrain": 8, "anneal": 4, "microanneal": 2}
"""Updates of trainings on a mix."""
BATCH = 8
"""Chats or pairs of an update at most."""
PROMPTS = 8
"""Prompts of a rollout at most."""
_SAMPLES = 2
"""Answers to a prompt at most."""
ROLLOUTS = 2
"""Rounds of sampling and updates in a stage of reinforcement."""
ENDLESS = 4
"""A model of a few steps does not end its answers: those of preference pairs have this part of what a pair may have."""
_ITEMS = 2
"""Items of each benchmark."""

LENGTH_FIELDS = {
    "sequence_length", "target_length", "max_sequence_length", "max_tokens", "max_prompt_tokens", "max_new_tokens",
    "max_context", "context", "passage_tokens",
}  # fmt: skip
MOST = {
    "batch_size": BATCH, "micro_batch": BATCH, "samples": _SAMPLES, "prompts_per_rollout": PROMPTS, "items": _ITEMS, "windows": 1,
    "count": ROWS, "max_documents": ROWS, "passages": _ITEMS,
}  # fmt: skip
"""Fields that are cut to a most, wherever they stand outside of `_KEPT`."""
_KEPT = {"execution", "filter", "classifiers", "dedup", "decontaminate", "writer", "model", "problems"}
"""Below these nothing is changed by the name of a field: rules, thresholds, prompts and language models are the recipe's."""


def rehearsed(config: RecipeConfig, rows: Path | None, store: str) -> RecipeConfig:
    """The recipe of a rehearsal. `rows`: a folder of samples in the layout of the hub, instead of the hub.

    Raises ValueError where the folder lacks something that the recipe reads.
    """
    full = config.model_dump(mode="json")
    for benchmark, item in _benchmarks(config.evaluation, full["evaluation"]):
        if isinstance(benchmark, OlmesBenchmark):
            # What the task publishes is written out, so that it shrinks with the rest.
            window = config.pretrain.model.max_sequence_length
            item["max_new_tokens"] = longest_answer(benchmark) or None
            item["context"] = context_of(benchmark, config.evaluation.max_context, window)
    data = _scaled(full)
    data["name"] = f"{config.name}-rehearsal"
    data["pretrain"]["model"] = model_of(config.pretrain.model)
    data["encode"]["ranks"] = RANKS
    _scale_trainings(data, config)
    _scale_reinforcement(data, config)
    tuned = min(data["dpo"]["max_tokens"], data["reward"]["max_tokens"])
    if isinstance(config.preferences, PreferencesConfig):
        data["preferences"]["max_new_tokens"] = min(data["preferences"]["max_new_tokens"], tuned // ENDLESS)
        if config.preferences.pool:
            # Checkpoints of the store are of the recipe's own size; servers may be stood in for.
            served = [member.model_dump(mode="json") for member in config.preferences.pool.served]
            data["preferences"]["pool"] = data["preferences"]["pool"] | {"members": served} if served else None
    for _, benchmark in _benchmarks(config.evaluation, data["evaluation"]):
        if "limit" in benchmark:
            benchmark["limit"] = _ITEMS
    data["execution"] = _execution(config, store)
    if rows is not None:
        data = with_local_rows(data, rows)
    # Checked as any recipe, so that the rule cannot make one that contradicts itself.
    return checked_recipe(_limited(data), data["name"])


def _benchmarks(evaluation: EvaluationConfig, raw: JsonObject) -> list[tuple[Benchmark, JsonObject]]:
    """Every benchmark of every kind of model with its raw fields."""
    lists = [(evaluation.benchmarks, raw["benchmarks"])]
    lists += [(part.benchmarks, raw[name]["benchmarks"]) for name, part in evaluation.parts.items()]
    return [pair for benchmarks, fields in lists for pair in zip(benchmarks, fields, strict=True)]


def model_of(model: ModelConfig) -> dict[str, object]:
    """The variant's small model: its norms and initialisation, its queries per key, its ratio of MLP to width."""
    group = model.n_heads // model.n_kv_heads
    # Grouped queries keep their number per key, so the number of heads is a multiple of it.
    heads = HEADS if group == 1 else group * max(1, HEADS // group)
    width = heads * HEAD_DIM
    shape = {
        "d_model": width,
        "n_layers": LAYERS,
        "n_heads": heads,
        "n_kv_heads": heads // group,
        "head_dim": HEAD_DIM,
        # A multiple of 16 suits the kernels of matmuls.
        "mlp_hidden": round(model.mlp_hidden / model.d_model * width / 16) * 16,
        "vocab_size": Tokenizer(RANKS).padded_vocab_size,
        "max_sequence_length": model.max_sequence_length // LENGTHS,
    }
    return {**model.model_dump(mode="json"), **shape}


def _scaled(value: Any) -> Any:
    """Lengths divided and amounts cut, by the names of fields."""
    if isinstance(value, list):
        return [_scaled(member) for member in value]
    if not isinstance(value, dict):
        return value
    return {key: member if key in _KEPT else _changed(key, member) for key, member in value.items()}


def _changed(key: str, value: Any) -> Any:
    # A bool is an int to Python.
    if isinstance(value, int) and not isinstance(value, bool):
        if key in LENGTH_FIELDS:
            # 0 has a meaning of its own in some fields and stays 0; anything else stays at least 1.
            return max(min(value, 1), value // LENGTHS)
        return min(value, MOST[key]) if key in MOST else value
    return _scaled(value)


def _limited(value: Any) -> Any:
    """Only the first rows of every source: hub data sets and rows have a limit of their own."""
    if isinstance(value, list):
        return [_limited(member) for member in value]
    if not isinstance(value, dict):
        return value
    found = {key: _limited(member) for key, member in value.items()}
    if found.get("kind") == "hub":
        # 0 and null stand for no limit.
        found["max_documents"] = min(found["max_documents"] or ROWS, ROWS)
    if {"paths", "dataset", "limit"} <= found.keys():
        found["limit"] = min(found["limit"] or ROWS, ROWS)
    if "max_bytes" in found and isinstance(found["max_bytes"], int):
        found["max_bytes"] = min(found["max_bytes"], ROWS * 8_192)
    return found


def _scale_trainings(data: JsonObject, config: RecipeConfig) -> None:
    """Windows of a step, steps, schedules, and the sizes of mixes that are asked for in tokens."""
    pretrain, sweep = data["pretrain"], data["microanneal"]
    trainings = {"pretrain": pretrain, "anneal": data["anneal"], "microanneal": sweep["anneal"]}
    for name, training in trainings.items():
        training["batch_size"] = WINDOWS
        # Without steps a training is one pass over its mix, and stays so.
        training["steps"] = STEPS[name] if training["steps"] else None
        training["in_loop"] |= {"every": max(1, STEPS[name] // 2)}
    of_step = {name: WINDOWS * training["sequence_length"] for name, training in trainings.items()}
    budgets = len(sweep["budgets"])
    sweep["tokens"] = (STEPS["microanneal"] + budgets) * of_step["microanneal"]
    # Each budget is a step longer than the one before, so they still rise.
    sweep["budgets"] = [(STEPS["microanneal"] + place) * of_step["microanneal"] for place in range(budgets)]
    _scale_mix(data["pretrain_mix"], of_step["pretrain"], STEPS["pretrain"])
    _scale_mix(data["anneal_mix"], of_step["anneal"], STEPS["anneal"])
    for item in data["further_ingredients"]:
        item["steps"] = STEPS["anneal"] if item["steps"] else None
        _scale_mix(item["mix"], of_step["anneal"], STEPS["anneal"])
    _scale_schedule(pretrain, config.pretrain, config.pretrain_mix)
    if config.curation_trial:
        trial, given = data["curation_trial"]["pretrain"], config.curation_trial.pretrain
        trial |= {"batch_size": WINDOWS, "steps": STEPS["pretrain"], "model": model_of(given.model)}
        _scale_schedule(trial, given, config.pretrain_mix)
    for name, given in config.comparison.variants.items() if config.comparison else ():
        variant = data["comparison"]["variants"][name]
        for field in ("batch_size", "in_loop", "steps"):
            variant[field] = pretrain[field]
        variant["model"] = model_of(given.model)
        _scale_schedule(variant, given, config.pretrain_mix)
    for own in data["comparison"]["encode"].values() if data["comparison"] else ():
        own["ranks"] = RANKS
    if data["comparison"]:
        data["comparison"]["window"] = max(2, STEPS["pretrain"] // 2)


def _scale_mix(mix: JsonObject, of_step: int, steps: int) -> None:
    if mix["requested_tokens"] is not None:
        mix["requested_tokens"] = of_step * steps


def _scale_schedule(pretrain: JsonObject, full: PretrainConfig, mix: MixConfig) -> None:
    """The schedule's parts keep their shares of the run."""
    of_step = full.batch_size * full.sequence_length
    # Where no steps are given, the mix says how many there are.
    steps = full.steps or (mix.requested_tokens // of_step if mix.requested_tokens else 0)
    in_tokens = full.schedule.unit == "tokens"
    run = STEPS["pretrain"] * (WINDOWS * pretrain["sequence_length"] if in_tokens else 1)
    whole = steps * of_step if in_tokens else steps
    if whole:
        pretrain["schedule"] |= {
            "length": round(full.schedule.length / whole * run),
            "warmup": round(full.schedule.warmup / whole * run),
        }


def _scale_reinforcement(data: JsonObject, config: RecipeConfig) -> None:
    """Whole rollouts, with no fewer answers than updates."""
    stages = [(data["rlvr"], config.rlvr), *zip(
        (item["rlvr"] for item in data["further_rlvr"]), (item.rlvr for item in config.further_rlvr), strict=True
    )]  # fmt: skip
    for stage, full in stages:
        # As many prompts as mini-batches at least, so that none of them is empty.
        prompts = min(full.prompts_per_rollout, max(PROMPTS, full.mini_batches))
        stage["prompts_per_rollout"] = prompts
        stage["episodes"] = ROLLOUTS * prompts * stage.get("samples", 1)


def _execution(config: RecipeConfig, store: str) -> dict[str, object]:
    """Here, on CPU, in one process, without compiling; a language model is asked where the recipe says."""
    execution = config.execution.model_dump(mode="json")
    small = {
        "micro_instances": {stage: min(count, 1) for stage, count in config.execution.micro_instances.items()},
        "pass_tokens": {
            name: max(1, config.execution.compute(name).pass_tokens // LENGTHS)
            for name in ("default", *config.execution.pass_tokens)
        },
    }
    # A site that the recipe states is that of its training, not of this machine.
    here = {
        "device": "cpu", "ray": "off", "compile": {}, "parallel": {}, "generation": {}, "threads": {}, "reference": {},
        "attention": {}, "emulate_float8": True, "fit": None, "site": {},
    }  # fmt: skip
    return execution | here | small | {"store": store, "cores": 2, "save_every": 2, "keep_every": None}


def explain_rule() -> list[str]:
    """The rule in words, with its numbers."""
    return [
        f"model: {HEADS} heads of {HEAD_DIM} (grouped queries keep their group), {LAYERS} blocks, the size's ratio of MLP to "
        f"width, {RANKS:,} ranks; norms, initialisation and rotary base are the recipe's",
        f"lengths ({', '.join(sorted(LENGTH_FIELDS))}): divided by {LENGTHS}",
        f"every source: its first {ROWS} rows (dealt to its files); at most {ROWS} made problems",
        f"trainings on a mix: {WINDOWS} windows a step; steps {', '.join(f'{name} {count}' for name, count in STEPS.items())}; "
        "warm-up and decay keep their shares of the run; mixes keep passes and ratios",
        f"finetuning: {BATCH} chats or pairs an update at most; preferences: {_SAMPLES} answers a prompt at most, of a "
        f"{ENDLESS}th of a pair's tokens, since so small a model does not end its answers",
        f"reinforcement: {ROLLOUTS} rollouts of {PROMPTS} prompts, or as many as there are mini-batches",
        f"evaluation: {_ITEMS} items of each benchmark; every checkpoint, benchmark and suite of the recipe",
        "kept as they are: rules and thresholds, duplicates, decontamination, optimizers, losses, orders, seeds, algorithms, "
        "prompts and language models",
        "execution: CPU, one process a stage, a store of its own",
    ]
