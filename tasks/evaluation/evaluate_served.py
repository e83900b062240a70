"""Stage: score a model behind a server on benchmarks (paper §2.5, Appendix A; RECIPE I).

The same tasks, requests and records as `evaluate`, for weights that are served and not at hand: written answers and
log-likelihoods both come from the server (`execution.endpoints`). The store remembers every answer, so an interrupted
evaluation asks nothing twice. Deviation: the record names the model by its name and a probe of its weights, not by a digest.
"""

from pydantic import Field

from infra.compute.shards import run_shards
from infra.stage import stage
from infra.workspace import ShardItem, ShardResult, Workspace
from model.tokens.dolma2 import FULL_RANKS
from model.tokens.tokenizer import Tokenizer, TokenizerName
from tasks.artifacts import Scores
from tasks.evaluation.benchmarks.asking import ask
from tasks.evaluation.benchmarks.items import Likelihood
from tasks.evaluation.scoring.answering import keep_answers, keep_scores, questions_of
from tasks.evaluation.scoring.questions import EvaluateConfig, check_benchmark_names
from tasks.evaluation.scoring.room import context_of
from tasks.generation import server_generator
from tasks.served_likelihoods import server_scorer


class ServedConfig(EvaluateConfig):
    """What to ask, and of which served model."""

    model: str = Field(min_length=1)
    """Name under `execution.endpoints`: what the server calls the model, `@`, and the probe of its weights."""
    ranks: int = FULL_RANKS
    """Ordinary tokens of its tokenizer; the published OLMo 2 models have all."""
    tokenizer: TokenizerName = "dolma2"
    """Which vocabulary that is."""
    window: int = Field(default=4096, ge=4)
    """Tokens that it takes, the answer included."""


def evaluate_served_model(ws: Workspace, config: ServedConfig) -> Scores:
    """Ask every benchmark and average. ValueError for two benchmarks of one name or a suite of unknown ones."""
    check_benchmark_names(config)
    items = [{"benchmark": place, "config": config.model_dump(mode="json")} for place in range(len(config.benchmarks))]
    # One benchmark after the other here, since the server has the model and the slots.
    rows = run_shards(ws, ask_benchmark, items, f"evaluate {config.label}", ray="off")
    return keep_scores(ws, config, f"served:{config.model}", rows)


def ask_benchmark(ws: Workspace, item: ShardItem) -> ShardResult:
    """Ask one benchmark; stores its items and returns its row of `scores.json`."""
    config = ServedConfig.model_validate(item["config"])
    benchmark, tokenizer = config.benchmarks[item["benchmark"]], Tokenizer(config.ranks, config.tokenizer)
    questions = questions_of(benchmark, config.chat)
    # A server that echoes a prompt generates one token after it.
    reserved = 2 if any(isinstance(request, Likelihood) for request in questions.flat) else 0
    with (
        ws.progress(f"{config.label}: {benchmark.name}", len(questions.flat), "requests") as bar,
        ws.endpoint(config.model) as endpoint,
    ):
        asked = ask(
            tokenizer,
            questions.flat,
            generator=server_generator(endpoint, tokenizer, config.window),
            scorer=server_scorer(endpoint),
            max_context=context_of(benchmark, config.max_context, config.window - reserved),
            progress=bar.advance,
            names=questions.names,
        )
        ws.note(endpoint=endpoint.facts())
    # A shard's result is an open JSON object, whatever the function knows of its keys.
    return {**keep_answers(ws, benchmark, config.chat, questions, asked)}


evaluate_served = stage(evaluate_served_model, name="evaluate_served", version=2)
