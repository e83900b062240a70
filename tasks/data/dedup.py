"""Stage: duplicates over several document artifacts, out of core (paper section 2.4; RECIPE C.5 names a deduplicated set).

Always documents with equal text; if asked for, similar documents (`near`: MinHash) and repeated parts of documents
(`within`: paragraphs by hash, or n-grams by a Bloom filter). Every pass maps over shards, which leave keys in partitions,
and then over partitions, which compare them (tasks/data/documents/partitions.py). So memory is bounded by a partition. What
is first in the order of inputs, shards and rows stays. `dropped/` has the documents that go and `removed/` the paragraphs,
each with the id of what stayed; `clusters.json` counts the groups of equals.
"""

from typing import Annotated, Literal, TypedDict

from pydantic import Field

from infra.stage import stage
from infra.workspace import ShardItem, Workspace
from model.config import Config
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import add_counts, document_files
from tasks.data.documents.file_sources import write_file_sources
from tasks.data.documents.partitions import ClusterCounts
from tasks.data.duplicates.documents import find_equal_documents, sizes_of
from tasks.data.duplicates.minhash import MinHashConfig
from tasks.data.duplicates.near import find_similar_documents
from tasks.data.duplicates.pieces import ParagraphConfig, find_equal_paragraphs
from tasks.data.duplicates.remove import kept_name, write_shard
from tasks.data.duplicates.seen import NGramConfig, SeenCounts, find_seen


class DedupConfig(Config):
    """What counts as the same."""

    compare: Literal["text", "words"] = "text"
    """The stripped text as it is, or its lower-cased words without regard to white space."""
    near: MinHashConfig | None = None
    """Also drop near-duplicates: all but the first of each component of similar texts."""
    within: Annotated[ParagraphConfig | NGramConfig, Field(discriminator="kind")] | None = None
    """Also drop parts of documents that occurred before, in the documents that are left."""


class Passes(TypedDict):
    """What the passes so far have left for a later one: numbers of partitions."""

    exact: int
    near: int
    within: str
    """The kind of the pass over parts of documents; empty without one."""
    parts: int


def dedup_documents(ws: Workspace, documents: list[Documents], config: DedupConfig) -> Documents:
    """All inputs' documents, each text once. Raises ValueError for no input."""
    shards = list_shards(ws, documents, config)
    equal = find_equal_documents(ws, shards)
    clusters: dict[str, ClusterCounts | SeenCounts] = {"exact": equal["clusters"]}
    # "near" and "within" stay empty where those passes are off, and `write_shard` then skips them.
    known: Passes = {"exact": equal["partitions"], "near": 0, "within": "", "parts": 0}
    if config.near is not None:
        # Near-duplicates come after exact ones, whose copies need no signature of their own.
        near = find_similar_documents(ws, [{**shard, **known} for shard in shards], config.near)
        known["near"], clusters["near"] = near["partitions"], near["clusters"]
    if config.within is not None:
        # Paragraphs are compared among the documents that are left, so a dropped copy hides nothing.
        items = [{**shard, **known} for shard in shards]
        if isinstance(config.within, ParagraphConfig):
            within = find_equal_paragraphs(ws, items, config.within)
        else:
            within = find_seen(ws, items, config.within)
        known["within"], known["parts"] = config.within.kind, within["partitions"]
        clusters[config.within.kind] = within["clusters"]
    results = ws.map(
        write_shard, [{**shard, **known} for shard in shards], description="write", sizes=sizes_of(ws, shards)
    )
    write_file_sources(
        ws,
        ((f"documents/{kept_name(shard)}", result["sources"]) for shard, result in zip(shards, results, strict=True)),
    )
    kept, dropped = add_counts(results, "sources"), add_counts(results, "dropped")
    total = sum(part.documents for part in documents)
    # Nothing may vanish: each document is either kept or dropped with a reason.
    assert total == sum(kept.values()) + sum(dropped.values()), (total, kept, dropped)
    removed = {name: sum(result[name] for result in results) for name in ("removed", "removed_bytes")}
    ws.write_json("clusters.json", {**clusters, "paragraphs_removed": removed} if config.within else clusters)
    return ws.artifact(
        Documents,
        documents=sum(kept.values()),
        bytes=sum(result["bytes"] for result in results),
        sources=kept,
        dropped=dropped,
    )


def list_shards(ws: Workspace, documents: list[Documents], config: DedupConfig) -> list[ShardItem]:
    """One item per document file of all inputs, in order. ValueError if there is none."""
    found = [(number, name) for number, part in enumerate(documents) for name in document_files(ws, part)]
    if not found:
        raise ValueError("dedup needs at least one documents artifact")
    # One JSON form per input: items of the same input share it.
    inputs = [part.model_dump(mode="json") for part in documents]
    return [
        {
            "shard": shard,
            "shards": len(found),
            "input": number,
            "documents": inputs[number],
            "name": name,
            "compare": config.compare,
        }
        for shard, (number, name) in enumerate(found)
    ]


dedup = stage(dedup_documents, name="dedup", version=3)
