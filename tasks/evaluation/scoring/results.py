"""What is kept of an evaluation: a row per item with every answer, and a row of scores per benchmark."""

import hashlib
from collections.abc import Sequence
from typing import Any

import orjson

from tasks.evaluation.benchmarks import LOWER_IS_BETTER, Benchmark, ItemScore, primary_metric
from tasks.evaluation.benchmarks.asking import Answer
from tasks.evaluation.benchmarks.items import Estimate, Generation, Item, Likelihood, estimate_mean
from tasks.evaluation.benchmarks.olmes import OlmesBenchmark
from tasks.evaluation.benchmarks.roles import role_of
from tasks.evaluation.comparing.paired import error_of_mean
from tasks.evaluation.scoring.suites import over_groups

Request = Generation | Likelihood


def benchmark_row(
    benchmark: Benchmark, items: Sequence[Item], scored: Sequence[ItemScore], truncated: int
) -> dict[str, Any]:
    """The benchmark's row of `scores.json`."""
    groups = [item.data.get("group") or None for item in items]
    row = summarise(benchmark.name, primary_metric(benchmark, items), scored, truncated, groups)
    row["role"] = role_of(benchmark)
    macro = isinstance(benchmark, OlmesBenchmark) and benchmark.average == "macro"
    return over_groups(row, items, scored) if macro else row


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


def summarise(
    name: str, primary: str, scored: Sequence[ItemScore], truncated: int, groups: Sequence[str | None]
) -> dict[str, Any]:
    """Means and standard errors over items, clustered where the items name their group (a CoQA passage, a subject)."""
    metrics = {}
    for metric in scored[0].metrics:
        values = [score.metrics[metric] for score in scored]
        plain = estimate_mean(values)
        clustered = error_of_mean(values, groups)
        metrics[metric] = plain if clustered is None else Estimate(plain.value, clustered, plain.n)
    return {
        "name": name,
        "primary": primary,
        "score": metrics[primary].value,
        "stderr": metrics[primary].stderr,
        "n": len(scored),
        "lower_is_better": primary in LOWER_IS_BETTER,
        "truncated_prompts": truncated,
        "metrics": {key: {"value": m.value, "stderr": m.stderr} for key, m in sorted(metrics.items())},
    }
