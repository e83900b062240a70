"""What each page of a store is given: plain values with names, as the templates read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from infra.records.index import Summary
from infra.records.marks import Mark
from infra.records.record import Record
from tasks.evaluation.comparing.differences import Difference


class ArtifactList(TypedDict):
    """One page of the artifacts that fit."""

    rows: list[Summary]
    count: int
    """Of all that fit."""
    page: int
    pages: int
    stage: str
    words: str


class RunEnd(Summary):
    """An artifact that nothing was made from."""

    recipe: str
    """Name of the recipe that its config gives; empty where it gives none."""


class Runs(TypedDict):
    """Where each run has come to."""

    ends: list[RunEnd]
    count: int
    """Of all records."""
    tags: list[Mark]


@dataclass(frozen=True)
class GraphNode:
    """A box of the lineage."""

    id: str
    generation: int
    label: str
    stage: str
    x: int
    y: int
    own: bool


class Graph(TypedDict):
    """Boxes and lines of a lineage, in pixels."""

    nodes: list[GraphNode]
    lines: list[tuple[GraphNode, GraphNode]]
    width: int
    height: int
    box: tuple[int, int]
    left_out: int
    """Artifacts that are not drawn."""


class LossCurve(TypedDict):
    """A loss as a line in a box of 600 x 160."""

    line: str
    """Points as SVG writes them."""
    low: float
    high: float
    first: int
    last: int
    end: float
    """The last value."""


class ArtifactPage(TypedDict):
    """Everything about one artifact; facts, config and cost by dotted path."""

    record: Record
    bytes: int
    facts: dict[str, object]
    config: dict[str, object]
    cost: dict[str, object]
    users: list[Summary]
    graph: Graph
    curve: LossCurve | None
    samples: list[str]
    """Files of rows."""
    tags: list[str]
    pinned: bool
    said: Sequence[object]
    """Notes."""


class Samples(TypedDict):
    """One page of a file's rows."""

    record: Record
    file: str
    rows: list[tuple[int, dict[str, str]]]
    """0-based number and the fields as text."""
    page: int
    more: bool


class ComparedPage(TypedDict):
    """How two artifacts differ."""

    first: Record
    second: Record
    differences: dict[str, list[str]]
    scores: list[Difference]
