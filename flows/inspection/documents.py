"""What curation did, document by document: the funnel, what a rule dropped, and why one document is in or out.

Source: everything is read from the artifacts themselves (RECIPE C.1: attributes next to documents, dropped documents with
reason and detail). So it can be asked of any store at any time, of a recipe or of what lies above any artifact.
"""

import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cli.options import existing_store
from flows.config.errors import RecipeError
from flows.config.files import names_recipe
from flows.inspection.artifacts import find_record
from flows.running.run import load_recipe, plan
from infra.json_values import JsonObject
from infra.records.reader import Reader
from infra.records.record import Record, all_records, lineage, record_of
from infra.storage.store import Store
from model.data.batches import documents_within
from tasks.artifacts import Documents, Tokens
from tasks.data.documents.dolma_files import written_lines
from tasks.data.filters.attributes import highest_scores

DOCUMENTS, DROPPED, ATTRIBUTES, TOKENS = "documents/", "dropped/", "attributes/", "tokens/"
_READING = "collect.json"
"""What a source's files held and what of it was read."""
_WHOLE = 0.999
"""Share of a source's rows below which its reading is told in red."""
EXCERPT_CHARACTERS = 240
"""Shown on each side of what matched."""
SAMPLED_FROM = 50
"""Dropped documents looked at for each one shown: a sample need not read a whole source."""


class SourceReading(TypedDict):
    """What a source's files held and what of it was read (`collect.json`)."""

    files: int
    bad_files: int
    rows: int
    """Rows that the files list."""
    read: int
    documents: int
    bad: dict[str, int]
    """Unusable rows by reason."""


class CurationStep(TypedDict):
    """One step of curation: what came in, what went on, and what was dropped. None stands for what the step does not count."""

    step: str
    id: str
    inputs: list[str]
    """Labels."""
    documents_in: int | None
    bytes_in: int | None
    documents: int
    bytes: int | None
    tokens: int | None
    sources: dict[str, int]
    """Documents by source."""
    reading: SourceReading | None
    dropped: dict[str, int]
    """Documents by reason, the most frequent first."""


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


@dataclass(frozen=True)
class Curated:
    """The records of data stages that are asked about, inputs before what was made of them."""

    reader: Reader
    records: list[Record]

    def lines(self, record: Record, prefix: str, needle: bytes = b"") -> Iterator[tuple[str, int, JsonObject]]:
        """(file, 1-based line, row) of the payload's rows below a prefix whose bytes have the needle."""
        for name in sorted(name for name in record.files if name.startswith(prefix)):
            yield from self.lines_of(record, name, needle)

    def lines_of(self, record: Record, name: str, needle: bytes = b"") -> Iterator[tuple[str, int, JsonObject]]:
        """The same of one file."""
        for number, line in enumerate(written_lines(self.reader.path(record.artifact(), name)), start=1):
            # The needle is looked for in the bytes, since most lines need no parsing at all.
            if needle in line:
                yield name, number, orjson.loads(line)


def curated(target: str | None, store: str | None) -> Curated:
    """The data stages of a recipe, above an artifact id, or (with neither) of the whole store.

    Raises ValueError when there are none.
    """
    if target is not None and names_recipe(target):
        config = load_recipe(target, None, store)
        found = Store(config.execution.store)
        rows = [row.artifact for row in plan(config) if row.artifact is not None]
        records = [record_of(found, artifact) for artifact in rows]
    else:
        found = existing_store(store)
        records = lineage(found, find_record(found, target)) if target is not None else newest(found)
    records = [
        record for record in records if any(name.startswith((DOCUMENTS, ATTRIBUTES, TOKENS)) for name in record.files)
    ]
    if not records:
        what = f"{target} was made from" if target else "it has"
        raise RecipeError(
            f"store {found.url}: {what} no finished data stage; make them: olmo2 run RECIPE --until encode"
        )
    return Curated(Reader(found), records)


def newest(store: Store) -> list[Record]:
    """The newest generation of every artifact of a store, inputs before what was made of them."""
    known = {record.address: record for record in all_records(store)}
    # Records come oldest first, so a later generation replaces an earlier one.
    last = {(record.stage, record.id): record.address for record in known.values()}
    ordered: dict[str, Record] = {}

    def visit(address: str) -> None:
        if address in ordered or address not in known:
            return
        for item in known[address].inputs:
            visit(item.address)
        ordered[address] = known[address]

    # Inputs first: an explanation reads from the source to the token file.
    for address in last.values():
        visit(address)
    newest_addresses = set(last.values())
    return [record for address, record in ordered.items() if address in newest_addresses]


# -- funnel -----------------------------------------------------------------------------------------------


def funnel(asked: Curated) -> list[CurationStep]:
    """Per step: documents, bytes and tokens in and out, and what was dropped for which reason."""
    return [_step(asked, record) for record in asked.records if record.kind in (Documents.__name__, Tokens.__name__)]


