"""Stage: score stored answers with today's metrics, without a model.

`evaluate` stores every answer. When an extraction rule or a metric changes, the scores of an evaluation are made again from
them. Prompts must be the same: an item whose prompt's hash differs is refused, since its answer is to another question.
"""

from infra.json_values import JsonObject
from infra.stage import stage
from infra.workspace import Workspace
from tasks.artifacts import Scores
from tasks.evaluation.benchmarks import Benchmark
from tasks.evaluation.benchmarks.asking import AnyAnswer, Asked, RequestFacts
from tasks.evaluation.benchmarks.items import LikelihoodAnswer
from tasks.evaluation.scoring.answering import keep_answers, keep_scores, questions_of
from tasks.evaluation.scoring.questions import EvaluateConfig
from tasks.evaluation.scoring.results import prompt_hash
from tasks.evaluation.scoring.suites import ScoreRow


def rescore_answers(ws: Workspace, scores: Scores, config: EvaluateConfig) -> Scores:
    """The same evaluation with today's metrics. ValueError where answers were not stored or prompts have changed."""
    before = {row["name"]: row for row in ws.read_json(scores, "scores.json")["benchmarks"]}
    rows = [rescore_benchmark(ws, scores, config, benchmark, before) for benchmark in config.benchmarks]
    return keep_scores(ws, config, scores.checkpoint, rows)


def rescore_benchmark(
    ws: Workspace, scores: Scores, config: EvaluateConfig, benchmark: Benchmark, before: dict[str, ScoreRow]
) -> ScoreRow:
    """One benchmark's row and items."""
    stored = {row["id"]: row for row in ws.read_jsonl(scores, f"items/{benchmark.name}.jsonl.zst")}
    questions = questions_of(benchmark, config.chat)
    answers: list[AnyAnswer] = []
    facts: list[RequestFacts] = []
    for item, wanted in zip(questions.items, questions.requests, strict=True):
        # Evaluations of before kept no facts, and scores cannot be made again without them.
        rows = stored.get(item.id, {}).get("answers")
        if rows is None or any("prompt_tokens" not in row for row in rows):
            raise ValueError(
                f"item {item.id} of {benchmark.name!r} has no stored answers with their facts; evaluate the checkpoint again"
            )
        # An answer to another prompt must not be scored as one to this.
        if [prompt_hash(request) for request in wanted] != [row["prompt_sha256"] for row in rows]:
            raise ValueError(
                f"item {item.id} of {benchmark.name!r} is asked otherwise today than when it was answered; evaluate the "
                "checkpoint again"
            )
        answers += map(_read_answer, rows)
        facts += map(read_facts, rows)
    # Only items with overlaps are kept in this mapping, as the evaluation wrote it.
    overlaps = {id: row["training_documents"] for id, row in stored.items() if row["training_documents"]}
    looked = "overlap" in before[benchmark.name]
    return keep_answers(ws, benchmark, config.chat, questions, Asked(answers, facts), overlaps if looked else None)


def _read_answer(row: JsonObject) -> AnyAnswer:
    """A stored answer."""
    return row["text"] if "text" in row else LikelihoodAnswer(row["logprob"], row["tokens"])


def read_facts(row: JsonObject) -> RequestFacts:
    """How it was asked."""
    return RequestFacts(row["prompt_tokens"], row["tokens"], row["truncated"], row.get("finish", ""))


rescore = stage(rescore_answers, name="rescore", version=3)
