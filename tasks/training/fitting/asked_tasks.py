"""Development benchmarks asked of a model while it trains: on its way, and to select among its save points.

Source: RECIPE D (downstream tasks in the loop), I.3 (development and held-out benchmarks). Deviation: the items are the first
ones of the recipe's own benchmarks. Workers of a group share the requests out, then all of them know all answers. Answers have
the precision of the training on accelerators, and fp32 on a host.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Self

import torch
from pydantic import Field

from infra.workspace import Workspace
from model.config import Config, Precision
from model.network.transformer import Transformer
from model.parallel.group import Group
from model.tokens.tokenizer import Tokenizer
from model.training.loop import Evaluate, TrainState
from tasks.artifacts import TASK
from tasks.evaluation.benchmarks import BenchmarkConfig, load_items, make_requests, primary_metric, score_item
from tasks.evaluation.benchmarks.asking import ask, local_scorer, request_names
from tasks.evaluation.benchmarks.items import Generation, Likelihood
from tasks.evaluation.benchmarks.roles import refuse_held_out
from tasks.generation import local_generator, shared_generator

BATCH_SIZE = 64
"""Answers generated at once."""
SAMPLED = "/sampled"
"""What follows a task's name where its answers were sampled, not greedy."""

Policy = Callable[[TrainState], Transformer]
"""The language model of a training's state."""


class TasksInLoop(Config):
    """Benchmarks that a training asks on its way."""

    every: int = Field(default=1000, ge=1)
    """Steps between two evaluations (RECIPE D)."""
    tasks: tuple[str, ...] = ()
    """Benchmarks to ask, by their names under `evaluation`."""
    items: int = Field(default=100, ge=1)
    """Items of each benchmark, the first ones."""
    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """The benchmarks of `tasks`; the recipe fills them in."""

    def filled(self, benchmarks: tuple[BenchmarkConfig, ...]) -> Self:
        """The same with the named benchmarks. Raises ValueError for a name that is not among them."""
        chosen = named_benchmarks("in_loop.tasks", self.tasks, benchmarks)
        return self.model_copy(update={"benchmarks": chosen})


class AnswersInLoop(TasksInLoop):
    """What a stage of post-training asks on its way, as chats; nothing by default."""

    every: int = Field(default=100, ge=1)
    """Updates between two evaluations."""
    temperature: float = Field(default=0.0, ge=0)
    """Where it is above 0, written answers are also sampled at it, and `task/<benchmark>/sampled` is their accuracy."""


def named_benchmarks(
    field: str, names: Sequence[str], benchmarks: Sequence[BenchmarkConfig]
) -> tuple[BenchmarkConfig, ...]:
    """The benchmarks of these names. Raises ValueError for a name that is not among them, and for one that is held out."""
    known = {benchmark.name: benchmark for benchmark in benchmarks}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{field} names {', '.join(unknown)}; the benchmarks under evaluation are {', '.join(known)}")
    chosen = tuple(known[name] for name in names)
    refuse_held_out(field, chosen)
    return chosen


def check_filled(config: TasksInLoop) -> None:
    """Raise ValueError where tasks are named without their benchmarks."""
    if len(config.tasks) != len(config.benchmarks):
        raise ValueError(
            f"in_loop.tasks names {len(config.tasks)} benchmarks, in_loop.benchmarks holds {len(config.benchmarks)}; a recipe "
            "fills them in: give the benchmarks themselves when there is none"
        )


def language_model_of(state: TrainState) -> Transformer:
    """The model that a training trains, where that is the language model alone."""
    assert isinstance(state.model, Transformer)
    return state.model


class AskedTask:
    """A benchmark's first items, ready to be asked of a model in training."""

    def __init__(
        self,
        benchmark: BenchmarkConfig,
        items: int,
        tokenizer: Tokenizer,
        *,
        chat: bool = False,
        temperature: float = 0.0,
    ) -> None:
        self.benchmark, self.tokenizer, self.chat = benchmark, tokenizer, chat
        self.items = load_items(benchmark)[:items]
        requests = [list(wanted) for wanted in make_requests(benchmark, self.items, chat)]
        # Only written answers have a temperature; likelihoods have nothing to sample.
        self.requests = [[at_temperature(request, temperature) for request in wanted] for wanted in requests]
        self.metric = primary_metric(benchmark, self.items)
        self.names = request_names(benchmark.name, self.items, self.requests)
        self.writes = any(isinstance(request, Generation) for request in chain(*self.requests))

    def scores(self, model: Transformer, group: Group, precision: Precision) -> list[float]:
        """The benchmark's own metric of every item. All workers of the group that holds the model have to ask together."""
        kind = model.device.type
        # fp32 on a host, so that scores do not depend on how its processor rounds bf16.
        used = "fp32" if kind == "cpu" else precision
        generator = shared_generator(local_generator(model, self.tokenizer, used, BATCH_SIZE, group), group)
        with torch.autocast(kind, torch.bfloat16, enabled=used == "bf16"):
            asked = ask(
                self.tokenizer, list(chain(*self.requests)), generator=generator, scorer=local_scorer(model, group),
                max_context=model.config.max_sequence_length, progress=lambda _: None, names=self.names,
            )  # fmt: skip
        found = iter(asked.answers)
        scored = [
            score_item(self.benchmark, item, [next(found) for _ in wanted], self.chat, wanted)
            for item, wanted in zip(self.items, self.requests, strict=True)
        ]
        return [float(one.metrics[self.metric]) for one in scored]


def at_temperature(request: Generation | Likelihood, temperature: float) -> Generation | Likelihood:
    """The request with its answer sampled at a temperature above 0."""
    sampled = temperature > 0 and isinstance(request, Generation)
    return replace(request, temperature=temperature) if sampled else request


def asked_tasks(config: TasksInLoop, tokenizer: Tokenizer, *, chat: bool) -> dict[str, AskedTask]:
    """What is asked on the way, by the name of its metric."""
    check_filled(config)
    found = {}
    for benchmark in config.benchmarks:
        found[f"{TASK}{benchmark.name}"] = AskedTask(benchmark, config.items, tokenizer, chat=chat)
        temperature = config.temperature if isinstance(config, AnswersInLoop) else 0.0
        # Ranked tasks write nothing, so sampling them again would ask the same twice.
        if temperature and found[f"{TASK}{benchmark.name}"].writes:
            sampled = AskedTask(benchmark, config.items, tokenizer, chat=chat, temperature=temperature)
            found[f"{TASK}{benchmark.name}{SAMPLED}"] = sampled
    return found


def answers_judge(
    ws: Workspace,
    config: AnswersInLoop,
    tokenizer: Tokenizer,
    precision: Precision,
    policy: Policy = language_model_of,
) -> Evaluate | None:
    """The loop's hook of a stage of post-training: state -> accuracies on development items, also as a table of the dashboard.

    None where nothing is asked. Raises ValueError where tasks are named without their benchmarks.
    """
    asked = asked_tasks(config, tokenizer, chat=True)
    if not asked:
        return None
    # Kept over all calls: the dashboard's table shows the whole course, not the last point.
    rows: list[dict[str, float]] = []

    def judge(state: TrainState) -> dict[str, float]:
        values = {name: task.scores(policy(state), state.group, precision) for name, task in asked.items()}
        metrics = {name: sum(found) / len(found) for name, found in values.items()}
        rows.append({"step": state.step} | metrics)
        ws.table("in-loop", rows)
        return metrics

    return judge
