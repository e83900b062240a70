"""Stage: score a checkpoint on benchmarks (paper §2.5, Appendix A; RECIPE I).

Greedy generation and log-likelihoods; every item's answer is stored; every score has its standard error. Benchmarks are
committed one by one, so that an interrupted evaluation resumes at the benchmark it had reached.
"""

from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from infra.stage import stage
from infra.workspace import Workspace
from model.files.weights import load_hf
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Checkpoint, Scores, is_of_model
from tasks.evaluation.benchmarks import load_items, make_requests, resolve_benchmark, score_item
from tasks.evaluation.benchmarks.asking import ask, request_names
from tasks.evaluation.benchmarks.items import Likelihood
from tasks.evaluation.scoring.questions import EvaluateConfig, check_names
from tasks.evaluation.scoring.results import benchmark_row, item_rows
from tasks.evaluation.scoring.room import context_of
from tasks.evaluation.scoring.suites import SuiteConfig, score_suites
from tasks.generation import checkpoint_generator

__all__ = ["EvaluateConfig", "SuiteConfig", "check_names", "evaluate", "evaluate_checkpoint", "resolve"]


def resolve(config: EvaluateConfig) -> EvaluateConfig:
    """The config with the files and datasets of its benchmarks pinned."""
    return config.model_copy(update={"benchmarks": tuple(resolve_benchmark(b) for b in config.benchmarks)})


def evaluate_checkpoint(ws: Workspace, checkpoint: Checkpoint, config: EvaluateConfig) -> Scores:
    """Ask every benchmark and average. ValueError for two benchmarks of one name or a suite of unknown ones."""
    check_names(config)
    shared = {"checkpoint": checkpoint.model_dump(), "config": config.model_dump(mode="json")}
    items = [{"benchmark": place, **shared} for place in range(len(config.benchmarks))]
    # In this process even when shards go to Ray: the model is loaded once and owns the device.
    rows = ws.map(evaluate_benchmark, items, description=f"evaluate {config.label}", here=True)
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
    model, tokenizer = load_model(ws.path(checkpoint, wanted=is_of_model), device, ws.compute.threads)
    with (
        ws.progress(f"{config.label}: {benchmark.name}", len(flat), "requests") as bar,
        checkpoint_generator(
            ws, checkpoint, model, tokenizer, config.precision, ws.compute.answers_at_once
        ) as generator,
        torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"),
    ):
        asked = ask(
            model,
            tokenizer,
            flat,
            generator=generator,
            max_context=context_of(benchmark, config.max_context, model.config.max_sequence_length),
            progress=bar.advance,
            names=names,
        )
    answers = iter(asked.answers)
    scored = [
        score_item(benchmark, one, [next(answers) for _ in wanted], config.chat)
        for one, wanted in zip(items, requests, strict=True)
    ]
    ws.write_jsonl(f"items/{benchmark.name}.jsonl.zst", item_rows(items, requests, asked.answers, scored))
    return benchmark_row(benchmark, items, scored, asked.truncated)


@lru_cache(maxsize=1)
def load_model(folder: Path, device: str, threads: int) -> tuple[Transformer, Tokenizer]:
    """The checkpoint ready for inference; kept for the next benchmark of the same evaluation."""
    torch.set_num_threads(threads)
    model, _ = load_hf(folder)
    return model.to(device).eval(), Tokenizer.load(folder)


evaluate = stage(evaluate_checkpoint, name="evaluate", version=4, process=True)
