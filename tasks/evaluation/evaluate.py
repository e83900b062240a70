"""Stage: score a checkpoint on benchmarks (paper §2.5, Appendix A; RECIPE I).

Greedy generation and log-likelihoods; every item's answer is stored; every score has its standard error. Benchmarks are
committed one by one, so that an interrupted evaluation resumes at the benchmark it had reached.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import orjson
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
    Benchmark,
    BenchmarkConfig,
    ItemScore,
    load_items,
    make_requests,
    primary_metric,
    resolve_benchmark,
    score_item,
)
from tasks.evaluation.benchmarks.items import Generation, Item, Likelihood, estimate_mean
from tasks.evaluation.benchmarks.olmes import OlmesBenchmark
from tasks.evaluation.benchmarks.roles import role_of
from tasks.evaluation.inference import Answer, Asked, ask
from tasks.evaluation.suites import SuiteConfig, check_suites, over_groups, score_suites
from tasks.generation import checkpoint_generator

Request = Generation | Likelihood


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
    """Tokens of prompt and answer together, of benchmarks that do not say so themselves; longer prompts are cut on the left
    (RECIPE I.1). Never more than the model's."""
    batch_size: int = Field(default=64, ge=1)
    """Answers generated at once. Batching changes sums in the last bits, so it is part of the result."""


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
    rows += score_suites(config.suites, rows)
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
    """Names are unique, and suites name benchmarks or suites that are there."""
    check_suites([benchmark.name for benchmark in config.benchmarks], config.suites)


def context_of(config: EvaluateConfig, benchmark: Benchmark) -> int:
    """Tokens of prompt and answer: what the benchmark asks for, else what the task publishes, else the evaluation's."""
    if benchmark.max_context is not None:
        return benchmark.max_context
    return benchmark.facts.max_context if isinstance(benchmark, OlmesBenchmark) else config.max_context


def evaluate_benchmark(ws: Workspace, item: dict[str, Any]) -> dict[str, Any]:
    """Ask one benchmark; stores its items and returns its row of `scores.json`."""
    config = EvaluateConfig.model_validate(item["config"])
    checkpoint = Checkpoint.model_validate(item["checkpoint"])
    benchmark = config.benchmarks[item["benchmark"]]
    items = load_items(benchmark)
    requests = list(make_requests(benchmark, items, config.chat))
    flat = list(chain(*requests))
    # Where a server answers all there is, the device may be the server's.
    computing = ws.generation == "local" or any(isinstance(request, Likelihood) for request in flat)
    device = ws.compute.device if computing else "cpu"
    model, tokenizer = load_model(ws.path(checkpoint), device, ws.compute.threads)
    with (
        ws.progress(f"{config.label}: {benchmark.name}", len(flat), "requests") as bar,
        checkpoint_generator(ws, checkpoint, model, tokenizer, "fp32", config.batch_size) as generator,
    ):
        asked = ask(
            model,
            tokenizer,
            flat,
            generator=generator,
            max_context=min(context_of(config, benchmark), model.config.max_sequence_length),
            progress=bar.advance,
        )
    answers = iter(asked.answers)
    scored = [
        score_item(benchmark, one, [next(answers) for _ in wanted], config.chat)
        for one, wanted in zip(items, requests, strict=True)
    ]
    ws.write_jsonl(f"items/{benchmark.name}.jsonl.zst", item_rows(items, requests, asked.answers, scored))
    row = summarise(benchmark.name, primary_metric(benchmark, items), scored, asked) | {"role": role_of(benchmark)}
    macro = isinstance(benchmark, OlmesBenchmark) and benchmark.average == "macro"
    return over_groups(row, items, scored) if macro else row


@lru_cache(maxsize=1)
def load_model(folder: Path, device: str, threads: int) -> tuple[Transformer, Tokenizer]:
    """The checkpoint ready for inference; kept for the next benchmark of the same evaluation."""
    torch.set_num_threads(threads)
    model, _ = load_hf(folder)
    return model.to(device).eval(), Tokenizer.load(folder)


def item_rows(
    items: Sequence[Item],
    requests: Sequence[Sequence[Request]],
    answers: Sequence[Answer],
    scored: Sequence[ItemScore],
) -> list[dict[str, Any]]:
    """One row per item, with what `olmo2 rescore` needs: every answer as text, or as log-likelihood and tokens."""
    given = iter(answers)
    return [
        {
            "id": item.id,
            "question": item.text,
            "gold": item.gold,
            "group": item.data.get("group", ""),
            "answer": score.answer,
            "extracted": score.extracted,
            "metrics": score.metrics,
            "answers": [stored_answer(request, next(given)) for request in wanted],
        }
        for item, wanted, score in zip(items, requests, scored, strict=True)
    ]


def stored_answer(request: Request, answer: Answer) -> dict[str, Any]:
    """What was asked, by its hash, and what came back."""
    prompt = request.prompt
    asked = orjson.dumps([prompt.text, list(prompt.messages), prompt.cue])
    row: dict[str, Any] = {"prompt_sha256": hashlib.sha256(asked).hexdigest()}
    if isinstance(answer, str):
        return row | {"text": answer}
    assert isinstance(request, Likelihood)
    return row | {"continuation": request.continuation, "logprob": answer.logprob, "tokens": answer.tokens}


def summarise(name: str, primary: str, scored: Sequence[ItemScore], asked: Asked) -> dict[str, Any]:
    """Means and standard errors over items."""
    metrics = {metric: estimate_mean([score.metrics[metric] for score in scored]) for metric in scored[0].metrics}
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


evaluate = stage(evaluate_checkpoint, name="evaluate", version=2, process=True)
