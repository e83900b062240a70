"""Stage: documents that overlap with evaluation items are removed (RECIPE C.6; paper section 4.3).

The evaluation sets are those of the recipe's own benchmark definitions, each item as question and gold
answer. Two directions: the share of a document's n-grams that some item has (the paper's FLAN rule as read in
C.6, 10 %), or the share of one item's n-grams that the document has, which finds an item hidden in a long
document. `report.json` says per benchmark how many items and documents were touched, with examples.
Deviation: n and the direction are not published; n = 8 words is the choice made in RECIPE C.6.
"""

from typing import Any, Literal

import numpy as np
from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import (
    LineWriter,
    Row,
    add_counts,
    batches,
    document_files,
    read_documents,
    read_own,
    shard_name,
)
from tasks.data.filters.ngrams import NGrams, NGramSet, word_ngrams
from tasks.evaluation.benchmarks import BenchmarkConfig, load_items

REASON = "contaminated"
OWNED = np.dtype([("hash", "<u8"), ("item", "<u4")])
"""An n-gram of an item, in `ngrams.bin`, sorted by hash."""

_EXAMPLES = 3
_PIECE_CHARACTERS = 4_000_000


class DecontaminateConfig(Config):
    """The evaluation sets, and how much overlap is too much."""

    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """Benchmarks whose items must not be in the documents."""
    ngram: int = Field(default=8, ge=1)
    """Words per n-gram (RECIPE C.6). A shorter text is one n-gram of all its words."""
    direction: Literal["document", "item"] = "document"
    """Share of the document's n-grams found in any item, or share of an item's n-grams found in the document.
    """
    max_overlap: float = Field(default=0.10, gt=0, le=1)
    """Documents with this share or more are removed (paper section 4.3)."""


def decontaminate_documents(ws: Workspace, documents: Documents, config: DecontaminateConfig) -> Documents:
    """The documents without those that overlap. Raises ValueError if nothing is left, or a benchmark has no
    items."""
    owners, items = _write_items(ws, config)
    shared = {
        "documents": documents.model_dump(mode="json"),
        "ngram": config.ngram,
        "direction": config.direction,
        "max_overlap": config.max_overlap,
        "sizes": "item_sizes.bin",
    }
    shards = [{"name": name, **shared} for name in document_files(ws, documents)]
    results = ws.map(decontaminate_shard, shards, description="decontaminate")
    kept = add_counts(results, "sources")
    dropped = sum(result["dropped"] for result in results)
    assert documents.documents == sum(kept.values()) + dropped, (documents.documents, kept, dropped)
    if not kept:
        raise ValueError(f"every document overlaps with a benchmark; raise max_overlap={config.max_overlap} or ngram")
    ws.write_json("report.json", _report(config, owners, items, results))
    return ws.artifact(
        Documents,
        documents=sum(kept.values()),
        bytes=sum(result["bytes"] for result in results),
        sources=kept,
        dropped={REASON: dropped} if dropped else {},
    )


def _write_items(ws: Workspace, config: DecontaminateConfig) -> tuple[np.ndarray, list[str]]:
    """Put the items' n-grams where every shard finds them. Returns each item's benchmark number, and the item
    ids."""
    texts: list[str] = []
    ids: list[str] = []
    owners: list[int] = []
    for number, benchmark in enumerate(config.benchmarks):
        items = load_items(benchmark)
        texts += [item.text for item in items]
        ids += [item.id for item in items]
        owners += [number] * len(items)
    grams = word_ngrams(texts, config.ngram)
    owned = np.zeros(len(grams.hashes), dtype=OWNED)
    owned["hash"], owned["item"] = grams.hashes, grams.text
    owned = np.unique(owned)
    ws.write("ngrams.bin", owned.tobytes())
    ws.write("item_sizes.bin", np.bincount(owned["item"], minlength=len(texts)).astype("<u4").tobytes())
    return np.array(owners), ids


class Items:
    """The items' n-grams as a shard uses them."""

    def __init__(self, owned: np.ndarray, sizes: np.ndarray):
        self.owned = owned
        self.sizes = sizes
        self.ngrams = NGramSet(owned["hash"])

    def having(self, hash: np.uint64) -> list[int]:
        """Items that have an n-gram."""
        first, end = np.searchsorted(self.owned["hash"], [hash, hash + np.uint64(1)])
        return self.owned["item"][first:end].tolist()


