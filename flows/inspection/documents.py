"""What curation did with single documents: what a rule dropped, and why one document is in or out."""

import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import orjson
from rich.console import Console
from rich.text import Text

from flows.inspection.curated import ATTRIBUTES, DOCUMENTS, DROPPED, TOKENS, Curated
from infra.json_values import JsonObject
from infra.records.record import Record
from model.data.batches import documents_within
from tasks.data.filters.attributes import highest_scores

EXCERPT_CHARACTERS = 240
"""Shown on each side of what matched."""
SAMPLED_FROM = 50
"""Dropped documents looked at for each one shown: a sample need not read a whole source."""


@dataclass(frozen=True)
class DroppedDocument:
    """A whole dropped document."""

    id: str
    source: str
    url: str | None
    step: str
    reason: str
    detail: str
    text: str
    spans: list[tuple[int, int]]
    """Start and end of each match, in characters."""


class Example(TypedDict):
    """A dropped document as an excerpt around what matched."""

    id: str
    source: str
    step: str
    reason: str
    detail: str
    matched: list[str]
    excerpt: str
    spans: list[list[int]]
    """Start and end of each match within the excerpt, in characters."""


class _Named(TypedDict):
    step: str
    address: str


class _Place(TypedDict):
    source: str
    file: str
    line: int
    """1-based, in the file."""
    bytes: int
    """Of the text."""


class _Decided(_Named):
    decision: Literal["dropped", "kept", "scored", "encoded"]
    source: str


class DocumentDecision(_Decided, total=False):
    """What one step did with one document; a step has the fields that it knows."""

    file: str
    line: int
    """1-based, in the file."""
    bytes: int
    """Of the text."""
    tokens: list[int]
    """Start and end in the token file."""
    reason: str
    detail: str
    scores: dict[str, float | None]
    duplicates: list[str]
    """Ids of the copies for which this document was kept."""


# -- look -------------------------------------------------------------------------------------------------


def look(asked: Curated, reason: str, count: int, seed: int = 0) -> list[Example]:
    """A seeded sample of documents that were dropped for a reason, as excerpts with what matched. Raises as
    `dropped_documents`.
    """
    return [_example(document) for document in dropped_documents(asked, reason, count, seed)]


def dropped_documents(asked: Curated, reason: str, count: int, seed: int = 0) -> list[DroppedDocument]:
    """A seeded sample of the documents that were dropped for a reason.

    Raises ValueError for a reason that nothing was dropped for.
    """
    reasons: dict[str, int] = {}
    for record in asked.records:
        for name, dropped in record.facts.get("dropped", {}).items():
            reasons[name] = reasons.get(name, 0) + dropped
    if reason not in reasons:
        known = ", ".join(f"{name} ({number:,})" for name, number in sorted(reasons.items())) or "none"
        raise ValueError(f"no document was dropped for {reason!r}; reasons and their documents: {known}")
    files = [
        (record, name)
        for record in asked.records
        if reason in record.facts.get("dropped", {})
        for name in sorted(record.files)
        if name.startswith(DROPPED)
    ]
    # Files first in a random order, then rows within them: a whole source need not be read.
    chance = random.Random(seed)
    chance.shuffle(files)
    pool: list[tuple[str, JsonObject]] = []
    for record, name in files:
        # The reason as JSON text, with its quotes, so that no part of a word matches.
        rows = asked.lines_of(record, name, orjson.dumps(reason))
        pool += [(record.label, row) for _, _, row in rows if row["reason"] == reason]
        if len(pool) >= SAMPLED_FROM * count:
            break
    sample = chance.sample(pool, min(count, len(pool)))
    return [
        DroppedDocument(
            id=row["id"],
            source=row["source"],
            url=(row.get("metadata") or {}).get("url"),
            step=step,
            reason=row["reason"],
            detail=row["detail"],
            text=row["text"],
            spans=matched_spans(row),
        )
        for step, row in sample
    ]


def _example(document: DroppedDocument) -> Example:
    text, spans = document.text, document.spans
    start, end = spans[0] if spans else (0, 0)
    first = max(0, start - EXCERPT_CHARACTERS)
    # Without a match the excerpt is the text's beginning, twice as long.
    last = min(len(text), max(end, start) + (EXCERPT_CHARACTERS if spans else 2 * EXCERPT_CHARACTERS))
    return {
        "id": document.id,
        "source": document.source,
        "step": document.step,
        "reason": document.reason,
        "detail": document.detail,
        "matched": [text[begin:stop] for begin, stop in spans],
        "excerpt": text[first:last],
        # Spans are counted from the excerpt's beginning, and those outside of it are left out.
        "spans": [[begin - first, stop - first] for begin, stop in spans if first <= begin and stop <= last],
    }


def matched_spans(row: JsonObject) -> list[tuple[int, int]]:
    """Characters of a dropped document that its reason points at; none where the whole document is judged."""
    text = row["text"]
    spans = {
        (int(start), int(end))
        for name, marked in row.get("attributes", {}).items()
        if f"__{row['reason']}__" in name
        for start, end, _ in marked
        # A span over the whole text marks nothing.
        if (start, end) != (0, len(text)) and end > start
    }
    # Decontamination quotes the n-gram that it found at the end of its detail.
    quoted = re.search(r": '(.+)'$", row["detail"], re.DOTALL)
    if quoted and row["reason"] == "contaminated":
        # The detail quotes normalised words: between them the text may have anything that is no word.
        words = r"\W+".join(map(re.escape, quoted.group(1).split()))
        spans |= {match.span() for match in re.finditer(words, text, re.IGNORECASE)}
    return sorted(spans)