def _step(asked: Curated, record: Record) -> CurationStep:
    facts = record.facts
    inputs = [asked.reader.at(item.address) for item in record.inputs if item.kind == Documents.__name__]
    given = [item for item in inputs if isinstance(item, Documents)]
    whole = sum(item.documents for item in given)
    if record.kind == Tokens.__name__:
        # A token file is made of one source of its input.
        taken = sum(item.sources.get(facts["source"], 0) for item in given)
        dropped = {"empty": taken - facts["documents"]} if taken > facts["documents"] else {}
        documents_in, bytes_in, size, tokens, sources = taken, 0, None, facts["tokens"], {}
    else:
        dropped = facts["dropped"]
        documents_in, bytes_in = whole, sum(item.bytes for item in given)
        size, tokens, sources = facts["bytes"], None, facts["sources"]
    return CurationStep(
        step=record.label,
        id=record.id,
        inputs=[item.label for item in map(asked.reader.record, given)],
        documents_in=documents_in or None,
        bytes_in=bytes_in or None,
        documents=facts["documents"],
        bytes=size,
        tokens=tokens,
        sources=sources,
        reading=asked.reader.read_json(record.artifact(), _READING) if _READING in record.files else None,
        # The most frequent first, and ties by name, so that two calls print the same.
        dropped=dict(sorted(dropped.items(), key=lambda item: (-item[1], item[0]))),
    )


def print_funnel(console: Console, steps: Sequence[CurationStep]) -> None:
    """One row per step, one per reason below it."""
    table = Table(
        "step",
        "documents in",
        "kept",
        "%",
        "bytes in",
        "bytes",
        "tokens",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    told: list[Text] = []
    for step in steps:
        kept = step["documents"] / step["documents_in"] if step["documents_in"] else None
        table.add_row(
            step["step"], _number(step["documents_in"]), _number(step["documents"]),
            "" if kept is None else f"{kept:.1%}", _number(step["bytes_in"]), _number(step["bytes"]), _number(step["tokens"]),
        )  # fmt: skip
        if step["reading"]:
            text, style = reading_line(step["reading"])
            told.append(Text(f"{step['step']}: {text}", style=style))
        for reason, count in step["dropped"].items():
            table.add_row(f"  dropped: {reason}", "", f"-{count:,}", style="dim")
    console.print(table, highlight=False)
    if told:
        console.print("\nRead from the sources' files:", style="bold")
        for line in told:
            console.print(line, highlight=False)


def reading_line(reading: SourceReading) -> tuple[str, str]:
    """(sentence, style) on what was listed, read, unusable and kept of a source; red below WHOLE."""
    share = reading["read"] / reading["rows"] if reading["rows"] else 1.0
    unusable = ", ".join(f"{reason} {count:,}" for reason, count in reading["bad"].items())
    files = f"{reading['files']:,} files" + (f" ({reading['bad_files']:,} unusable)" if reading["bad_files"] else "")
    text = (
        f"{files}, {reading['rows']:,} rows listed, {reading['read']:,} read ({floor_percent(share)}), "
        f"{reading['documents']:,} kept" + (f"; unusable: {unusable}" if unusable else "")
    )
    return text, "" if share >= _WHOLE else "bold red"


def floor_percent(share: float) -> str:
    """A share in percent, cut to two decimals, so that less than everything never shows as 100 %."""
    return f"{int(share * 10_000) / 100:.2f} %"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


# -- look -------------------------------------------------------------------------------------------------


def look(asked: Curated, reason: str, count: int, seed: int = 0) -> list[Example]:
    """A seeded sample of documents that were dropped for a reason, as excerpts with what matched. Raises as `dropped_rows`."""
    return [_example(row) for row in dropped_rows(asked, reason, count, seed)]


def dropped_rows(asked: Curated, reason: str, count: int, seed: int = 0) -> list[JsonObject]:
    """A seeded sample of the rows that were dropped for a reason, each with its `step` and the `spans` that matched.

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
    pool: list[JsonObject] = []
    for record, name in files:
        # The reason as JSON text, with its quotes, so that no part of a word matches.
        rows = asked.lines_of(record, name, orjson.dumps(reason))
        pool += [row | {"step": record.label} for _, _, row in rows if row["reason"] == reason]
        if len(pool) >= SAMPLED_FROM * count:
            break
    sample = chance.sample(pool, min(count, len(pool)))
    return [row | {"spans": matched_spans(row)} for row in sample]


def _example(row: JsonObject) -> Example:
    spans = row["spans"]
    start, end = spans[0] if spans else (0, 0)
    first = max(0, start - EXCERPT_CHARACTERS)
    # Without a match the excerpt is the text's beginning, twice as long.
    last = min(len(row["text"]), max(end, start) + (EXCERPT_CHARACTERS if spans else 2 * EXCERPT_CHARACTERS))
    return {
        "id": row["id"],
        "source": row["source"],
        "step": row["step"],
        "reason": row["reason"],
        "detail": row["detail"],
        "matched": [row["text"][begin:stop] for begin, stop in spans],
        "excerpt": row["text"][first:last],
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
