"""What a scorer says of documents, as Dolma attributes, and the limits by which a rule decides (RECIPE C.1).

Measuring and deciding are apart. A scorer turns texts into numbers and spans, which are written next to the documents as
`attributes/<name>/`. A mark is one span [first character, end, score]; a score of the whole document spans all of it. A rule
is limits on those numbers, so a changed threshold decides again without measuring again.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

EXPERIMENT = "olmo2"
"""First part of every attribute's name."""

_DIGITS = 6
"""Decimals of a written score: what is decided on is what is written."""

Span = tuple[int, int, float]

Scale = Literal["share", "probability", "count", "grade"]
"""How a score's histogram is cut: 0 to 1 evenly, 0 to 1 by powers of ten, 0 upwards by powers of two, 0 to 5 evenly."""

_EDGES: dict[str, np.ndarray] = {
    "share": np.linspace(0, 1, 51),
    "probability": np.concatenate([[0.0], np.logspace(-6, 0, 61)]),
    "count": np.concatenate([[0.0], 2 ** np.linspace(0, 24, 49)]),
    "grade": np.linspace(0, 5, 51),
}


class DocumentScores(NamedTuple):
    """One scorer's word on a batch of texts."""

    values: Mapping[str, Sequence[float] | np.ndarray]
    """One number per text, by label."""
    spans: Mapping[str, list[list[Span]]] = MappingProxyType({})
    """Marked places of each text, by label."""
    texts: list[str] | None = None
    """The texts to go on with, where the scorer changes them."""


class Limit(NamedTuple):
    """The numbers of one label with which a document is kept, both ends included."""

    label: str
    least: float
    most: float
    scale: Scale


def attribute_name(scorer: str, label: str) -> str:
    """The name of an attribute: experiment, tagger and label, as Dolma has it."""
    return f"{EXPERIMENT}__{scorer}__{label}"


def attribute_rows(scorer: str, scores: DocumentScores, lengths: Sequence[int]) -> list[dict[str, list[Span]]]:
    """The attributes of each text. `lengths` are characters of the texts that were measured."""
    rows: list[dict[str, list[Span]]] = [{} for _ in lengths]
    for label, values in scores.values.items():
        name = attribute_name(scorer, label)
        # Rounded before deciding, so that a document is judged by the number that is written.
        numbers = np.round(np.asarray(values, dtype=np.float64), _DIGITS).tolist()
        for row, length, number in zip(rows, lengths, numbers, strict=True):
            # A score of the whole document is one span over all of it.
            row[name] = [(0, length, number)]
    for label, spans in scores.spans.items():
        name = attribute_name(scorer, label)
        for row, found in zip(rows, spans, strict=True):
            row[name] = found
    return rows


def highest_scores(attributes: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float | None]:
    """The highest score of each attribute's spans, as they are read back; None where nothing was marked."""
    return {name: max((span[2] for span in spans), default=None) for name, spans in attributes.items()}


def broken_limit(limits: Sequence[tuple[str, Limit]], attributes: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """What is wrong with a document, by the first of (attribute name, limit) that its attributes break; empty when none."""
    for name, limit in limits:
        value = attributes[name][0][2]
        # Both ends belong to the range: a score that equals its limit passes.
        if not limit.least <= value <= limit.most:
            return f"{limit.label} is {value:g}, {_wanted(limit)}"
    return ""


def _wanted(limit: Limit) -> str:
    if limit.most == float("inf"):
        return f"at least {limit.least:g} wanted"
    if limit.least <= 0:
        return f"at most {limit.most:g} wanted"
    return f"{limit.least:g} to {limit.most:g} wanted"


def edges(scale: Scale) -> np.ndarray:
    """Edges of the histogram's bins on a scale, ascending; what lies outside belongs to the outermost bins."""
    return _EDGES[scale]


def bin_counts(values: Sequence[float] | np.ndarray, scale: Scale) -> np.ndarray:
    """How many values fall into each bin."""
    borders = _EDGES[scale]
    # Values beyond the edges fall into the outermost bins, so no document is missing from a histogram.
    places = np.searchsorted(borders, np.asarray(values, dtype=np.float64), side="right") - 1
    return np.bincount(np.clip(places, 0, len(borders) - 2), minlength=len(borders) - 1)
