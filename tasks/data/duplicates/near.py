"""Near-duplicate documents over all shards: MinHash bands, and connected components of what agrees in one.

Exact copies are not signed; they come in as edges of the graph, so that the first of a component stands for all. The keys
of the bands are compared in partitions, and the graph is contracted in partitions of its nodes (components.py), a
node being shard and row in one number. All of it is bounded by a partition, but for the neighbours of one document.
"""

import numpy as np

from infra.workspace import ShardItem, Workspace
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import batches, read_documents
from tasks.data.documents.partitions import (
    BUCKETS,
    REPEAT,
    ClusterCounts,
    FoundRepeats,
    Spill,
    add_clusters,
    bucket_of,
    count_clusters,
    first_of_equal,
    partitions,
    put_pieces,
    read_many,
    read_partition,
    read_repeats,
    write_groups,
)
from tasks.data.duplicates.components import Edges, both_ways, distinct, large_star, small_star, stars
from tasks.data.duplicates.documents import sizes_of
from tasks.data.duplicates.minhash import MinHashConfig, band_keys, signatures

_BAND = np.dtype([("key", "<u8"), ("row", "<u4")])
"""Key of one band of a document, and its row."""
EDGE = np.dtype([("one", "<u8"), ("two", "<u8")])
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


def find_similar_documents(ws: Workspace, shards: list[ShardItem], config: MinHashConfig) -> FoundRepeats:
    """Find the documents that are similar to an earlier one; `partitions` for `read_found`, and `clusters`."""
    near = config.model_dump(mode="json")
    signed = ws.map(
        sign_shard, [{**shard, "minhash": near} for shard in shards], description="sign", sizes=sizes_of(ws, shards)
    )
    put_pieces(ws, "bands", [result["pieces"] for result in signed])
    parts = partitions(ws, sum(result["keys"] for result in signed))
    items = [{"partition": number, "first": first, "end": end} for number, (first, end) in enumerate(parts)]
    matched = ws.map(match_bands, items, description=f"match in {len(parts)}")
    edges = sum(result["edges"] for result in signed + matched)
    names = [f"edges/copies-{shard['shard']:05d}.bin" for shard in shards]
    names += [f"edges/bands-{number:05d}.bin" for number in range(len(parts))]
    parts, names = contract(ws, names, edges)
    items = [
        {"partition": number, "first": first, "end": end, "names": names, "shards": len(shards)}
        for number, (first, end) in enumerate(parts)
    ]
    settled = ws.map(settle, items, description=f"cluster in {len(parts)}")
    return {"partitions": len(parts), "clusters": add_clusters(settled)}


def sign_shard(ws: Workspace, item: ShardItem) -> dict[str, int]:
    """Shard function: band keys of every document that is no exact copy, and an edge for each that is."""
    config = MinHashConfig.model_validate(item["minhash"])
    copies = read_repeats(ws, "texts", item["shard"], item["shards"], item["exact"])
    repeats = _Repeats(item["shard"])
    spill = Spill(ws, "bands", item["shard"], repeats.take_out)
    # An exact copy is similar to what its original is similar to, so its signature need not be computed.
    skipped = set(copies["row"].tolist())
    documents = Documents.model_validate(item["documents"])
    rows = enumerate(read_documents(ws, documents, item["name"]))
    signed = ({"text": document["text"], "row": row} for row, document in rows if row not in skipped)
    for batch in batches(signed):
        keys = band_keys(signatures([row["text"] for row in batch], config), config)
        records = np.zeros(keys.shape, dtype=_BAND)
        # [:, None] repeats the row's number over its bands.
        records["key"], records["row"] = keys, np.array([row["row"] for row in batch])[:, None]
        spill.add(records[keys != 0])
    spill.flush()
    edges = Edges(_nodes(copies["shard"], copies["row"]), _nodes(copies["kept_shard"], copies["kept_row"]))
    edges = Edges(*(np.concatenate(ends) for ends in zip(edges, *repeats.edges, strict=True)))
    return {
        "pieces": spill.pieces,
        "keys": spill.records,
        "edges": _write_edges(ws, f"edges/copies-{item['shard']:05d}.bin", edges),
    }


class _Repeats:
    """The band keys that repeat within a piece become edges at once: a key that half of the corpus has fills no partition."""

    def __init__(self, shard: int):
        self._shard = np.array(shard)
        self.edges: list[Edges] = []

    def take_out(self, records: np.ndarray) -> np.ndarray:
        """One record of each key, the first."""
        order = np.argsort(records["key"], kind="stable")
        records = records[order]
        first = first_of_equal(records["key"])
        again = np.flatnonzero(~first)
        heads = np.flatnonzero(first)[np.cumsum(first)[again] - 1]
        nodes = _nodes(self._shard, records["row"][np.concatenate([again, heads])])
        self.edges.append(distinct(Edges(nodes[: len(again)], nodes[len(again) :])))
        # One record of each key is enough for other shards to meet it.
        return records[first]