def decontaminate_shard(ws: Workspace, item: dict[str, Any]) -> dict[str, Any]:
    """Shard function: one document file, and what was found in it by item."""
    documents = Documents.model_validate(item["documents"])
    items = Items(
        np.frombuffer(read_own(ws, "ngrams.bin"), dtype=OWNED),
        np.frombuffer(read_own(ws, item["sizes"]), dtype="<u4"),
    )
    shard = f"{shard_name(item['name'])}.jsonl.zst"
    sources: dict[str, int] = {}
    touched: dict[str, int] = {}
    examples: list[dict[str, Any]] = []
    dropped = size = 0
    with LineWriter(ws, f"documents/{shard}") as keep, LineWriter(ws, f"dropped/{shard}") as drop:
        for batch in batches(read_documents(ws, documents, item["name"])):
            overlaps = find_overlaps(batch, items, item["ngram"], item["direction"])
            for index, document in enumerate(batch):
                overlap = overlaps.get(index)
                if overlap is not None:
                    for number in overlap["items"]:
                        touched[str(number)] = touched.get(str(number), 0) + 1
                if overlap is None or overlap["share"] < item["max_overlap"]:
                    keep.write(document)
                    size += len(document["text"].encode())
                    sources[document["source"]] = sources.get(document["source"], 0) + 1
                    continue
                dropped += 1
                detail = f"{overlap['share']:.3f} of {item['direction']} n-grams, limit {item['max_overlap']}: "
                drop.write({**document, "reason": REASON, "detail": detail + repr(overlap["shown"])})
                example = {"document": document["id"], "share": round(overlap["share"], 4), "words": overlap["shown"]}
                examples.append({**example, "item": overlap["items"][0]})
    # Examples of each item's first documents are enough for a report.
    return {
        "sources": sources,
        "dropped": dropped,
        "bytes": size,
        "touched": touched,
        "examples": examples[:50],
        "removed": _count(example["item"] for example in examples),
    }


def find_overlaps(
    documents: list[Row], items: Items, n: int, direction: Literal["document", "item"]
) -> dict[int, dict[str, Any]]:
    """For each document with any n-gram of an item: the share in the asked direction, the items (most shared
    first), the words."""
    pieces = [(index, piece) for index, row in enumerate(documents) for piece in _pieces(row["text"], n)]
    grams = word_ngrams([piece for _, piece in pieces], n)
    owner = np.array([index for index, _ in pieces], dtype=np.int64)[grams.text]
    totals = np.bincount(owner, minlength=len(documents))
    found = items.ngrams.find(grams.hashes)
    overlaps: dict[int, dict[str, Any]] = {}
    for index in np.unique(owner[found]).tolist():
        mine = found[owner[found] == index]
        overlaps[index] = _overlap(grams, mine, int(totals[index]), items, direction)
    return overlaps


def _overlap(
    grams: NGrams, found: np.ndarray, total: int, items: Items, direction: Literal["document", "item"]
) -> dict[str, Any]:
    counts: dict[int, int] = {}
    for hash in np.unique(grams.hashes[found]):
        for number in items.having(hash):
            counts[number] = counts.get(number, 0) + 1
    shares = {number: count / int(items.sizes[number]) for number, count in counts.items()}
    order = sorted(shares, key=lambda number: (-shares[number], number))
    share = len(found) / total if direction == "document" else shares[order[0]]
    return {"share": share, "items": order, "shown": grams.show(int(found[0]))}


def _pieces(text: str, n: int) -> list[str]:
    """A very long text in pieces that together have its n-grams once each, so that memory stays bounded."""
    if len(text) <= _PIECE_CHARACTERS:
        return [text]
    pieces, start = [], 0
    while len(text) - start > _PIECE_CHARACTERS:
        cut = text.rfind(" ", start + 1, start + _PIECE_CHARACTERS)
        cut = cut if cut > 0 else start + _PIECE_CHARACTERS
        pieces.append(text[start:cut])
        start = cut
    pieces.append(text[start:])
    tails = ["", *(_last_words(piece, n - 1) for piece in pieces[:-1])]
    return [f"{tail} {piece}" for tail, piece in zip(tails, pieces, strict=True)]


def _last_words(text: str, count: int) -> str:
    grams = word_ngrams([text[-100 * (count + 1) :]], 1)
    return "" if not count or not len(grams.start) else grams.normalised[grams.start[-count:][0] :].decode()


def _count(values: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[str(value)] = counts.get(str(value), 0) + 1
    return counts


def _report(
    config: DecontaminateConfig, owners: np.ndarray, ids: list[str], results: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """One row per benchmark."""
    touched, removed = add_counts(results, "touched"), add_counts(results, "removed")
    examples = [example for result in results for example in result["examples"]]
    rows = []
    for number, benchmark in enumerate(config.benchmarks):
        mine = {str(index) for index in np.flatnonzero(owners == number)}
        shown = [example for example in examples if str(example["item"]) in mine][:_EXAMPLES]
        rows.append(
            {
                "benchmark": benchmark.name,
                "items": len(mine),
                "items_found": len(mine & touched.keys()),
                "documents_touched_by_items": sum(touched[key] for key in mine & touched.keys()),
                "documents_removed": sum(removed[key] for key in mine & removed.keys()),
                "examples": [{**example, "item": ids[example["item"]]} for example in shown],
            }
        )
    return rows


decontaminate = stage(decontaminate_documents, name="decontaminate", version=1)
