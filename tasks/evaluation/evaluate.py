"""Stage: score a checkpoint on benchmarks (paper §2.5, Appendix A; RECIPE I).

Greedy generation and log-likelihoods; every item's answer is stored; every score has its standard error. Benchmarks are
committed one by one, so that an interrupted evaluation resumes at the benchmark it had reached.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from infra.shards import run_shards
from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from model.tokenizer import Tokenizer
from model.transformer import Transformer
from model.weights import load_hf
from tasks.artifacts import Checkpoint, Scores
from tasks.evaluation.benchmarks import (
    LOWER_IS_BETTER,
    BenchmarkConfig,
    ItemScore,
    load_items,
    make_requests,
    primary_metric,
    resolve_benchmark,
    score_item,
)
from tasks.evaluation.benchmarks.items import Estimate, Item, Likelihood, estimate_mean, macro_average
from tasks.evaluation.inference import Asked, ask, request_names
from tasks.evaluation.paired import error_of_mean
from tasks.generation import checkpoint_generator


class SuiteConfig(Config):
    """A plain mean over tasks, each the best of its formats (RECIPE I.1: max of MCF and CF, then macro)."""

    name: str
    """Name in scores and reports."""
    tasks: tuple[tuple[str, ...], ...]
    """Per task, the names of the benchmarks that are its formats."""


class EvaluateConfig(Config):
    """What to ask, and how the model is addressed."""

    label: str
    """What is evaluated, as the report names it."""
    benchmarks: tuple[BenchmarkConfig, ...]
    """Benchmarks in the order they are run and reported."""
    suites: tuple[SuiteConfig, ...] = ()
    """Averages over benchmarks."""
    chat: bool = False
    """Address the model through the chat template (instruct models) or as a text to continue (base models)."""
    max_context: int = Field(default=2048, ge=2)
    """Tokens of prompt and answer together; longer prompts are cut on the left (RECIPE I.1). Never more than the model's."""
    batch_size: int = Field(default=64, ge=1)
    """Answers generated at once. Batching changes sums in the last bits, so it is part of the result."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the model's arithmetic; log-likelihoods in fp32 equal transformers' to 1e-4."""


def resolve(config: EvaluateConfig) -> EvaluateConfig:
    """The config with the files and datasets of its benchmarks pinned."""
    return config.model_copy(update={"benchmarks": tuple(resolve_benchmark(b) for b in config.benchmarks)})


def evaluate_checkpoint(ws: Workspace, checkpoint: Checkpoint, config: EvaluateConfig) -> Scores:
    """Ask every benchmark and average. ValueError for two benchmarks of one name or a suite of unknown ones."""
    check_names(config)
    shared = {"checkpoint": checkpoint.model_dump(), "config": config.model_dump(mode="json")}
    items = [{"benchmark": place, **shared} for place in range(len(config.benchmarks))]
    # In this process even when shards go to Ray: the model is loaded once and owns the device.
    rows = run_shards(ws, evaluate_benchmark, items, f"evaluate {config.label}", ray="off")
    ws.note(generation=ws.generation)
    rows += [score_suite(suite, rows) for suite in config.suites]
    ws.write_json("scores.json", {"label": config.label, "checkpoint": checkpoint.digest, "benchmarks": rows})
    ws.table(
        f"scores-{config.label}",
        [
            {
                "benchmark": row["name"],
                "metric": row["primary"],
                "score": row["score"],
                "stderr": row["stderr"],
                "n": row["n"],
            }
            for row in rows
        ],
    )
    return ws.artifact(
        Scores,
        label=config.label,
        checkpoint=checkpoint.digest,
        primary={row["name"]: row["score"] for row in rows},
        stderr={row["name"]: row["stderr"] for row in rows},
    )


def check_names(config: EvaluateConfig) -> None:
    """Names are unique, and suites name benchmarks that are there."""
    names = [benchmark.name for benchmark in config.benchmarks] + [suite.name for suite in config.suites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"benchmark names {twice} are used twice; give each its own name")
    known = {benchmark.name for benchmark in config.benchmarks}
    for suite in config.suites:
        unknown = sorted(set(chain(*suite.tasks)) - known)
        if unknown or not suite.tasks:
            raise ValueError(
                f"suite {suite.name!r} names {unknown or 'no tasks'}; the benchmarks are {', '.join(sorted(known))}"
            )


