"""`olmo2 eval`, `olmo2 rescore` and `olmo2 compare`: one checkpoint on named tasks, without a recipe."""

import html
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.inspection.artifacts import find_record
from flows.starting import adopt_into
from infra.execution.attempt import run_stage
from infra.records.reader import Reader
from infra.records.record import Record
from infra.session import Session
from infra.settings import Execution
from infra.storage.store import Store
from tasks.artifacts import Checkpoint, Scores
from tasks.evaluation.comparing.differences import Difference, compare_scores, differing_items
from tasks.evaluation.evaluate import EvaluateConfig, evaluate, resolve
from tasks.evaluation.rescore import rescore
from tasks.evaluation.scoring.selection import select

ID = re.compile(r"[0-9a-f]{4,16}")
SERVED = re.compile(r"https?://")


def quiet(*event: object) -> None:
    """The listener of a command that shows its result only."""


def evaluate_command(
    store: Store,
    target: str,
    tasks: Sequence[str],
    *,
    copies: str = "",
    limit: int | None = None,
    chat: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Evaluate a checkpoint of the store, or a Hugging Face folder or hub model, which is adopted first.

    Raises ValueError for a target or a task that is none of these.
    """
    if SERVED.match(target):
        raise ValueError(
            f"{target} is a server: log-likelihoods of a server are not read yet. Evaluate its weights, as a folder or a hub id; "
            "written answers of a checkpoint can come from a server by execution.generation in a recipe"
        )
    selection = select(tasks, copies=copies, limit=limit)
    checkpoint = find_checkpoint(store, target)
    label = re.sub(r"[^a-z0-9-]+", "-", Path(target).name.lower()).strip("-") or "checkpoint"
    config = resolve(
        EvaluateConfig(label=label, benchmarks=tuple(selection.benchmarks), suites=tuple(selection.suites), chat=chat)
    )
    session = Session(store, Execution(store=store.url, ray="off", device=device))
    outcome = run_stage(evaluate.labelled(label), session, {"checkpoint": checkpoint, "config": config}, quiet)
    return shown_scores(store, outcome.record, reused=outcome.reused) | {"not_computed": selection.not_computed}


def find_checkpoint(store: Store, target: str) -> Checkpoint:
    """The checkpoint of an id, or of a folder or hub id that is adopted into the store."""
    if ID.fullmatch(target) and not Path(target).exists():
        artifact = find_record(store, target).artifact()
    else:
        artifact = adopt_into(store, target, "", "base", quiet).record.artifact()
    if not isinstance(artifact, Checkpoint):
        raise ValueError(f"{target} is a {artifact.kind}, and only checkpoints are evaluated; see: olmo2 ls")
    return artifact


def shown_scores(store: Store, record: Record, *, reused: bool) -> dict[str, Any]:
    """The id and the rows of an evaluation."""
    scores = as_scores(record)
    rows = Reader(store).read_json(scores, "scores.json")["benchmarks"]
    return {"id": record.id, "address": record.address, "reused": reused, "benchmarks": rows}


def as_scores(record: Record) -> Scores:
    """The scores of a record. ValueError for anything else."""
    artifact = record.artifact()
    if not isinstance(artifact, Scores):
        raise ValueError(f"{record.id} is a {record.kind}, not scores; see: olmo2 ls --stage evaluate")
    return artifact


def rescore_command(store: Store, id: str) -> dict[str, Any]:
    """Score the stored answers of an evaluation with today's metrics."""
    record = find_record(store, id)
    config = EvaluateConfig.model_validate(record.config)
    session = Session(store, Execution(store=store.url, ray="off"))
    arguments = {"scores": as_scores(record), "config": config}
    outcome = run_stage(rescore.labelled(config.label), session, arguments, quiet)
    return shown_scores(store, outcome.record, reused=outcome.reused)


def compare_command(store: Store, first: str, second: str, page: Path | None = None) -> list[dict[str, Any]]:
    """Paired differences of two evaluations; with `page`, an HTML page of the items where they differ."""
    ws = Reader(store)
    one, other = as_scores(find_record(store, first)), as_scores(find_record(store, second))
    found = compare_scores(ws, one, other)
    if page is not None:
        items = [item for row in found for item in differing_items(ws, one, other, row.benchmark)]
        page.write_text(differences_page(one.label, other.label, found, items), "utf-8")
    return [asdict(row) for row in found]


def differences_page(first: str, second: str, found: Sequence[Difference], items: Sequence[dict[str, Any]]) -> str:
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


def print_scores(console: Console, shown: dict[str, Any]) -> None:
    """The evaluation's table."""
    table = Table("benchmark", "metric", "score", "standard error", "items", "role", box=None, pad_edge=False)
    for row in shown["benchmarks"]:
        values = (f"{row['score']:.4f}", f"{row['stderr']:.4f}", f"{row['n']:,}", row.get("role", ""))
        table.add_row(row["name"], row["primary"], *values)
    console.print(table)
    for name, reason in shown.get("not_computed", {}).items():
        console.print(f"{name}: not computed, since {reason}", markup=False)
    console.print(f"{shown['id']}  {'Reused' if shown['reused'] else 'evaluated'}", highlight=False)


def print_differences(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """The table of paired differences."""
    columns = ("benchmark", "first", "second", "difference", "95 % interval", "differing", "shows from", "p (Holm)")
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            row["benchmark"],
            f"{row['first']:.4f}",
            f"{row['second']:.4f}",
            f"{row['difference']:+.4f}",
            f"{row['low']:+.4f} to {row['high']:+.4f}",
            f"{row['discordant']:,} of {row['items']:,}",
            f"{row['detectable']:.4f}",
            f"{row['p_holm']:.3g}",
        )
    console.print(table)
