"""What every way of answering shares: a benchmark's requests, its rows, and the scores of all benchmarks.

`evaluate` asks a checkpoint of the store, `evaluate_served` a server; both keep the same records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import orjson
import zstandard

from infra.records.looks import write_look
from infra.workspace import Workspace
from tasks.artifacts import Scores
from tasks.evaluation.benchmarks import Benchmark, load_items, make_requests, score_item
from tasks.evaluation.benchmarks.asking import Asked, request_names
from tasks.evaluation.benchmarks.items import Generation, Item, Likelihood
from tasks.evaluation.scoring.best_format import ItemValues
from tasks.evaluation.scoring.questions import EvaluateConfig
from tasks.evaluation.scoring.results import benchmark_row, item_rows
from tasks.evaluation.scoring.suites import ScoreRow, formats_of_tasks, score_suites

_Request = Generation | Likelihood


@dataclass(frozen=True, slots=True)
class Questions:
    """The items of a benchmark and what they ask."""

    items: list[Item]
    requests: list[tuple[_Request, ...]]
    flat: list[_Request]
    """All requests, item by item."""
    names: list[str]
    """What errors call each of them."""


def questions_of(benchmark: Benchmark, chat: bool) -> Questions:
    """The requests of a pinned benchmark. Raises ValueError for a continuation that is empty."""
    items = load_items(benchmark)
    requests = list(make_requests(benchmark, items, chat))
    return Questions(items, requests, list(chain(*requests)), request_names(benchmark.name, items, requests))


def keep_answers(
    ws: Workspace,
    benchmark: Benchmark,
    chat: bool,
    questions: Questions,
    asked: Asked,
    overlaps: Mapping[str, int] | None = None,
) -> ScoreRow:
    """Score the answers and store the items; the benchmark's row of `scores.json`.

    `overlaps`: how many training documents share an n-gram with each item that has any; None where nobody looked.
    """
    answers = iter(asked.answers)
    scored = [
        score_item(benchmark, item, [next(answers) for _ in wanted], chat, wanted)
        for item, wanted in zip(questions.items, questions.requests, strict=True)
    ]
    rows = item_rows(questions.items, questions.requests, asked.answers, scored, asked.facts, overlaps)
    ws.write_jsonl(f"items/{benchmark.name}.jsonl.zst", rows)
    return benchmark_row(benchmark, questions.items, scored, asked.truncated, overlaps)


def _item_values(ws: Workspace, row: ScoreRow) -> ItemValues:
    """What the stage has stored of a benchmark's items: the primary metric, and the group where groups are averaged."""
    data = ws.store.read(ws.address(f"items/{row['name']}.jsonl.zst"))
    lines = zstandard.ZstdDecompressor().stream_reader(data).read().splitlines()
    found = map(orjson.loads, lines)
    # Groups matter where the score is a mean over groups only.
    return {one["id"]: (one["metrics"][row["primary"]], one["group"] if "groups" in row else "") for one in found}


def keep_scores(ws: Workspace, config: EvaluateConfig, model: str, rows: Sequence[ScoreRow]) -> Scores:
    """Average the suites, write `scores.json` and note the look at what is held out. `model` is the weights' digest."""
    wanted = formats_of_tasks(config.suites)
    items = {row["name"]: _item_values(ws, row) for row in rows if row["name"] in wanted}
    rows = [*rows, *score_suites(config.suites, rows, items)]
    ws.write_json("scores.json", {"label": config.label, "checkpoint": model, "benchmarks": rows})
    columns = {"benchmark": "name", "metric": "primary", "score": "score", "stderr": "stderr", "n": "n"}
    ws.table(f"scores-{config.label}", [{shown: row[key] for shown, key in columns.items()} for row in rows])
    made = ws.artifact(
        Scores,
        label=config.label,
        checkpoint=model,
        primary={row["name"]: row["score"] for row in rows},
        stderr={row["name"]: row["stderr"] for row in rows},
    )
    seen = [row["name"] for row in rows if row.get("role") == "held_out"]
    why = f"the evaluation of {config.label}"
    # `once`: an evaluation that resumes looked at its scores only once.
    write_look(ws.store, made.address, config.label, seen, run=f"stage {ws.stage}", why=why, once=True)
    return made
