"""Benchmarks, one file per family. Each has `load_items`, `requests` and `score`; this file picks the family by `kind`.

`load_items(config)` is also what decontamination reads: `item.text` is the question with its gold answer.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from tasks.evaluation.benchmarks import gsm8k, ifeval, instructions, synthetic, template
from tasks.evaluation.benchmarks.gsm8k import GSM8KBenchmark
from tasks.evaluation.benchmarks.ifeval import IFEvalBenchmark
from tasks.evaluation.benchmarks.ifeval_ood import IFEvalOODBenchmark
from tasks.evaluation.benchmarks.instructions import InstructionsBenchmark
from tasks.evaluation.benchmarks.items import Generation, Item, ItemScore, Likelihood, LikelihoodAnswer
from tasks.evaluation.benchmarks.olmes import benchmark as olmes
from tasks.evaluation.benchmarks.olmes import requests as olmes_requests
from tasks.evaluation.benchmarks.olmes.answers import before_stops
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark
from tasks.evaluation.benchmarks.olmes.requests import OlmesRequestsBenchmark
from tasks.evaluation.benchmarks.synthetic import SyntheticBenchmark
from tasks.evaluation.benchmarks.template import TemplateBenchmark

__all__ = [
    "LOWER_IS_BETTER",
    "Benchmark",
    "BenchmarkConfig",
    "Item",
    "ItemScore",
    "load_items",
    "make_requests",
    "primary_metric",
    "score_item",
]

Benchmark = (
    SyntheticBenchmark
    | OlmesBenchmark
    | OlmesRequestsBenchmark
    | GSM8KBenchmark
    | IFEvalBenchmark
    | IFEvalOODBenchmark
    | InstructionsBenchmark
    | TemplateBenchmark
)
BenchmarkConfig = Annotated[Benchmark, Field(discriminator="kind")]

LOWER_IS_BETTER = frozenset({"bits_per_byte"})
"""Metrics whose smaller value is the better one."""


def load_items(config: Benchmark) -> list[Item]:
    """The items of a pinned benchmark in evaluation order.

    ValueError when the data are missing or malformed, or when there are none.
    """
    match config:
        case SyntheticBenchmark():
            items = synthetic.load_items(config)
        case OlmesBenchmark():
            items = olmes.load_items(config)
        case OlmesRequestsBenchmark():
            items = olmes_requests.load_items(config)
        case GSM8KBenchmark():
            items = gsm8k.load_items(config)
        case IFEvalBenchmark() | IFEvalOODBenchmark():
            items = ifeval.load_items(config)
        case InstructionsBenchmark():
            items = instructions.load_items(config)
        case TemplateBenchmark():
            items = template.load_items(config)
    if not items:
        raise ValueError(f"benchmark {config.name!r} has no items")
    return items


def make_requests(
    config: Benchmark, items: Sequence[Item], chat: bool
) -> Sequence[tuple[Generation | Likelihood, ...]]:
    """The requests of every item, as chats or as completions."""
    match config:
        case SyntheticBenchmark():
            return synthetic.requests(config, items, chat)
        case OlmesBenchmark():
            return olmes.requests(config, items, chat)
        case OlmesRequestsBenchmark():
            return olmes_requests.requests(config, items, chat)
        case GSM8KBenchmark():
            return gsm8k.requests(config, items, chat)
        case IFEvalBenchmark() | IFEvalOODBenchmark():
            return ifeval.requests(config, items, chat)
        case InstructionsBenchmark():
            return instructions.requests(config, items, chat)
        case TemplateBenchmark():
            return template.requests(config, items, chat)


def score_item(
    config: Benchmark,
    item: Item,
    answers: Sequence[str | LikelihoodAnswer],
    chat: bool,
    wanted: Sequence[Generation | Likelihood] | None = None,
) -> ItemScore:
    """Metrics of one item from the answers to its requests, in their order. `wanted`: the requests, where they are at hand.

    A written answer ends where its request's stops say so, whoever wrote it.
    """
    if any(isinstance(answer, str) for answer in answers):
        if wanted is None:
            (wanted,) = make_requests(config, [item], chat)
        answers = [_before_stops(answer, request) for answer, request in zip(answers, wanted, strict=True)]
    match config:
        case SyntheticBenchmark():
            return synthetic.score(config, item, answers, chat)
        case OlmesBenchmark():
            return olmes.score(config, item, answers, chat)
        case OlmesRequestsBenchmark():
            return olmes_requests.score(config, item, answers, chat)
        case GSM8KBenchmark():
            return gsm8k.score(config, item, answers, chat)
        case IFEvalBenchmark() | IFEvalOODBenchmark():
            return ifeval.score(config, item, answers, chat)
        case InstructionsBenchmark():
            return instructions.score(config, item, answers, chat)
        case TemplateBenchmark():
            return template.score(config, item, answers, chat)


def _before_stops(answer: str | LikelihoodAnswer, request: Generation | Likelihood) -> str | LikelihoodAnswer:
    """A written answer up to the first of its request's stops; any other answer as it is."""
    if isinstance(answer, str) and isinstance(request, Generation):
        return before_stops(answer, request.stop)
    return answer


def primary_metric(config: Benchmark, items: Sequence[Item]) -> str:
    """The metric that stands for the benchmark."""
    # Rendered requests say their metric themselves, so it is known only when they are read.
    if isinstance(config, OlmesRequestsBenchmark):
        return olmes_requests.requests_metric(config, items)
    return config.primary
