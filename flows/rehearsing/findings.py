"""What a rehearsal found: per stage, what was read, what was dropped and why, and what was made.

All of it is in the records and files that the stages leave; nothing is measured again.
"""

from collections import Counter
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from flows.cli.options import print_whole
from infra.execution.plan import PlanRow
from infra.records.artifact import Artifact
from infra.records.reader import Reader
from infra.records.record import Record, record_of
from infra.storage.store import Store
from tasks.artifacts import (
    Attributes,
    Chats,
    Checkpoint,
    Classifier,
    Documents,
    Mix,
    Preferences,
    Prompts,
    Ranking,
    Report,
    RewardModel,
    Scores,
    Tokens,
)

DROPPED_NOTES = ("chats_without_answer", "prompts_too_long", "pairs_dropped", "unrated")
"""Notes of a record that count what a stage left out."""
KEPT_ASIDE = ("bad/chats.jsonl.zst", "bad/prompts.jsonl.zst")
"""Files of rows that a stage could not use, with their reasons."""


@dataclass(frozen=True)
class Finding:
    """One stage of a rehearsal."""

    label: str
    action: str
    """reused (it is there), or what a run would still do."""
    read: str
    dropped: dict[str, int]
    """How much by reason."""
    made: str


def findings(store: Store, rows: list[PlanRow]) -> list[Finding]:
    """A finding per stage in the order of the flow, without those that were left out; `rows` is the plan after the rehearsal."""
    reader = Reader(store)
    artifacts = {row.label: row.artifact for row in rows}
    return [_finding(reader, store, row, artifacts) for row in rows if row.action != "left out"]


def _finding(reader: Reader, store: Store, row: PlanRow, artifacts: dict[str, Artifact | None]) -> Finding:
    artifact = row.artifact
    if artifact is None:
        return Finding(row.label, row.action, "", {}, "")
    record = record_of(store, artifact)
    inputs = [(label, found) for label in row.inputs if (found := artifacts.get(label))]
    dropped = _dropped(reader, artifact, record)
    read = "; ".join(f"{_amount(found)} of {label}" for label, found in inputs[:3])
    read += f" and {len(inputs) - 3} more" if len(inputs) > 3 else ""
    return Finding(
        row.label, row.action, read or _source(reader, artifact, dropped, record), dropped, _amount(artifact)
    )


def _dropped(reader: Reader, artifact: Artifact, record: Record) -> dict[str, int]:
    found: Counter[str] = Counter(artifact.dropped if isinstance(artifact, Documents) else {})
    found.update({name: record.notes[name] for name in DROPPED_NOTES if record.notes.get(name)})
    for name in KEPT_ASIDE:
        if name in record.files:
            # Rows that a stage set aside are counted by their reasons.
            found.update(row["reason"] for row in reader.read_jsonl(artifact, name))
    if isinstance(artifact, Scores):
        rows = reader.read_json(artifact, "scores.json")["benchmarks"]
        found.update(
            {f"{row['name']}: prompts cut": row["truncated_prompts"] for row in rows if row["truncated_prompts"]}
        )
    return {name: count for name, count in found.items() if count}


def _source(reader: Reader, artifact: Artifact, dropped: dict[str, int], record: Record) -> str:
    """Rows and columns of a stage that reads from outside."""
    match artifact:
        case Documents():
            kept = artifact.documents
        case Chats():
            kept = artifact.chats
        case Prompts():
            kept = artifact.prompts
        case _:
            return ""
    # What was read is what was kept and what was dropped.
    rows = kept + sum(dropped.values())
    return f"{rows:,} rows{_columns(reader, artifact, record)}"


def _columns(reader: Reader, artifact: Artifact, record: Record) -> str:
    files = sorted(
        name for name in record.files if name.endswith(".jsonl.zst") and not name.startswith(("bad/", "dropped/"))
    )
    # The first row stands for all: rows of one file have the same fields.
    first = next(iter(reader.read_jsonl(artifact, files[0])), {}) if files else {}
    names = [name for name in first if name != "metadata"] + [
        f"metadata.{name}" for name in first.get("metadata") or {}
    ]
    return f" ({', '.join(names)})" if names else ""


def _amount(artifact: Artifact) -> str:
    """What an artifact is, in a few words and numbers."""
    match artifact:
        case Documents():
            return f"{artifact.documents:,} documents, {artifact.bytes:,} bytes"
        case Attributes():
            return f"scores of {artifact.documents:,} documents ({', '.join(artifact.names)})"
        case Classifier():
            return f"a classifier from {artifact.examples:,} examples"
        case Tokens():
            return f"{artifact.tokens:,} tokens"
        case Mix():
            return f"{artifact.tokens:,} tokens: " + ", ".join(
                f"{name} {part:.0%}" for name, part in artifact.shares.items()
            )
        case Checkpoint() | RewardModel():
            return f"{artifact.steps:,} steps, loss {artifact.loss:.3f}"
        case Chats():
            return f"{artifact.chats:,} chats"
        case Preferences():
            return f"{artifact.pairs:,} pairs"
        case Prompts():
            return f"{artifact.prompts:,} prompts ({', '.join(artifact.datasets)})"
        case Scores():
            return ", ".join(f"{name} {score:.2f}" for name, score in artifact.primary.items())
        case Ranking():
            return f"{artifact.order[0]} first of {len(artifact.order)}"
        case Report():
            return "the report"
    return artifact.kind


def print_findings(console: Console, found: list[Finding]) -> None:
    """The list as a table."""
    table = Table("stage", "read", "dropped and why", "made", box=None, pad_edge=False)
    for item in found:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in item.dropped.items())
        table.add_row(
            item.label, item.read, dropped, item.made or f"({item.action})", style=None if item.made else "yellow"
        )
    print_whole(console, table)
