"""What is kept of an evaluation: a row per item with every answer, and a row of scores per benchmark."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

import orjson

from tasks.evaluation.benchmarks import LOWER_IS_BETTER, Benchmark, ItemScore, primary_metric
from tasks.evaluation.benchmarks.asking import AnyAnswer, RequestFacts
from tasks.evaluation.benchmarks.items import Estimate, Generation, Item, Likelihood, estimate_mean
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark
from tasks.evaluation.benchmarks.roles import role_of
from tasks.evaluation.comparing.paired import error_of_mean
from tasks.evaluation.scoring.suites import OverlapCounts, ScoreRow, over_groups

_Request = Generation | Likelihood


def benchmark_row(
    benchmark: Benchmark,
    items: Sequence[Item],
    scored: Sequence[ItemScore],
    truncated: int,
    overlaps: Mapping[str, int] | None = None,
) -> ScoreRow:
    """The benchmark's row of `scores.json`. `overlaps`: documents of the training data that share words with an item."""
    groups = [item.data.get("group") or None for item in items]
    row = summarise(benchmark.name, primary_metric(benchmark, items), scored, truncated, groups)
    row["role"] = role_of(benchmark)
    if overlaps is not None:
        row["overlap"] = without_overlaps(row["primary"], items, scored, overlaps)
    macro = isinstance(benchmark, OlmesBenchmark) and benchmark.average == "macro"
    return over_groups(row, items, scored) if macro else row


def without_overlaps(
    primary: str, items: Sequence[Item], scored: Sequence[ItemScore], overlaps: Mapping[str, int]
) -> OverlapCounts:
    """How many items share words with the training data, and the mean over the others (None where there are none)."""
    # Items of which no training document holds an n-gram.
    clean = [score.metrics[primary] for item, score in zip(items, scored, strict=True) if item.id not in overlaps]
    return {"items": len(items) - len(clean), "score_of_others": sum(clean) / len(clean) if clean else None}


class StoredAnswer(TypedDict):
    """What was asked, by its hash, how, and what came back: a text, or a log-likelihood."""

    prompt_sha256: str
    prompt_tokens: int
    truncated: bool
    tokens: int
    text: NotRequired[str]
    finish: NotRequired[str]
    continuation: NotRequired[str]
    logprob: NotRequired[float]
    per_char: NotRequired[float]
    per_token: NotRequired[float]


class ItemRow(TypedDict):
    """One item of a benchmark, as it is stored."""

    id: str
    question: str
    gold: str
    group: str
    answer: str
    extracted: str
    metrics: dict[str, float]
    training_documents: int | None
    answers: list[StoredAnswer]


def item_rows(
    items: Sequence[Item],
    requests: Sequence[Sequence[_Request]],
    answers: Sequence[AnyAnswer],
    scored: Sequence[ItemScore],
    facts: Sequence[RequestFacts],
    overlaps: Mapping[str, int] | None = None,
) -> list[ItemRow]:
    """One row per item, with what `olmo2 rescore` needs: every answer as text, or as log-likelihood and tokens.

    `training_documents` counts the documents of the training data that share an n-gram with the item; None if nobody looked.
    """
    given = iter(zip(answers, facts, strict=True))
    return [
        {
            "id": item.id,
            "question": item.text,
            "gold": item.gold,
            "group": item.data.get("group", ""),
            "answer": score.answer,
            "extracted": score.extracted,
            "metrics": score.metrics,
            "training_documents": None if overlaps is None else overlaps.get(item.id, 0),
            "answers": [stored_answer(request, *next(given)) for request in wanted],
        }
        for item, wanted, score in zip(items, requests, scored, strict=True)
    ]


def prompt_hash(request: _Request) -> str:
    """SHA-256 of what is asked: the text, or the messages and the cue."""
    prompt = request.prompt
    # Hashed, since prompts with shots would make the stored items many times larger.
    return hashlib.sha256(orjson.dumps([prompt.text, list(prompt.messages), prompt.cue])).hexdigest()


def stored_answer(request: _Request, answer: AnyAnswer, facts: RequestFacts) -> StoredAnswer:
    """What was asked, by its hash, how, and what came back."""
    row: StoredAnswer = {
        "prompt_sha256": prompt_hash(request),
        "prompt_tokens": facts.prompt_tokens,
        "truncated": facts.truncated,
        "tokens": facts.answer_tokens,
    }
    if isinstance(answer, str):
        return {**row, "text": answer, "finish": facts.finish}
    assert isinstance(request, Likelihood)
    text = request.continuation
    return {
        **row,
        "continuation": text,
        "logprob": answer.logprob,
        "per_char": answer.logprob / max(1, len(text)),
        "per_token": answer.logprob / max(1, answer.tokens),
    }


def summarise(
    name: str, primary: str, scored: Sequence[ItemScore], truncated: int, groups: Sequence[str | None]
) -> ScoreRow:
    """Means and standard errors over items, clustered where the items name their group (a CoQA passage, a subject)."""
    metrics = {}
    for metric in scored[0].metrics:
        values = [score.metrics[metric] for score in scored]
        plain = estimate_mean(values)
        clustered = error_of_mean(values, groups)
        # Items of one group are not independent, so the clustered error goes before the plain one.
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
