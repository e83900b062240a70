"""Stage: score a checkpoint on benchmarks (paper §2.5, Appendix A; RECIPE I).

Greedy generation and log-likelihoods; every item's answer is stored; every score has its standard error. Benchmarks are asked
in parts of consecutive items. Each part is committed alone, so an interrupted evaluation resumes within a benchmark, and
parts go to Ray's workers, each with a model of its own. With `execution.parallel.evaluate` several workers share one model
(fsdp), for one that fits on no device: each reads its rows of the weights only, and all answer every part together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist

from infra.compute.train_group import WorkDone
from infra.stage import stage
from infra.workspace import Loading, ShardItem, Workspace
from model.config import Precision
from model.decoding.prefix_scoring import KeptWeights
from model.files.weights import SavedWeights, load_hf
from model.network.transformer import Transformer, on_meta_device
from model.parallel.group import Group, distribute, fill_weights, host_group
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Checkpoint, Scores, is_of_model
from tasks.computing import compute_of
from tasks.evaluation.benchmarks.asking import AnyAnswer, Asked, RequestFacts, ask, local_scorer
from tasks.evaluation.benchmarks.items import Generation, Likelihood, LikelihoodAnswer
from tasks.evaluation.scoring.answering import Questions, keep_answers, keep_scores, questions_of
from tasks.evaluation.scoring.contamination import overlaps_of
from tasks.evaluation.scoring.questions import EvaluateConfig, check_benchmark_names
from tasks.evaluation.scoring.room import context_of
from tasks.evaluation.scoring.suites import SuiteConfig
from tasks.generation import checkpoint_generator, halve

__all__ = ["EvaluateConfig", "SuiteConfig", "check_benchmark_names", "evaluate", "evaluate_checkpoint"]

PART_REQUESTS = 1_024
"""Requests of a part. Every part reads the examples that its items share once, so a part is much longer than these."""
WORTH_WORKERS = 4_096
"""Requests from which on parts go to Ray: a worker's start and its copy of the model cost seconds."""


@dataclass
class LoadedModel:
    """A checkpoint ready for inference."""

    model: Transformer
    tokenizer: Tokenizer
    kept: KeptWeights
    """Its weights laid out for scoring."""
    group: Group
    """The workers that hold it together; by default one."""


def evaluate_checkpoint(ws: Workspace, checkpoint: Checkpoint, config: EvaluateConfig) -> Scores:
    """Ask every benchmark and average. ValueError for two benchmarks of one name or a suite of unknown ones."""
    check_benchmark_names(config)
    overlaps = overlaps_of(ws, checkpoint)
    shared = {"checkpoint": checkpoint.model_dump(mode="json"), "config": config.model_dump(mode="json")}
    items, likelihoods, count = [], False, 0
    for place in range(len(config.benchmarks)):
        questions = asked_of(config, place)
        count += len(questions.flat)
        likelihoods |= any(isinstance(request, Likelihood) for request in questions.flat)
        items += [
            {"benchmark": place, "first": first, "end": end, **shared} for first, end in parts_of(questions.requests)
        ]
    # Where a server answers all there is, the device may be the server's.
    device = ws.compute.device if ws.generation == "local" or likelihoods else "cpu"
    together = ws.compute.parallel.workers > 1
    # A group's workers go through all parts together: every one computes the same answers, and the first commit counts.
    said, here = f"evaluate {config.label}", together or count < WORTH_WORKERS
    agree = _as_rank_0(ws.compute.stall_seconds) if together else None
    loading = Loading(partial(load_model, checkpoint=checkpoint, device=device, precision=config.precision), device)
    answered = ws.map(answer_part, items, description=said, loading=loading, here=here, agree=agree)
    if together:
        _leave_to_rank_0()
        ws.note(workers=ws.compute.parallel.workers, parallel=ws.compute.parallel.data)
    rows = []
    for place, benchmark in enumerate(config.benchmarks):
        own = [part for part, item in zip(answered, items, strict=True) if item["benchmark"] == place]
        known = None if overlaps is None else overlaps.get(benchmark.name, {})
        asked = asked_in(chain(*own))
        rows.append(keep_answers(ws, benchmark, config.chat, asked_of(config, place), asked, known))
    ws.note(generation=ws.generation)
    return keep_scores(ws, config, checkpoint.digest, rows)