def evaluate_benchmark(ws: Workspace, item: dict[str, Any]) -> dict[str, Any]:
    """Ask one benchmark; stores its items and returns its row of `scores.json`."""
    config = EvaluateConfig.model_validate(item["config"])
    checkpoint = Checkpoint.model_validate(item["checkpoint"])
    benchmark = config.benchmarks[item["benchmark"]]
    items = load_items(benchmark)
    requests = list(make_requests(benchmark, items, config.chat))
    flat = list(chain(*requests))
    names = request_names(benchmark.name, items, requests)
    # Where a server answers all there is, the device may be the server's.
    computing = ws.generation == "local" or any(isinstance(request, Likelihood) for request in flat)
    device = ws.compute.device if computing else "cpu"
    model, tokenizer = load_model(ws.path(checkpoint), device, ws.compute.threads)
    with (
        ws.progress(f"{config.label}: {benchmark.name}", len(flat), "requests") as bar,
        checkpoint_generator(ws, checkpoint, model, tokenizer, config.precision, config.batch_size) as generator,
        torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"),
    ):
        asked = ask(
            model,
            tokenizer,
            flat,
            generator=generator,
            max_context=min(config.max_context, model.config.max_sequence_length),
            progress=bar.advance,
            names=names,
        )
    answers = iter(asked.answers)
    scored = [
        score_item(benchmark, one, [next(answers) for _ in wanted], config.chat)
        for one, wanted in zip(items, requests, strict=True)
    ]
    ws.write_jsonl(f"items/{benchmark.name}.jsonl.zst", item_rows(items, scored))
    clusters = [item.data.get("cluster") for item in items]
    return summarise(benchmark.name, primary_metric(benchmark, items), scored, asked, clusters)


@lru_cache(maxsize=1)
def load_model(folder: Path, device: str, threads: int) -> tuple[Transformer, Tokenizer]:
    """The checkpoint ready for inference; kept for the next benchmark of the same evaluation."""
    torch.set_num_threads(threads)
    model, _ = load_hf(folder)
    return model.to(device).eval(), Tokenizer.load(folder)


def item_rows(items: Sequence[Item], scored: Sequence[ItemScore]) -> list[dict[str, Any]]:
    """One row per item."""
    return [
        {
            "id": item.id,
            "question": item.text,
            "gold": item.gold,
            "answer": score.answer,
            "extracted": score.extracted,
            "metrics": score.metrics,
            "cluster": item.data.get("cluster"),
        }
        for item, score in zip(items, scored, strict=True)
    ]


def summarise(
    name: str, primary: str, scored: Sequence[ItemScore], asked: Asked, clusters: Sequence[str | None]
) -> dict[str, Any]:
    """Means and standard errors over items, clustered where the items name their cluster (CoQA passages, MMLU subjects)."""
    metrics = {}
    for metric in scored[0].metrics:
        values = [score.metrics[metric] for score in scored]
        plain = estimate_mean(values)
        clustered = error_of_mean(values, clusters)
        metrics[metric] = plain if clustered is None else Estimate(plain.value, clustered, plain.n)
    return {
        "name": name,
        "primary": primary,
        "score": metrics[primary].value,
        "stderr": metrics[primary].stderr,
        "n": len(scored),
        "lower_is_better": primary in LOWER_IS_BETTER,
        "truncated_prompts": asked.truncated,
        "metrics": {key: {"value": m.value, "stderr": m.stderr} for key, m in sorted(metrics.items())},
    }


def score_suite(suite: SuiteConfig, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Best format of each task, then the plain mean; the error is that of the chosen formats."""
    by_name = {row["name"]: row for row in rows}
    lower = {row["lower_is_better"] for task in suite.tasks for row in [by_name[name] for name in task]}
    if len(lower) > 1:
        raise ValueError(f"suite {suite.name!r} mixes accuracies with bits per byte, which have no common mean")
    direction = -1 if True in lower else 1
    chosen = [max((by_name[name] for name in task), key=lambda row: direction * row["score"]) for task in suite.tasks]
    average = macro_average([Estimate(row["score"], row["stderr"], row["n"]) for row in chosen])
    return {
        "name": suite.name,
        "primary": "macro_average",
        "score": average.value,
        "stderr": average.stderr,
        "n": average.n,
        "lower_is_better": True in lower,
        "truncated_prompts": sum(row["truncated_prompts"] for row in chosen),
        "metrics": {},
        "formats": [row["name"] for row in chosen],
    }


evaluate = stage(evaluate_checkpoint, name="evaluate", version=2, process=True)
