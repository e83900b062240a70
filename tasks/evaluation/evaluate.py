"""Stage: score a checkpoint on benchmarks (paper §2.5, Appendix A; RECIPE I).

Greedy generation and log-likelihoods; every item's answer is stored; every score has its standard error. Benchmarks are
committed one by one, so that an interrupted evaluation resumes at the benchmark it had reached.
"""

from functools import lru_cache
from pathlib import Path

import torch

from infra.stage import stage
from infra.workspace import ShardItem, ShardResult, Workspace
from model.files.weights import load_hf
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Checkpoint, Scores, is_of_model
from tasks.evaluation.benchmarks.asking import ask, local_scorer
from tasks.evaluation.benchmarks.items import Likelihood
from tasks.evaluation.scoring.answering import keep_answers, keep_scores, questions_of
from tasks.evaluation.scoring.contamination import overlaps_of
from tasks.evaluation.scoring.questions import EvaluateConfig, check_benchmark_names
from tasks.evaluation.scoring.room import context_of
from tasks.evaluation.scoring.suites import SuiteConfig
from tasks.generation import checkpoint_generator

__all__ = ["EvaluateConfig", "SuiteConfig", "check_benchmark_names", "evaluate", "evaluate_checkpoint"]


def evaluate_checkpoint(ws: Workspace, checkpoint: Checkpoint, config: EvaluateConfig) -> Scores:
    """Ask every benchmark and average. ValueError for two benchmarks of one name or a suite of unknown ones."""
    check_benchmark_names(config)
    overlaps = overlaps_of(ws, checkpoint)
    shared = {"checkpoint": checkpoint.model_dump(), "config": config.model_dump(mode="json")}
    items = [
        {"benchmark": place, "overlaps": None if overlaps is None else overlaps.get(benchmark.name, {}), **shared}
        for place, benchmark in enumerate(config.benchmarks)
    ]
    # In this process even when shards go to Ray: the model is loaded once and owns the device.
    rows = ws.map(evaluate_benchmark, items, description=f"evaluate {config.label}", here=True)
    ws.note(generation=ws.generation)
    return keep_scores(ws, config, checkpoint.digest, rows)


def evaluate_benchmark(ws: Workspace, item: ShardItem) -> ShardResult:
    """Ask one benchmark; stores its items and returns its row of `scores.json`."""
    config = EvaluateConfig.model_validate(item["config"])
    checkpoint = Checkpoint.model_validate(item["checkpoint"])
    benchmark = config.benchmarks[item["benchmark"]]
    questions = questions_of(benchmark, config.chat)
    # Where a server answers all there is, the device may be the server's.
    computing = ws.generation == "local" or any(isinstance(request, Likelihood) for request in questions.flat)
    device = ws.compute.device if computing else "cpu"
    model, tokenizer = load_model(ws.path(checkpoint, wanted=is_of_model), device, ws.compute.threads)
    with (
        ws.progress(f"{config.label}: {benchmark.name}", len(questions.flat), "requests") as bar,
        checkpoint_generator(
            ws, checkpoint, model, tokenizer, config.precision, ws.compute.answers_at_once
        ) as generator,
        torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"),
    ):
        asked = ask(
            tokenizer,
            questions.flat,
            generator=generator,
            scorer=local_scorer(model),
            max_context=context_of(benchmark, config.max_context, model.config.max_sequence_length),
            progress=bar.advance,
            names=questions.names,
        )
    return keep_answers(ws, benchmark, config.chat, questions, asked, item["overlaps"])


@lru_cache(maxsize=1)
def load_model(folder: Path, device: str, threads: int) -> tuple[Transformer, Tokenizer]:
    """The checkpoint ready for inference; kept for the next benchmark of the same evaluation."""
    torch.set_num_threads(threads)
    model, _ = load_hf(folder)
    return model.to(device).eval(), Tokenizer.load(folder)


evaluate = stage(evaluate_checkpoint, name="evaluate", version=5, process=True)