def parts_of(requests: Sequence[Sequence[Any]]) -> Iterator[tuple[int, int]]:
    """First and end item of every part: as many items as have `PART_REQUESTS` requests, at least one."""
    first = count = 0
    for place, wanted in enumerate(requests):
        # At least one item a part, however many requests it has.
        if count and count + len(wanted) > PART_REQUESTS:
            yield first, place
            first, count = place, 0
        count += len(wanted)
    if requests:
        yield first, len(requests)


def asked_of(config: EvaluateConfig, place: int) -> Questions:
    """The questions of the benchmark at a place."""
    # The config as text is the key, since one with mappings cannot be hashed.
    return _asked_of(config.model_dump_json(), place)


@lru_cache(maxsize=1)
def _asked_of(config: str, place: int) -> Questions:
    """Kept for the benchmark's next part; a configuration that holds mappings is no key itself."""
    parsed = EvaluateConfig.model_validate_json(config)
    return questions_of(parsed.benchmarks[place], parsed.chat)


def _as_rank_0(stall_seconds: float) -> Callable[[Any], Any]:
    """A function that all ranks call together, and that returns rank 0's value in each: a broadcast on the host."""
    host = host_group(stall_seconds)

    def told(value: Any) -> Any:
        values = [value]
        dist.broadcast_object_list(values, src=0, group=host)
        return values[0]

    return told


def _leave_to_rank_0() -> None:
    """Scores are written once: raises WorkDone in every worker of a group but its first."""
    rank = dist.get_rank()
    if rank:
        raise WorkDone(f"worker {rank} has answered its part")


def load_model(ws: Workspace, checkpoint: Checkpoint, device: str, precision: Precision) -> LoadedModel:
    """Once per worker: the checkpoint ready for inference. Workers of a group read their own rows of the weights only."""
    torch.set_num_threads(ws.compute.threads)
    folder = ws.path(checkpoint, wanted=is_of_model)
    tokenizer = Tokenizer.load(folder)
    if ws.compute.parallel.workers == 1:
        model, _ = load_hf(folder)
        if precision == "bf16":
            halve(model)
        return LoadedModel(model.to(device).eval(), tokenizer, KeptWeights(), Group())
    weights = SavedWeights(folder)
    # Without memory until it is sharded, so that no worker ever holds a whole tensor.
    model = on_meta_device(weights.config).requires_grad_(False)
    group = distribute(model, compute_of(ws), precision)
    fill_weights(model, weights, group)
    return LoadedModel(model.eval(), tokenizer, KeptWeights(), group)


def answer_part(ws: Workspace, item: ShardItem, loaded: LoadedModel) -> list[list[Any]]:
    """The answer to every request of a part, each with how it was asked."""
    config = EvaluateConfig.model_validate(item["config"])
    checkpoint = Checkpoint.model_validate(item["checkpoint"])
    benchmark = config.benchmarks[item["benchmark"]]
    questions = asked_of(config, item["benchmark"])
    # Requests are numbered over the whole benchmark: the place keys the noise.
    before, end = (sum(map(len, questions.requests[: item[place]])) for place in ("first", "end"))
    requests = questions.flat[before:end]
    model, tokenizer, kept, group = loaded.model, loaded.tokenizer, loaded.kept, loaded.group
    if any(isinstance(request, Generation) for request in requests):
        # Writing lays the weights out in its own way, and there may be no room for both.
        kept.release()
    with (
        ws.progress(f"{config.label}: {benchmark.name}", len(requests), "requests") as bar,
        checkpoint_generator(
            ws, checkpoint, model, tokenizer, config.precision, ws.compute.answers_at_once, group
        ) as generator,
        torch.autocast(model.device.type, torch.bfloat16, enabled=config.precision == "bf16"),
    ):
        asked = ask(
            tokenizer,
            requests,
            generator=generator,
            scorer=local_scorer(model, group, kept),
            max_context=context_of(benchmark, config.max_context, model.config.max_sequence_length),
            progress=bar.advance,
            names=questions.names[before:end],
            first_request=before,
        )
    return [
        # Plain values: a part's result is committed as JSON.
        [answer if isinstance(answer, str) else asdict(answer), asdict(facts)]
        for answer, facts in zip(asked.answers, asked.facts, strict=True)
    ]


def asked_in(rows: Iterator[Sequence[Any]]) -> Asked:
    """What `answer_part` returned, put together."""
    answers: list[AnyAnswer] = []
    facts: list[RequestFacts] = []
    for answer, how in rows:
        answers.append(answer if isinstance(answer, str) else LikelihoodAnswer(**answer))
        facts.append(RequestFacts(**how))
    return Asked(answers, facts)


evaluate = stage(evaluate_checkpoint, name="evaluate", version=7, process=True, grouped=True)
