"""Evaluation while training: perplexity of every source on windows held out of it, and small tasks.

Source: RECIPE D (every 1,000 steps; perplexity sets and downstream tasks). Deviation: the published runs read eleven
validation sets of their own. Here windows of the mix itself are kept out of the training (docs/decisions.md says why), and
tasks are the first items of the recipe's own benchmarks. Metrics are `perplexity/<source>` and `task/<benchmark>`.

The workers of a group share windows and requests out, then all of them know all metrics. Perplexity has the precision of the
training; tasks have it on accelerators, and fp32 on a host.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from math import exp
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field

from infra.workspace import Workspace
from model.config import Config, Precision
from model.data.batches import Window, WindowedTokens
from model.data.labels import IGNORE, next_token_labels
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from model.training.loop import Evaluate, TrainState, to_device
from model.training.losses import LossConfig, language_model_objective
from model.training.optim import OptimConfig
from tasks.artifacts import PERPLEXITY, TASK
from tasks.evaluation.benchmarks import BenchmarkConfig, load_items, make_requests, primary_metric, score_item
from tasks.evaluation.benchmarks.asking import ask, local_scorer, request_names
from tasks.evaluation.benchmarks.roles import refuse_held_out
from tasks.generation import local_generator, shared_generator

if TYPE_CHECKING:
    from model.training.loop import Batch

BATCH_SIZE = 64
"""Answers generated at once."""


class InLoopConfig(Config):
    """What is evaluated while a model trains; nothing by default."""

    every: int = Field(default=1000, ge=1)
    """Steps between two evaluations (RECIPE D)."""
    windows: int = Field(default=0, ge=0)
    """Windows of every source that are kept out of the training and judged by their perplexity; 0 is none."""
    tasks: tuple[str, ...] = ()
    """Benchmarks to ask, by their names under `evaluation`."""
    items: int = Field(default=100, ge=1)
    """Items of each benchmark, the first ones."""
    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """The benchmarks of `tasks`; the recipe fills them in."""

    def filled(self, benchmarks: tuple[BenchmarkConfig, ...]) -> "InLoopConfig":
        """The same with the named benchmarks. Raises ValueError for a name that is not among them."""
        known = {benchmark.name: benchmark for benchmark in benchmarks}
        unknown = [name for name in self.tasks if name not in known]
        if unknown:
            raise ValueError(
                f"in_loop.tasks names {', '.join(unknown)}; the benchmarks under evaluation are {', '.join(known)}"
            )
        chosen = tuple(known[name] for name in self.tasks)
        refuse_held_out("in_loop.tasks", chosen)
        return self.model_copy(update={"benchmarks": chosen})


def evaluator(
    ws: Workspace, config: InLoopConfig, data: WindowedTokens, tokenizer: Tokenizer, optim: OptimConfig
) -> Evaluate | None:
    """The loop's hook: state -> metrics, also as a table of the dashboard; None where there is nothing to evaluate.

    Raises ValueError where tasks are named without their benchmarks.
    """
    if len(config.tasks) != len(config.benchmarks):
        raise ValueError(
            f"in_loop.tasks names {len(config.tasks)} benchmarks, in_loop.benchmarks holds {len(config.benchmarks)}; a recipe "
            "fills them in: give the benchmarks themselves when there is none"
        )
    held_out = data.held_out()
    asked = [_task(benchmark, config.items, tokenizer) for benchmark in config.benchmarks]
    if not held_out and not asked:
        return None

    rows: list[dict[str, float]] = []

    def evaluate(state: TrainState) -> dict[str, float]:
        metrics = {
            f"{PERPLEXITY}{source}": _perplexity(state, data, windows, optim) for source, windows in held_out.items()
        }
        for benchmark, score in zip(config.benchmarks, asked, strict=True):
            metrics[f"{TASK}{benchmark.name}"] = score(state, optim.precision)
        rows.append({"step": state.step} | metrics)
        ws.table("in-loop", rows)
        return metrics

    return evaluate


def _perplexity(state: TrainState, data: WindowedTokens, windows: list[Window], optim: OptimConfig) -> float:
    """exp of the mean cross-entropy of all next tokens in the windows, in the precision of the training."""
    objective = language_model_objective(LossConfig(z_weight=0.0))
    model, group = state.model, state.group
    assert isinstance(model, Transformer)
    device = model.device.type
    total = torch.zeros((), device=device)
    count = 0
    # Rank 0 has most windows; all compute as many batches.
    batches = -(-len(windows) // (group.world * data.micro_instances))
    for batch in _validation_batches(data, windows[group.rank :: group.world], batches):
        count += int((batch["labels"] != IGNORE).sum())
        with torch.autocast(device, torch.bfloat16, enabled=optim.precision == "bf16"):
            loss = group.apply(lambda *given: objective(*given)[0], model, to_device(batch, device))
        total += loss.float()
    totals, counts = zip(*group.exchange((float(total), count)), strict=True)
    return exp(sum(totals) / sum(counts))


def _validation_batches(data: WindowedTokens, windows: list[Window], batches: int) -> "Iterator[Batch]":
    """Batches of the training's own shape, so that nothing is recompiled; what is missing are untrained rows."""
    rows = data.micro_instances
    for first in range(0, batches * rows, rows):
        found = data.read(windows[first : first + rows])
        ids = np.zeros((rows, data.sequence_length), dtype=np.uint32)
        for place, window in enumerate(found):
            ids[place] = window
        labels = next_token_labels(ids)
        labels[len(found) :] = IGNORE
        yield {"ids": ids, "labels": labels, "divisor": np.asarray(np.float32(1.0))}


def _task(benchmark: BenchmarkConfig, items: int, tokenizer: Tokenizer) -> Callable[[TrainState, Precision], float]:
    """(State, precision of its training) -> mean of the benchmark's own metric over its first items."""
    chosen = load_items(benchmark)[:items]
    requests = list(make_requests(benchmark, chosen, False))
    metric = primary_metric(benchmark, chosen)
    names = request_names(benchmark.name, chosen, requests)

    def score(state: TrainState, precision: Precision) -> float:
        model, group = state.model, state.group
        assert isinstance(model, Transformer)
        room, kind = model.config.max_sequence_length, model.device.type
        used = "fp32" if kind == "cpu" else precision
        generator = shared_generator(local_generator(model, tokenizer, used, BATCH_SIZE, group), group)
        with torch.autocast(kind, torch.bfloat16, enabled=used == "bf16"):
            asked = ask(
                tokenizer, list(chain(*requests)), generator=generator, scorer=local_scorer(model, group),
                max_context=room, progress=lambda _: None, names=names,
            )  # fmt: skip
        found = iter(asked.answers)
        scores = [
            score_item(benchmark, item, [next(found) for _ in wanted], False)
            for item, wanted in zip(chosen, requests, strict=True)
        ]
        return float(np.mean([one.metrics[metric] for one in scores]))

    return score
