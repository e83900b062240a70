"""The funnel of curation: what came into each step, what went on, and what was dropped for which reason."""

from collections.abc import Sequence
from typing import TypedDict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.inspection.curated import Curated
from infra.records.record import Record
from tasks.artifacts import Documents, ReadCounts, Tokens

_READING = "collect.json"
"""What a source's files held and what of it was read."""
_WHOLE = 0.999
"""Share of a source's rows below which its reading is told in red."""


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
    reading: ReadCounts | None
    dropped: dict[str, int]
    """Documents by reason, the most frequent first."""


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


def reading_line(reading: ReadCounts) -> tuple[str, str]:
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
