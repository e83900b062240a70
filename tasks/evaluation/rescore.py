"""Stage: score stored answers with today's metrics, without a model.

`evaluate` stores every answer. When an extraction rule or a metric changes, the scores of an evaluation are made again from
them. Prompts must be the same: an item whose prompt's hash differs is refused, since its answer is to another question.
"""

from typing import Any

from infra.stage import stage
from infra.workspace import Workspace
from tasks.artifacts import Scores
from tasks.evaluation.benchmarks import Benchmark, load_items, make_requests, score_item
from tasks.evaluation.benchmarks.asking import Answer
from tasks.evaluation.benchmarks.items import LikelihoodAnswer
from tasks.evaluation.scoring.questions import EvaluateConfig
from tasks.evaluation.scoring.results import benchmark_row, item_rows, stored_answer
from tasks.evaluation.scoring.suites import score_suites


def rescore_answers(ws: Workspace, scores: Scores, config: EvaluateConfig) -> Scores:
    """The same evaluation with today's metrics. ValueError where answers were not stored or prompts have changed."""
    before = {row["name"]: row for row in ws.read_json(scores, "scores.json")["benchmarks"]}
    rows = [rescore_benchmark(ws, scores, config, benchmark, before) for benchmark in config.benchmarks]
    rows += score_suites(config.suites, rows)
    ws.write_json("scores.json", {"label": config.label, "checkpoint": scores.checkpoint, "benchmarks": rows})
    return ws.artifact(
        Scores,
        label=config.label,
        checkpoint=scores.checkpoint,
        primary={row["name"]: row["score"] for row in rows},
        stderr={row["name"]: row["stderr"] for row in rows},
    )


def rescore_benchmark(
    ws: Workspace, scores: Scores, config: EvaluateConfig, benchmark: Benchmark, before: dict[str, Any]
) -> dict[str, Any]:
    """One benchmark's row and items."""
    name = f"items/{benchmark.name}.jsonl.zst"
    stored = {row["id"]: row for row in ws.read_jsonl(scores, name)}
    items = load_items(benchmark)
    requests = list(make_requests(benchmark, items, config.chat))
    answers: list[Answer] = []
    scored = []
    for item, wanted in zip(items, requests, strict=True):
        row = stored.get(item.id, {})
        if "answers" not in row:
            raise ValueError(
                f"item {item.id} of {benchmark.name!r} has no stored answers; evaluate the checkpoint again"
            )
        given = [read_answer(one) for one in row["answers"]]
        asked = [
            stored_answer(request, answer)["prompt_sha256"] for request, answer in zip(wanted, given, strict=False)
        ]
        if len(given) != len(wanted) or asked != [one["prompt_sha256"] for one in row["answers"]]:
            raise ValueError(
                f"item {item.id} of {benchmark.name!r} is asked otherwise today than when it was answered; evaluate the "
                "checkpoint again"
            )
        answers += given
        scored.append(score_item(benchmark, item, given, config.chat))
    ws.write_jsonl(name, item_rows(items, requests, answers, scored))
    return benchmark_row(benchmark, items, scored, before[benchmark.name]["truncated_prompts"])


def read_answer(row: dict[str, Any]) -> Answer:
    """A stored answer."""
    return row["text"] if "text" in row else LikelihoodAnswer(row["logprob"], row["tokens"])


rescore = stage(rescore_answers, name="rescore", version=1)
