"""Stage: documents that overlap with evaluation items are removed (RECIPE C.6; paper section 4.3).

The evaluation sets are those of the recipe's own benchmark definitions; `tasks.data.filters.overlap` has the measure.
`report.json` says per benchmark how many items and documents were touched, with examples. Where nothing is left the artifact
is empty and says so; the stage that would read it refuses it by name.
"""

from infra.stage import stage
from infra.workspace import ShardItem, ShardResult, Workspace
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import (
    LineWriter,
    Row,
    add_counts,
    batches,
    document_files,
    read_documents,
    shard_name,
)
from tasks.data.documents.file_sources import file_bytes, write_file_sources
from tasks.data.filters.overlap import (
    REASON,
    DecontaminateConfig,
    Items,
    Overlap,
    OverlapExample,
    OverlapRule,
    benchmark_report,
    count_values,
    example_of,
    find_overlaps,
    write_items,
)


def decontaminate_documents(ws: Workspace, documents: Documents, config: DecontaminateConfig) -> Documents:
    """The documents without those that overlap; none may be left. Raises ValueError if a benchmark has no items."""
    # Written once and read by every shard, since all benchmarks' n-grams do not fit into an item.
    owners, items = write_items(ws, config, config.rules_of(list(documents.sources)))
    shared = {"documents": documents.model_dump(mode="json"), "config": config.model_dump(mode="json")}
    names = document_files(ws, documents)
    shards = [{"name": name, **shared} for name in names]
    results = ws.map(decontaminate_shard, shards, description="decontaminate", sizes=file_bytes(ws, documents, names))
    kept = add_counts(results, "sources")
    dropped = sum(result["dropped"] for result in results)
    # Nothing may vanish: each document is either kept or dropped with a reason.
    assert documents.documents == sum(kept.values()) + dropped, (documents.documents, kept, dropped)
    # A source that is emptied stops nothing here; the stage that would read it refuses it by name.
    for source in sorted(documents.sources.keys() - kept.keys()):
        rule = config.rule_of(source)
        assert rule is not None, source
        ws.warn(
            f"source {source!r} is emptied: each of its {documents.sources[source]:,} documents overlaps with an evaluation "
            f"item (ngram={rule.ngram}, direction={rule.direction}, max_overlap={rule.max_overlap}); take it out of the "
            "recipe, or raise one of them under decontaminate.sources"
        )
    parts = [
        (f"documents/{shard_name(name)}.jsonl.zst", result["sources"])
        for name, result in zip(names, results, strict=True)
    ]
    write_file_sources(ws, parts)
    ws.write_json("report.json", benchmark_report(config, owners, items, results))
    # Exemptions are written down, so that a report can say which text was never checked.
    ws.write_json("exempt.json", {name: why for name, why in config.exempt.items() if name in documents.sources})
    return ws.artifact(
        Documents,
        documents=sum(kept.values()),
        bytes=sum(result["bytes"] for result in results),
        sources=kept,
        dropped={REASON: dropped} if dropped else {},
    )


def decontaminate_shard(ws: Workspace, item: ShardItem) -> ShardResult:
    """Shard function: one document file, and what was found in it by item."""
    documents, config = Documents.model_validate(item["documents"]), DecontaminateConfig.model_validate(item["config"])
    items = {rule.items_name: Items.read(ws, rule) for rule in config.rules_of(list(documents.sources))}
    shard = f"{shard_name(item['name'])}.jsonl.zst"
    sources: dict[str, int] = {}
    touched: dict[str, int] = {}
    examples: list[OverlapExample] = []
    dropped = size = 0
    with LineWriter(ws, f"documents/{shard}") as keep, LineWriter(ws, f"dropped/{shard}") as drop:
        for batch in batches(read_documents(ws, documents, item["name"])):
            overlaps = _batch_overlaps(batch, items, config)
            for index, document in enumerate(batch):
                overlap, rule = overlaps.get(index), config.rule_of(document["source"])
                for number in overlap["items"] if overlap else ():
                    touched[str(number)] = touched.get(str(number), 0) + 1
                # Documents of exempt sources have no rule and are kept as they are.
                if rule is None or overlap is None or overlap["share"] < rule.max_overlap:
                    keep.write(document)
                    size += len(document["text"].encode())
                    sources[document["source"]] = sources.get(document["source"], 0) + 1
                    continue
                dropped += 1
                detail = f"{overlap['share']:.3f} of {rule.direction} n-grams, limit {rule.max_overlap}: "
                drop.write({**document, "reason": REASON, "detail": detail + repr(overlap["shown"])})
                examples.append(example_of(document["id"], overlap))
    # Examples of each item's first documents are enough for a report.
    return {
        "sources": sources,
        "dropped": dropped,
        "bytes": size,
        "touched": touched,
        "examples": examples[:50],
        "removed": count_values(example["item"] for example in examples),
    }


def _batch_overlaps(batch: list[Row], items: dict[str, Items], config: DecontaminateConfig) -> dict[int, Overlap]:
    """The overlap of each document by its source's rule, by its place in the batch."""
    groups: dict[OverlapRule, list[int]] = {}
    for place, row in enumerate(batch):
        if rule := config.rule_of(row["source"]):
            # Equal rules share one call: reading the items costs more than scanning a batch.
            groups.setdefault(OverlapRule(**rule.model_dump(include=set(OverlapRule.model_fields))), []).append(place)
    found: dict[int, Overlap] = {}
    for rule, places in groups.items():
        rows = [batch[place] for place in places]
        overlaps = find_overlaps(rows, items[rule.items_name], rule.ngram, rule.direction)
        found |= {places[index]: overlap for index, overlap in overlaps.items()}
    return found


decontaminate = stage(decontaminate_documents, name="decontaminate", version=5)
