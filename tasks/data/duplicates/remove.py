"""Writing what deduplication keeps and, next to it, what it drops with the id of what stays.

Dropped documents go to `dropped/`, as in every stage. Paragraphs go to `removed/`, one row each; a document that loses all
its paragraphs is dropped as a whole.
"""

from collections.abc import Iterable
from typing import NamedTuple, TypedDict

from infra.workspace import ShardItem, Workspace
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import LineWriter, Row, read_documents, shard_name
from tasks.data.documents.partitions import read_found, read_repeats
from tasks.data.duplicates.documents import dropped_documents, read_ids
from tasks.data.duplicates.pieces import cut_paragraphs, read_units
from tasks.data.duplicates.seen import WHOLE

PARAGRAPHS = "repeated_paragraphs"
NGRAMS = "repeated_ngrams"

Place = tuple[int, int]
"""Shard and row of a document."""


class Removed(NamedTuple):
    """What one shard loses: documents by row, and the parts of a document by row and number; each with the place of the
    document that stays."""

    documents: dict[int, tuple[Place, str]]
    pieces: dict[int, dict[int, Place]]


class KeptCounts(TypedDict):
    """What one shard keeps and loses."""

    sources: dict[str, int]
    """Documents that stay."""
    dropped: dict[str, int]
    """Documents that go, by reason."""
    bytes: int
    """Text that stays."""
    removed: int
    """Paragraphs that go out of documents that stay."""
    removed_bytes: int


def write_shard(ws: Workspace, item: ShardItem) -> KeptCounts:
    """Shard function, the last pass: one shard without what is dropped, and that aside."""
    removed = what_goes(ws, item)
    places = [place for place, _ in removed.documents.values()]
    places += [place for pieces in removed.pieces.values() for place in pieces.values()]
    # Ids are read for what goes only, since all ids of a corpus would not fit.
    ids = _ids_of(ws, places)
    name = kept_name(item)
    result: KeptCounts = {"sources": {}, "dropped": {}, "bytes": 0, "removed": 0, "removed_bytes": 0}
    rows = enumerate(read_documents(ws, Documents.model_validate(item["documents"]), item["name"]))
    reason = NGRAMS if item["within"] == "ngrams" else PARAGRAPHS
    with (
        LineWriter(ws, f"documents/{name}") as keep,
        LineWriter(ws, f"dropped/{name}") as drop,
        LineWriter(ws, f"removed/{name}") as aside,
    ):
        for row, document in rows:
            if row in removed.documents:
                place, why = removed.documents[row]
                _drop(drop, document, why, ids[place], result)
                continue
            pieces = {piece: ids[place] for piece, place in removed.pieces.get(row, {}).items()}
            kept = without(document, pieces)
            # A document of which nothing is left goes whole, with the reason of its parts.
            if not kept["text"].strip() and pieces:
                _drop(drop, document, reason, next(iter(pieces.values())), result)
                continue
            parts = cut_paragraphs(document["text"]) if pieces else []
            for piece, kept_id in sorted(pieces.items()):
                place = {"paragraph": piece, "text": parts[piece], "duplicate_of": kept_id}
                aside.write({"id": document["id"], "source": document["source"], "reason": reason, **place})
                result["removed"] += 1
                result["removed_bytes"] += len(parts[piece].encode())
            keep.write(kept)
            result["bytes"] += len(kept["text"].encode())
            result["sources"][document["source"]] = result["sources"].get(document["source"], 0) + 1
    return result


def kept_name(item: ShardItem) -> str:
    """How the files of a shard are named: by the input and the file that it comes from."""
    return f"{item['input']:03d}-{shard_name(item['name'])}.jsonl.zst"


def without(document: Row, pieces: dict[int, str]) -> Row:
    """The document without these parts; its metadata says how many went."""
    if not pieces:
        return document
    # Joined by newlines again: what stays is byte for byte what it was.
    kept = [text for piece, text in enumerate(cut_paragraphs(document["text"])) if piece not in pieces]
    metadata = {**document.get("metadata", {}), "removed_paragraphs": len(pieces)}
    return {**document, "text": "\n".join(kept), "metadata": metadata}


def _drop(drop: LineWriter, document: Row, reason: str, kept_id: str, result: KeptCounts) -> None:
    drop.write({**document, "reason": reason, "detail": f"same as {kept_id}", "duplicate_of": kept_id})
    result["dropped"][reason] = result["dropped"].get(reason, 0) + 1


def what_goes(ws: Workspace, item: ShardItem) -> Removed:
    """What the passes before found for one shard."""
    kept = dropped_documents(ws, item)
    documents = {row: ((found.shard, found.row), found.reason) for row, found in kept.items()}
    pieces: dict[int, dict[int, Place]] = {}
    if not item["within"]:
        return Removed(documents, pieces)
    shard, shards, partitions = item["shard"], item["shards"], item["parts"]
    read = read_found if item["within"] == "ngrams" else read_repeats
    found = read(ws, item["within"], shard, shards, partitions).tolist()
    units = read_units(ws, shard)
    for (_, unit, _, _), place in zip(found, _rows_of_units(ws, [entry[2:] for entry in found]), strict=True):
        row, piece = units[unit & (WHOLE - 1)].tolist()
        # The highest bit of a unit's number says that it stands for the whole document.
        if unit & WHOLE:
            documents[row] = (place, NGRAMS)
        else:
            pieces.setdefault(row, {})[piece] = place
    return Removed(documents, pieces)


def _rows_of_units(ws: Workspace, places: list[Place]) -> list[Place]:
    """(shard, row) of (shard, unit); one shard's list of units is in memory at a time."""
    rows: dict[Place, int] = {}
    for shard, units in _by_shard(places):
        found = read_units(ws, shard)["row"]
        rows |= {(shard, unit): int(found[unit]) for unit in units}
    return [(shard, rows[shard, unit]) for shard, unit in places]


def _ids_of(ws: Workspace, places: list[Place]) -> dict[Place, str]:
    """Ids of documents; one shard's list of ids is in memory at a time."""
    ids: dict[Place, str] = {}
    for shard, rows in _by_shard(places):
        found = read_ids(ws, shard)
        ids |= {(shard, row): found[row] for row in rows}
    return ids


def _by_shard(places: Iterable[Place]) -> list[tuple[int, set[int]]]:
    numbers: dict[int, set[int]] = {}
    for shard, number in places:
        numbers.setdefault(shard, set()).add(number)
    return sorted(numbers.items())
