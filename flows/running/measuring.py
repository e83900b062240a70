"""`olmo2 eval`, `rescore`, `judge` and `compare`: one checkpoint on named tasks, without a recipe."""

import html
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypedDict, get_args

from rich.console import Console
from rich.table import Table

from flows.inspection.artifacts import find_record
from flows.starting import adopt_into
from infra.events import silent
from infra.execution.attempt import Outcome, run_stage
from infra.language_models.client import Endpoint
from infra.language_models.served import served_models
from infra.records.looks import write_look
from infra.records.reader import Reader
from infra.records.record import Record
from infra.session import Session
from infra.settings import EndpointSettings, Execution, ParallelSettings
from infra.storage.store import Store
from model.config import Precision
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Checkpoint, Scores
from tasks.data.sources.rows import RowSource
from tasks.evaluation.benchmarks.instructions import InstructionsBenchmark
from tasks.evaluation.comparing.differences import Difference, DifferingItem, compare_scores, differing_items
from tasks.evaluation.evaluate import EvaluateConfig, evaluate
from tasks.evaluation.evaluate_served import ServedConfig, evaluate_served
from tasks.evaluation.judge import SAFETY_PROMPTS, JudgeConfig, judge
from tasks.evaluation.rescore import rescore
from tasks.evaluation.scoring.selection import TaskSelection
from tasks.evaluation.scoring.suites import ScoreRow, SuiteConfig
from tasks.prompting import LanguageModelConfig, prompt_text
from tasks.served_likelihoods import probe

ID = re.compile(r"[0-9a-f]{4,16}")
SERVED = re.compile(r"https?://")
_WINDOW = 4096
"""Of a server that does not say: that of the OLMo 2 models."""
PROBE_PATIENCE_SECONDS = 60.0


class AskedTasks(TypedDict):
    """Which tasks are asked, as fields of an evaluation's config."""

    benchmarks: Sequence[object]
    suites: Sequence[object]
    chat: bool


class _Shown(TypedDict):
    id: str
    address: str
    reused: bool
    benchmarks: list[ScoreRow]
    """Rows of `scores.json`."""


class ShownScores(_Shown, total=False):
    """The id and the rows of an evaluation."""

    not_computed: dict[str, str]
    """Why, by name of what was asked and is not there."""


def evaluate_checkpoint(
    store: Store,
    target: str,
    selection: TaskSelection,
    *,
    how: "How | None" = None,
    server: "Server | None" = None,
    why: str = "",
) -> ShownScores:
    """Evaluate a checkpoint of the store, a Hugging Face folder or hub model, which is adopted first, or a server's model.

    `why` is kept in the log of looks at held-out scores. Raises ValueError for a target that is none of these.
    """
    how = how or How()
    if how.precision not in get_args(Precision):
        raise ValueError(f"--precision {how.precision!r} is neither of {', '.join(get_args(Precision))}")
    asked: AskedTasks = {"benchmarks": tuple(selection.benchmarks), "suites": tuple(selection.suites), "chat": how.chat}
    if SERVED.match(target):
        outcome = evaluate_server(store, target, asked, server or Server())
    else:
        checkpoint = find_checkpoint(store, target)
        label = _slug(Path(target).name)
        # Pinned, so that the same command next year asks the same questions.
        config = EvaluateConfig.model_validate({"label": label, "precision": how.precision, **asked}).pinned()
        session = Session(store, _execution(store, how))
        outcome = run_stage(evaluate.labelled(label), session, {"checkpoint": checkpoint, "config": config}, silent)
    note_look(store, [outcome.record], f"olmo2 eval {target}", why)
    return shown_scores(store, outcome.record, reused=outcome.reused, not_computed=selection.not_computed)