def print_examples(console: Console, examples: Sequence[Example]) -> None:
    """Each with what matched underlined."""
    for example in examples:
        console.print(f"{example['step']} ", style="bold", markup=False, end="")
        console.print(f"{example['source']} {example['id']}", markup=False, highlight=False)
        console.print(
            f"  {example['reason']}: {example['detail'][:300]}", markup=False, highlight=False, style="yellow"
        )
        text = Text(example["excerpt"])
        for start, end in example["spans"]:
            text.stylize("underline red", start, end)
        console.print(text)
        console.print()


# -- why --------------------------------------------------------------------------------------------------


def why(asked: Curated, id: str) -> list[DocumentDecision]:
    """Every score and decision about one document, step by step. Raises ValueError for an id that no step has."""
    # As it stands in the file, with quotes.
    needle = orjson.dumps(id)
    steps = [entry for record in asked.records for entry in _entries(asked, record, id, needle)]
    if not steps:
        raise ValueError(
            f"no data stage of store {asked.reader.store.url} has a document {id!r}; ids are shown by: olmo2 data look, "
            "and by: olmo2 trace RECIPE --step 1"
        )
    return steps


def _entries(asked: Curated, record: Record, id: str, needle: bytes) -> Iterator[DocumentDecision]:
    named: _Named = {"step": record.label, "address": record.address}
    scores: dict[str, dict[str, float | None]] = {}
    for _, _, row in asked.lines(record, ATTRIBUTES, needle):
        if row["id"] == id:
            scores.setdefault(row.get("source", ""), {}).update(highest_scores(row["attributes"]))
    copies: list[str] = []
    for file, line, row in asked.lines(record, DROPPED, needle):
        if row["id"] == id:
            yield {
                **named,
                **_place(file, line, row),
                "decision": "dropped",
                "reason": row["reason"],
                "detail": row["detail"],
                "scores": highest_scores(row.get("attributes", {})),
            }
        elif row.get("duplicate_of") == id:
            # A dropped copy names the document that was kept for it.
            copies.append(row["id"])
    kept = False
    for file, line, row in asked.lines(record, DOCUMENTS, needle):
        if row["id"] == id:
            kept = True
            place = _place(file, line, row)
            found = scores.get(place["source"], {})
            yield {**named, **place, "decision": "kept", "scores": found, "duplicates": copies}
    # Scores alone come from a stage that only measures.
    if scores and not kept and not any(name.startswith(DOCUMENTS) for name in record.files):
        for source, found in scores.items():
            yield {**named, "source": source, "decision": "scored", "scores": found}
    yield from _encoded(asked, record, id, named)


def _place(file: str, line: int, row: JsonObject) -> _Place:
    return {"source": row["source"], "file": file, "line": line, "bytes": len(row["text"].encode())}


def _encoded(asked: Curated, record: Record, id: str, named: _Named) -> Iterator[DocumentDecision]:
    for name in sorted(name for name in record.files if name.startswith(TOKENS) and name.endswith(".csv.gz")):
        for document in documents_within(asked.reader.path(record.artifact(), name), 0, sys.maxsize):
            if document.id == id:
                file, tokens = f"{name.removesuffix('.csv.gz')}.npy", [document.start, document.end]
                source = record.facts["source"]
                yield {**named, "decision": "encoded", "source": source, "file": file, "tokens": tokens}


def print_why(console: Console, id: str, steps: Sequence[DocumentDecision]) -> None:
    """One paragraph per step."""
    console.print(id, markup=False, highlight=False, style="bold")
    colours = {"dropped": "red", "kept": "green", "scored": "cyan", "encoded": "green"}
    for step in steps:
        where = f" {step['file']}" + (f" line {step['line']:,}" if "line" in step else "") if "file" in step else ""
        size = f", {step['bytes']:,} bytes" if "bytes" in step else ""
        size += f", tokens {step['tokens'][0]:,} to {step['tokens'][1]:,}" if "tokens" in step else ""
        console.print(Text.assemble(
            (f"{step['step']}: ", "bold"), (step["decision"], colours[step["decision"]]), f" ({step['source']}{where}{size})"
        ))  # fmt: skip
        if "reason" in step and "detail" in step:
            console.print(f"  {step['reason']}: {step['detail'][:300]}", markup=False, highlight=False)
        for name, score in step.get("scores", {}).items():
            shown = "nothing found" if score is None else f"{score:.6g}"
            console.print(f"  {name.split('__', 1)[-1]}: {shown}", markup=False, highlight=False, style="dim")
        if copies := step.get("duplicates"):
            more = "" if len(copies) <= 5 else f" and {len(copies) - 5:,} more"
            console.print(f"  kept for: {', '.join(copies[:5])}{more}", markup=False, highlight=False)
