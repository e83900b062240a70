"""Finds paragraphs that occur before, compared by hash over all shards (as `dolma dedupe` does, but exact). The passes over
parts of documents share how those are cut: a document that is kept so far is cut at newlines, and each part that is long
enough is a unit, numbered through its shard.
"""

from array import array
from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from infra.workspace import ShardItem, Workspace
from model.config import Config
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import Row, read_documents
from tasks.data.documents.partitions import FoundRepeats, KeySpill, find_all_repeats, put_work, read_work
from tasks.data.duplicates.documents import dropped_documents, text_hash

_UNIT = np.dtype([("row", "<u4"), ("piece", "<u4")])
"""Where a unit is: the row of its document, and which part of it."""


class ParagraphConfig(Config):
    """Drop every paragraph (line) that occurred before, in the order of inputs, shards, rows and lines."""

    kind: Literal["paragraphs"] = "paragraphs"
    min_words: int = Field(default=10, ge=1)
    """Shorter paragraphs are kept: headings, list items and braces repeat with good reason. Not published; Dolma's tool
    takes any length."""


def find_equal_paragraphs(ws: Workspace, shards: list[ShardItem], config: ParagraphConfig) -> FoundRepeats:
    """Find all repeated paragraphs; returns what `find_all_repeats` does."""
    items = [{**shard, "min_words": config.min_words} for shard in shards]
    return find_all_repeats(ws, "paragraphs", ws.map(hash_paragraphs, items, description="hash paragraphs"))


def hash_paragraphs(ws: Workspace, item: ShardItem) -> dict[str, int]:
    """Shard function: the hashes of the paragraphs of the documents that are not dropped already."""
    spill = KeySpill(ws, "paragraphs", item["shard"])
    places = UnitList(ws, item["shard"])
    for row, document in kept_documents(ws, item):
        for piece, text in enumerate(cut_paragraphs(document["text"])):
            if long_enough(text, item["min_words"]):
                spill.add(text_hash(text, item["compare"]), places.add(row, piece))
    places.close()
    return spill.close()


def kept_documents(ws: Workspace, item: ShardItem) -> Iterator[tuple[int, Row]]:
    """(row, document) of a shard's documents that the document passes keep."""
    dropped = dropped_documents(ws, item)
    rows = enumerate(read_documents(ws, Documents.model_validate(item["documents"]), item["name"]))
    return ((row, document) for row, document in rows if row not in dropped)


def cut_paragraphs(text: str) -> list[str]:
    """The paragraphs of a text; joined by newlines they are the text."""
    return text.split("\n")


def long_enough(text: str, words: int) -> bool:
    """Whether a text has so many words."""
    # Most lines are decided by their length, without a list of words.
    return len(text) >= 2 * words - 1 and len(text.split(None, words)) >= words


class UnitList:
    """Notes where the units of a shard are."""

    def __init__(self, ws: Workspace, shard: int):
        self._ws = ws
        self._shard = shard
        self._numbers = array("I")

    def add(self, row: int, piece: int) -> int:
        """Take one unit; returns its number."""
        self._numbers.extend((row, piece))
        # Pairs of (row, piece) in one flat array: 8 bytes a unit.
        return len(self._numbers) // 2 - 1

    def close(self) -> None:
        """Write the list."""
        put_work(self._ws, _units_name(self._shard), self._numbers.tobytes())


def read_units(ws: Workspace, shard: int) -> np.ndarray:
    """The units of a shard, by number."""
    return np.frombuffer(read_work(ws, _units_name(shard)), dtype=_UNIT)


def _units_name(shard: int) -> str:
    return f"units/{shard:05d}.bin"