def _execution(store: Store, how: "How") -> Execution:
    """Settings of one evaluation: in a process of its own, or in a group of workers with one shard of the model each."""
    cores = os.cpu_count() or 1
    threads = {"evaluate": how.threads or max(1, cores // how.workers)}
    if how.workers == 1:
        return Execution(store=store.url, ray="off", device=how.device, threads=threads)
    parallel = {"evaluate": ParallelSettings(workers=how.workers, data="fsdp")}
    return Execution(store=store.url, ray="local", cores=cores, device=how.device, threads=threads, parallel=parallel)


@dataclass(frozen=True)
class How:
    """How a model's weights are asked."""

    chat: bool = False
    """Through the chat template."""
    precision: str = "fp32"
    """Of the arithmetic; a server has its own."""
    device: str = "cpu"
    threads: int | None = None
    """CPU threads of each worker; None for all cores together."""
    workers: int = 1
    """Processes that hold the model together, each a part of every tensor; they are started through Ray."""


@dataclass(frozen=True)
class Server:
    """How a server is asked."""

    model: str = ""
    """What it calls the model; empty takes the only one that it has."""
    key_env: str = ""
    """Environment variable that holds its key."""
    tokenizer: str = ""
    """Folder of its tokenizer; empty for the published OLMo 2 tokenizer."""
    concurrency: int = 32


def evaluate_server(store: Store, url: str, asked: AskedTasks, server: Server) -> Outcome:
    """Evaluate a model behind a server. Its name and a probe of its weights stand for it in the store.

    Raises ValueError for a server whose model is not known, whose tokenizer is another one, or that tells no log-probabilities.
    """
    name, window = served_model(url, server)
    tokenizer = Tokenizer.load(server.tokenizer) if server.tokenizer else Tokenizer()
    settings = EndpointSettings(url=url, key_env=server.key_env, served_name=name, concurrency=server.concurrency)
    # A probe that nobody answers should end in a minute, not in the half hour of a long stage.
    with Endpoint(name, settings.model_copy(update={"patience_seconds": PROBE_PATIENCE_SECONDS})) as endpoint:
        # A server may load other weights under the same name, so the probe's digest is part of the name.
        known = f"{name}@{probe(endpoint, tokenizer)}"
    label = _slug(name)
    fields = {"label": label, "model": known, **tokenizer.facts, "window": window, **asked}
    config = ServedConfig.model_validate(fields).pinned()
    session = Session(store, Execution(store=store.url, ray="off", endpoints={known: settings}))
    return run_stage(evaluate_served.labelled(label), session, {"config": config}, silent)


def served_model(url: str, server: Server) -> tuple[str, int]:
    """Name and window of the model that is asked. Raises ValueError where the server has several and none is named."""
    models = served_models(url, server.key_env)
    names = ", ".join(model.name for model in models) or "none"
    chosen = [model for model in models if server.model in ("", model.name)]
    if len(chosen) != 1:
        wanted = f"--model {server.model} is none of them" if server.model else "name one of them with --model"
        raise ValueError(f"{url} serves {names}; {wanted}")
    return chosen[0].name, chosen[0].window or _WINDOW


def _slug(name: str) -> str:
    """A name as a label."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-") or "checkpoint"


def note_look(store: Store, records: Sequence[Record], run: str, why: str) -> None:
    """Leave a line in the log for held-out scores that a command shows."""
    for record in records:
        scores = as_scores(record)
        rows = Reader(store).read_json(scores, "scores.json")["benchmarks"]
        seen = [row["name"] for row in rows if row.get("role") == "held_out"]
        write_look(store, scores.address, scores.label, seen, run=run, why=why or "no reason was given")


def find_checkpoint(store: Store, target: str) -> Checkpoint:
    """The checkpoint of an id, or of a folder or hub id that is adopted into the store."""
    # An id is hexadecimal; a folder of such a name is meant as a folder.
    if ID.fullmatch(target) and not Path(target).exists():
        artifact = find_record(store, target).artifact()
    else:
        artifact = adopt_into(store, target, "", "base", silent).record.artifact()
    if not isinstance(artifact, Checkpoint):
        raise ValueError(f"{target} is a {artifact.kind}, and only checkpoints are evaluated; see: olmo2 ls")
    return artifact


def shown_scores(
    store: Store, record: Record, *, reused: bool, not_computed: dict[str, str] | None = None
) -> ShownScores:
    """The id and the rows of an evaluation."""
    scores = as_scores(record)
    rows = Reader(store).read_json(scores, "scores.json")["benchmarks"]
    shown: ShownScores = {"id": record.id, "address": record.address, "reused": reused, "benchmarks": rows}
    if not_computed is not None:
        shown["not_computed"] = not_computed
    return shown


def as_scores(record: Record) -> Scores:
    """The scores of a record. ValueError for anything else."""
    artifact = record.artifact()
    if not isinstance(artifact, Scores):
        raise ValueError(f"{record.id} is a {record.kind}, not scores; see: olmo2 ls --stage evaluate")
    return artifact


def rescore_artifact(store: Store, id: str, why: str = "") -> ShownScores:
    """Score the stored answers of an evaluation with today's metrics."""
    record = find_record(store, id)
    config = _asked_in(record)
    session = Session(store, Execution(store=store.url, ray="off"))
    arguments = {"scores": as_scores(record), "config": config}
    outcome = run_stage(rescore.labelled(config.label), session, arguments, silent)
    note_look(store, [outcome.record], f"olmo2 rescore {id}", why)
    return shown_scores(store, outcome.record, reused=outcome.reused)


def _asked_in(record: Record) -> EvaluateConfig:
    """What an evaluation asked. ValueError for scores of another stage, which asked no model."""
    if record.stage not in (evaluate.name, evaluate_served.name, rescore.name):
        raise ValueError(
            f"{record.id} is an artifact of stage {record.stage}, which stores no answers of a model; see: "
            "olmo2 ls --stage evaluate"
        )
    kind = ServedConfig if record.stage == evaluate_served.name else EvaluateConfig
    # Fields of the server that answered do not belong to scoring.
    return EvaluateConfig.model_validate(
        kind.model_validate(record.config).model_dump(include=set(EvaluateConfig.model_fields))
    )


def judge_artifact(
    store: Store,
    id: str,
    url: str,
    server: Server,
    *,
    prompt: str = "ours",
    played: str = "",
    seed: int = 0,
    why: str = "",
) -> ShownScores:
    """Let a language model judge the stored answers of an evaluation to its benchmarks of kind `instructions`.

    `prompt` of `SAFETY_PROMPTS`; `played`: path of AlpacaEval's `df_gamed.csv`. Raises ValueError for an evaluation without such
    answers, and for another prompt.
    """
    if prompt not in SAFETY_PROMPTS:
        raise ValueError(f"there is no prompt {prompt!r} for sets of safety; there are {', '.join(SAFETY_PROMPTS)}")
    record = find_record(store, id)
    scores, asked = as_scores(record), _asked_in(record)
    benchmarks = tuple(one for one in asked.benchmarks if isinstance(one, InstructionsBenchmark))
    if not benchmarks:
        raise ValueError(
            f"{record.id} has no answers to benchmarks of kind instructions, which a judge reads; evaluate the task "
            "alpaca_eval_2 or safety, or benchmarks of your own of that kind (docs/your-own.md)"
        )
    model = server.model or served_model(url, server)[0]
    config = JudgeConfig(
        label=asked.label,
        benchmarks=benchmarks,
        suites=judged_suites(asked.suites, {one.name for one in benchmarks}),
        chat=asked.chat,
        judge=LanguageModelConfig(model=model, temperature=0.0, max_tokens=64, seed=seed),
        safety_prompt=prompt_text(SAFETY_PROMPTS[prompt]),
        played=RowSource(paths=(played,)).pinned() if played else None,
        seed=seed,
    )
    settings = EndpointSettings(url=url, key_env=server.key_env, concurrency=server.concurrency)
    session = Session(store, Execution(store=store.url, ray="off", endpoints={model: settings}))
    outcome = run_stage(judge.labelled(asked.label), session, {"scores": scores, "config": config}, silent)
    note_look(store, [outcome.record], f"olmo2 judge {id}", why)
    return shown_scores(store, outcome.record, reused=outcome.reused)


def judged_suites(suites: Sequence[SuiteConfig], judged: set[str]) -> tuple[SuiteConfig, ...]:
    """The means over judged benchmarks alone, and the means of such means; others keep the scores that they have."""
    kept: list[SuiteConfig] = []
    # A mean may stand before those that it is the mean of.
    while more := [
        one for one in suites if one not in kept and set(chain(*one.tasks)) <= judged | {k.name for k in kept}
    ]:
        kept += more
    return tuple(suite for suite in suites if suite in kept)


def compare_artifacts(
    store: Store, first: str, second: str, page: Path | None = None, why: str = ""
) -> list[Difference]:
    """Paired differences of two evaluations; with `page`, an HTML page of the items where they differ."""
    ws = Reader(store)
    records = [find_record(store, first), find_record(store, second)]
    one, other = map(as_scores, records)
    found = compare_scores(ws, one, other)
    note_look(store, records, f"olmo2 compare {first} {second}", why)
    if page is not None:
        items = [item for row in found for item in differing_items(ws, one, other, row.benchmark)]
        page.write_text(differences_page(one.label, other.label, found, items), "utf-8")
    return found


def differences_page(first: str, second: str, found: Sequence[Difference], items: Sequence[DifferingItem]) -> str:
    """One table row per item on which two models differ."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("benchmark", "item", "question", "gold", first, second))
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td><pre>{html.escape(str(value))}</pre></td>"
            for value in (
                item["benchmark"],
                item["id"],
                item["question"],
                item["gold"],
                f"{item['first_score']:.3g}: {item['first']}",
                f"{item['second_score']:.3g}: {item['second']}",
            )
        )
        + "</tr>"
        for item in items
    )
    summary = "".join(
        f"<li>{html.escape(row.benchmark)}: {row.difference:+.4f} ± {row.stderr:.4f}, {row.discordant} of {row.items} items</li>"
        for row in found
    )
    style = "pre{white-space:pre-wrap;margin:0}td,th{vertical-align:top;text-align:left;border-bottom:1px solid #ccc;padding:4px}"
    return (
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(first)} and {html.escape(second)}</title>"
        f"<style>{style}</style><ul>{summary}</ul><table><tr>{head}</tr>{rows}</table>"
    )


def print_scores(console: Console, shown: ShownScores) -> None:
    """The evaluation's table."""
    columns = ("benchmark", "metric", "score", "standard error", "corrected", "items", "role")
    table = Table(*columns, box=None, pad_edge=False)
    for row in shown["benchmarks"]:
        corrected = f"{row['corrected']:.4f}" if "corrected" in row else ""
        values = (f"{row['score']:.4f}", f"{row['stderr']:.4f}", corrected, f"{row['n']:,}", row.get("role", ""))
        table.add_row(row["name"], row["primary"], *values)
    console.print(table)
    for name, reason in shown.get("not_computed", {}).items():
        console.print(f"{name}: not computed, since {reason}", markup=False)
    console.print(f"{shown['id']}  {'Reused' if shown['reused'] else 'evaluated'}", highlight=False)


def print_differences(console: Console, rows: Sequence[Difference]) -> None:
    """The table of paired differences."""
    columns = ("benchmark", "first", "second", "difference", "95 % interval", "differing", "shows from", "p (Holm)")
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            row.benchmark,
            f"{row.first:.4f}",
            f"{row.second:.4f}",
            f"{row.difference:+.4f}",
            f"{row.low:+.4f} to {row.high:+.4f}",
            f"{row.discordant:,} of {row.items:,}",
            f"{row.detectable:.4f}",
            f"{row.p_holm:.3g}",
        )
    console.print(table)
