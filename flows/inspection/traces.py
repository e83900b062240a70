"""What a trace says, of a step or of a document, and how it is shown."""

from typing import TypedDict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.cli.options import print_whole

PREVIEW = 100
"""Steps that are named of a document that many read."""


class TracedDocument(TypedDict):
    """A document of a token file."""

    id: str
    source: str
    src: str
    """The document shard that it was encoded from."""
    loc: str
    """Its 1-based line there."""
    start: int
    """First token in the token file."""
    end: int
    scores: dict[str, float | None]
    """The highest of each attribute that a filter stage left next to it."""


class ReadDocument(TracedDocument):
    """A document that a window has tokens of."""

    tokens: int


class PlacedDocument(TracedDocument):
    """Where a document lies in a mix, and who reads it."""

    file: str
    passes: int
    """How often the mix reads its file."""
    steps: list[int]
    """Updates that read any of its tokens, from 1."""


class TracedWindow(TypedDict):
    """One window of a batch."""

    source: str
    file: str
    start: int
    """First token in the file."""
    end: int
    documents: list[ReadDocument]


class OfTraining(TypedDict):
    """Which training is traced."""

    label: str
    id: str
    steps: int
    """Updates of the whole training."""


class StepTrace(OfTraining):
    """What a step read."""

    step: int
    epoch: int
    tokens: int
    """Of the batch."""
    windows: list[TracedWindow]


class DocumentTrace(OfTraining):
    """Who read a document."""

    document: str
    places: list[PlacedDocument]


def print_trace(console: Console, traced: StepTrace | DocumentTrace) -> None:
    """Documents of a step, or places and steps of a document."""
    if "windows" in traced:
        title = f"{traced['label']} {traced['id']}: update {traced['step']:,} of {traced['steps']:,}, epoch {traced['epoch']}"
        table = Table(
            "source", "document", "tokens", "of", "src", "line", "scores", title=title, box=None, pad_edge=False
        )
        for window in traced["windows"]:
            for read in window["documents"]:
                size = read["end"] - read["start"]
                cells = (
                    window["source"], read["id"], f"{read['tokens']:,}", f"{size:,}", read["src"],
                    read["loc"], _said(read["scores"]),
                )  # fmt: skip
                # As text, since brackets of an id are not markup.
                table.add_row(*map(Text, cells))
            table.add_section()
        print_whole(console, table)
        return
    for place in traced["places"]:
        console.print(f"{place['file']} tokens {place['start']:,} to {place['end']:,}, from {place['src']} line {place['loc']}",
                      highlight=False, markup=False)  # fmt: skip
        if place["scores"]:
            console.print(f"  {_said(place['scores'])}", highlight=False, markup=False)
        steps = (
            ", ".join(f"{step:,}" for step in place["steps"][:PREVIEW]) or "none: its part of the file was not reached"
        )
        console.print(f"  read by updates {steps}", highlight=False, markup=False)


def _said(scores: dict[str, float | None]) -> str:
    return ", ".join(f"{name.split('__', 1)[-1]} {value:.4g}" for name, value in scores.items() if value is not None)
