"""Stage: one source's documents split in two, told apart by their ids: a held-out share, and the rest.

The trial of curation (flows/phases/curation_trial.py) trains on the rest of filtered and of unfiltered text and judges both on
the same
held-out documents. A document's id decides its part, so it lies in the same part before and after filtering. Ours; the paper
compares filters by whole trainings (section 2.4; RECIPE C).
"""

from typing import Literal

from pydantic import Field

from infra.stage import stage
from infra.workspace import ShardItem, ShardResult, Workspace
from model.config import Config
from tasks.artifacts import Documents
from tasks.data.documents.document_random import draw
from tasks.data.documents.dolma_files import LineWriter, add_counts, read_documents, shard_name
from tasks.data.documents.file_sources import file_bytes, files_of_source


class SetAsideConfig(Config):
    """Which part of which source."""

    source: str
    """The source whose documents are taken; others are left out."""
    part: Literal["held_out", "rest"]
    """The held-out share, or everything else."""
    share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the documents that is held out."""
    seed: int = 0
    """Of the choice."""


def set_aside_documents(ws: Workspace, documents: Documents, config: SetAsideConfig) -> Documents:
    """One part of a source. Raises ValueError for a source that is not there and for a part without documents."""
    if config.source not in documents.sources:
        raise ValueError(
            f"source {config.source!r} is not in {documents.address}; choose one of {', '.join(documents.sources) or 'none'}"
        )
    shared = {"documents": documents.model_dump(mode="json"), "config": config.model_dump(mode="json")}
    names = files_of_source(ws, documents, config.source)
    items = [{"name": name, **shared} for name in names]
    sizes = file_bytes(ws, documents, names)
    results = ws.map(set_aside_shard, items, description=f"set aside {config.source}", sizes=sizes)
    sources = add_counts(results, "sources")
    if not sources:
        raise ValueError(
            f"the {config.part} part of {config.source!r} is empty: share={config.share:g} of its "
            f"{documents.sources[config.source]:,} documents; choose another share"
        )
    return ws.artifact(
        Documents,
        documents=sum(sources.values()),
        bytes=sum(result["bytes"] for result in results),
        sources=sources,
    )


def set_aside_shard(ws: Workspace, item: ShardItem) -> ShardResult:
    """Shard function: the documents of one file that belong to the part."""
    documents, config = Documents.model_validate(item["documents"]), SetAsideConfig.model_validate(item["config"])
    size = 0
    with LineWriter(ws, f"documents/{shard_name(item['name'])}.jsonl.zst") as kept:
        for document in read_documents(ws, documents, item["name"]):
            # By id and seed alone: the same documents are held out before and after filtering.
            held_out = draw(config.seed, document["id"]) < config.share
            if document["source"] == config.source and held_out == (config.part == "held_out"):
                kept.write(document)
                size += len(document["text"].encode())
    return {"sources": {config.source: kept.rows} if kept.rows else {}, "bytes": size}


set_aside = stage(set_aside_documents, name="set_aside", version=1)