def match_bands(ws: Workspace, item: ShardItem) -> dict[str, int]:
    """Shard function: an edge from each document to the first that has the same key, in one partition of keys."""
    records, shards = read_partition(ws, "bands", item["first"], item["end"], _BAND)
    order = np.argsort(records["key"], kind="stable")
    keys, nodes = records["key"][order], _nodes(shards, records["row"])[order]
    first = first_of_equal(keys)
    # Each record's head is the first record with its key.
    heads = nodes[np.flatnonzero(first)][np.cumsum(first) - 1]
    edges = Edges(nodes[~first], heads[~first])
    return {"edges": _write_edges(ws, f"edges/bands-{item['partition']:05d}.bin", edges)}


def contract(ws: Workspace, names: list[str], edges: int) -> tuple[list[tuple[int, int]], list[str]]:
    """Make the graph in these files stars, by rounds over partitions of its nodes; returns these and the files."""
    parts = partitions(ws, edges)
    # A graph that fits into memory needs no rounds.
    if len(parts) == 1:
        ws.map(contract_whole, [{"names": names}], description="contract")
        return parts, ["edges/whole.bin"]
    number, changed = 0, True
    while changed:
        changed = False
        for step in ("large", "small"):
            label = f"{number:02d}-{step}"
            items = [
                {"partition": part, "first": first, "end": end, "names": names, "step": step, "label": label}
                for part, (first, end) in enumerate(parts)
            ]
            results = ws.map(contract_part, items, description=f"contract {label} in {len(parts)}")
            names = [f"edges/{label}-{part:05d}.bin" for part in range(len(parts))]
            changed |= any(result["changed"] for result in results)
        number += 1
    return parts, names


def contract_whole(ws: Workspace, item: ShardItem) -> None:
    """Shard function: the stars of a graph that is one partition."""
    _write_edges(ws, "edges/whole.bin", stars(_read_edges(ws, item["names"], 0, BUCKETS)))


def contract_part(ws: Workspace, item: ShardItem) -> dict[str, bool]:
    """Shard function: one half of a round for one partition of the nodes."""
    edges = _read_edges(ws, item["names"], item["first"], item["end"])
    found, changed = large_star(edges) if item["step"] == "large" else small_star(edges)
    _write_edges(ws, f"edges/{item['label']}-{item['partition']:05d}.bin", found)
    return {"changed": changed}


def settle(ws: Workspace, item: ShardItem) -> ClusterCounts:
    """Shard function: the documents of the stars around one partition of the nodes, by their shard."""
    edges = _read_edges(ws, item["names"], item["first"], item["end"])
    # Edges lie in both directions; of a star, the node with the lowest number is the one that stays.
    outward = edges.one < edges.two
    kept, again = edges.one[outward], edges.two[outward]
    found = np.zeros(len(kept), dtype=REPEAT)
    for shard, row, nodes in (("shard", "row", again), ("kept_shard", "kept_row", kept)):
        found[shard], found[row] = nodes >> np.uint64(32), nodes & np.uint64(0xFFFFFFFF)
    write_groups(ws, f"near/repeats-{item['partition']:05d}.bin", found, found["shard"], item["shards"])
    # Each star's centre appears once per outward edge, so the size is one more.
    return count_clusters(np.unique(kept, return_counts=True)[1] + 1)


def _nodes(shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
    # Shard in the upper 32 bits, row in the lower: comparing numbers compares the order of documents.
    return (shards.astype(np.uint64) << np.uint64(32)) | rows.astype(np.uint64)


def _write_edges(ws: Workspace, name: str, edges: Edges) -> int:
    """Edges in both directions by the bucket of their first node; returns how many."""
    one, two = both_ways(edges)
    records = np.zeros(len(one), dtype=EDGE)
    records["one"], records["two"] = one, two
    with np.errstate(over="ignore"):
        # Multiplied first: nodes of one shard share their upper bits and would fill one bucket.
        write_groups(ws, name, records, bucket_of(one * _SPREAD), BUCKETS)
    return len(records)


def _read_edges(ws: Workspace, names: list[str], first: int, end: int) -> Edges:
    """All edges of the nodes of some buckets, sorted, each once."""
    records = np.concatenate(list(read_many(ws, names, first, end, BUCKETS, EDGE)))
    return distinct(Edges(records["one"], records["two"]))
