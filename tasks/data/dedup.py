"""Stage: exact and near duplicates over several document artifacts, out of core (paper section 2.4; RECIPE
C.5 names a deduplicated set).

Three passes, each a map over shards: hash every text (128 bits, sorted, cut into partitions by the hash's
first bits); in each partition put equal hashes together and keep the first in the order of inputs, shards and
lines; write every shard without its duplicates. Memory is bounded by one partition. Near-duplicates (`near`)
are found by MinHash bands and connected components. A dropped document is kept in `dropped/` with the id of
the one that stayed. `hashes/` and `duplicates/` hold the first two passes' results, for audit.
"""

import hashlib
from typing import Any, Literal

import numpy as np
import orjson
from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Documents
from tasks.data.dolma import (
    LineWriter,
    add_counts,
    batches,
    document_files,
    read_documents,
    read_own,
    shard_name,
)
from tasks.data.filters.minhash import MinHashConfig, band_keys, cluster, signatures

HASHED = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u4")])
"""A document in a shard's hash file: two halves of its hash, and its 0-based line."""
DUPLICATE = np.dtype([("shard", "<u4"), ("row", "<u4"), ("kept_shard", "<u4"), ("kept_row", "<u4")])
"""A duplicate in a partition's file, sorted by shard and row: where it is, and where the kept one is."""

EXACT = "exact_duplicate"
NEAR = "near_duplicate"


class DedupConfig(Config):
    """What counts as the same document."""

    compare: Literal["text", "words"] = "text"
    """The stripped text as it is, or its lower-cased words without regard to white space."""
    near: MinHashConfig | None = None
    """Also drop near-duplicates: all but the first of each component of similar texts. Its clustering holds
    one 64-bit key per band and document in the memory of one process (1 million documents: about 300 MB)."""
    partition_documents: int = Field(default=4_000_000, gt=0)
    """Documents per partition: bounds memory to about 200 MB."""


def dedup_documents(ws: Workspace, documents: list[Documents], config: DedupConfig) -> Documents:
    """All inputs' documents, each text once. Raises ValueError for no input or an input given twice."""
    shards = [
        {"input": number, "name": name} for number, part in enumerate(documents) for name in document_files(ws, part)
    ]
    if not shards:
        raise ValueError("dedup needs at least one documents artifact")
    total = sum(part.documents for part in documents)
    partitions = max(1, -(-total // config.partition_documents))
    inputs = [part.model_dump(mode="json") for part in documents]
    for index, shard in enumerate(shards):
        shard |= {
            "shard": index,
            "documents": inputs[shard["input"]],
            "compare": config.compare,
            "partitions": partitions,
            "shards": len(shards),
        }
    hashed = ws.map(hash_shard, shards, description="hash")
    parts = [
        {"partition": number, "cuts": [result["cuts"][number : number + 2] for result in hashed]}
        for number in range(partitions)
    ]
    ws.map(find_duplicates, parts, description="compare")
    files = [(f"{number:05d}", EXACT) for number in range(partitions)]
    if config.near is not None:
        near = config.near.model_dump(mode="json")
        signed = ws.map(sign_shard, [{**shard, "near": near} for shard in shards], description="sign")
        rows = [result["rows"] for result in signed]
        ws.map(join_similar, [{"rows": rows, "bands": config.near.bands}], description="cluster")
        files.append(("near", NEAR))
    results = ws.map(write_shard, [{**shard, "files": files} for shard in shards], description="write")
    kept, dropped = add_counts(results, "sources"), add_counts(results, "dropped")
    assert total == sum(kept.values()) + sum(dropped.values()), (total, kept, dropped)
    return ws.artifact(
        Documents,
        documents=sum(kept.values()),
        bytes=sum(result["bytes"] for result in results),
        sources=kept,
        dropped=dropped,
    )


def text_hash(text: str, compare: str) -> bytes:
    """16 bytes; equal for texts that count as the same."""
    if compare == "words":
        text = " ".join(text.lower().split())
    return hashlib.blake2b(text.strip().encode("utf-8", errors="surrogatepass"), digest_size=16).digest()


def hash_shard(ws: Workspace, item: dict[str, Any]) -> dict[str, Any]:
    """Shard function, first pass: sorted hashes, ids in line order, and where each partition begins."""
    documents = Documents.model_validate(item["documents"])
    digests, ids = [], []
    for document in read_documents(ws, documents, item["name"]):
        digests.append(text_hash(document["text"], item["compare"]))
        ids.append(document["id"])
    rows = np.zeros(len(ids), dtype=HASHED)
    halves = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)
    rows["high"], rows["low"], rows["row"] = halves[:, 0], halves[:, 1], np.arange(len(ids))
    rows.sort(order=["high", "low", "row"])
    width = -(-(1 << 64) // item["partitions"])
    borders = np.array([width * number for number in range(1, item["partitions"])], dtype=np.uint64)
    cuts = [0, *np.searchsorted(rows["high"], borders).tolist(), len(rows)]
    ws.write(f"hashes/{item['shard']:05d}.bin", rows.tobytes())
    ws.write(f"hashes/{item['shard']:05d}.ids.json", orjson.dumps(ids))
    return {"cuts": cuts}


def find_duplicates(ws: Workspace, item: dict[str, Any]) -> dict[str, Any]:
    """Shard function, second pass: the duplicates of one partition, with an offset per shard in front."""
    parts, shards = [], []
    for shard, (start, end) in enumerate(item["cuts"]):
        with ws.store.open(f"{ws.payload}/hashes/{shard:05d}.bin") as file:
            file.seek(start * HASHED.itemsize)
            part = np.frombuffer(file.read((end - start) * HASHED.itemsize), dtype=HASHED)
        parts.append(part)
        shards.append(np.full(len(part), shard, dtype=np.uint32))
    found = duplicates(np.concatenate(parts), np.concatenate(shards))
    _write_duplicates(ws, f"{item['partition']:05d}", found, len(item["cuts"]))
    return {"duplicates": len(found)}


def _write_duplicates(ws: Workspace, name: str, found: np.ndarray, shards: int) -> None:
    """Entries behind a header of one offset per shard and one for the end."""
    offsets = np.searchsorted(found["shard"], np.arange(shards + 1)).astype("<u8")
    ws.write(f"duplicates/{name}.bin", offsets.tobytes() + found.tobytes())


def duplicates(rows: np.ndarray, shards: np.ndarray) -> np.ndarray:
    """Entries (DUPLICATE) of all rows (HASHED) but the first of each hash, in order of shard and line."""
    order = np.lexsort((rows["row"], shards, rows["low"], rows["high"]))
    rows, shards = rows[order], shards[order]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
    kept = np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))
    again = np.flatnonzero(~first)
    found = np.zeros(len(again), dtype=DUPLICATE)
    found["shard"], found["row"] = shards[again], rows["row"][again]
    found["kept_shard"], found["kept_row"] = shards[kept[again]], rows["row"][kept[again]]
    found.sort(order=["shard", "row"])
    return found


def sign_shard(ws: Workspace, item: dict[str, Any]) -> dict[str, Any]:
    """Shard function: MinHash band keys of every document, `bands` numbers per line."""
    documents = Documents.model_validate(item["documents"])
    config = MinHashConfig.model_validate(item["near"])
    keys = [
        band_keys(signatures([document["text"] for document in batch], config), config)
        for batch in batches(read_documents(ws, documents, item["name"]))
    ]
    ws.write(f"bands/{item['shard']:05d}.bin", np.concatenate(keys).astype("<u8").tobytes())
    return {"rows": sum(map(len, keys))}


def join_similar(ws: Workspace, item: dict[str, Any]) -> dict[str, Any]:
    """Shard function, run once: components of similar documents over all shards."""
    names = [f"bands/{shard:05d}.bin" for shard in range(len(item["rows"]))]
    keys = np.concatenate([np.frombuffer(read_own(ws, name), dtype="<u8") for name in names])
    clusters = cluster(keys.reshape(-1, item["bands"]))
    again = np.flatnonzero(clusters.kept != np.arange(len(clusters.kept)))
    firsts = np.concatenate([[0], np.cumsum(item["rows"])])
    found = np.zeros(len(again), dtype=DUPLICATE)
    for shard, row, index in (("shard", "row", again), ("kept_shard", "kept_row", clusters.kept[again])):
        found[shard] = np.searchsorted(firsts, index, side="right") - 1
        found[row] = index - firsts[found[shard]]
    _write_duplicates(ws, "near", found, len(item["rows"]))
    sizes = sorted(clusters.sizes.values(), reverse=True)
    ws.write_json("clusters.json", {"clusters": len(sizes), "documents": sum(sizes), "largest": sizes[:20]})
    return {"duplicates": len(found)}


def write_shard(ws: Workspace, item: dict[str, Any]) -> dict[str, Any]:
    """Shard function, third pass: the shard without its duplicates, and those aside."""
    documents = Documents.model_validate(item["documents"])
    repeated = _duplicates_of(ws, item["shard"], item["shards"], item["files"])
    ids: dict[int, list[str]] = {}
    name = f"{item['input']:03d}-{shard_name(item['name'])}.jsonl.zst"
    sources: dict[str, int] = {}
    dropped: dict[str, int] = {}
    size = 0
    with LineWriter(ws, f"documents/{name}") as keep, LineWriter(ws, f"dropped/{name}") as drop:
        for row, document in enumerate(read_documents(ws, documents, item["name"])):
            if row in repeated:
                shard, kept_row, reason = repeated[row]
                if shard not in ids:
                    ids[shard] = orjson.loads(read_own(ws, f"hashes/{shard:05d}.ids.json"))
                kept_id = ids[shard][kept_row]
                drop.write({**document, "reason": reason, "detail": f"same as {kept_id}", "duplicate_of": kept_id})
                dropped[reason] = dropped.get(reason, 0) + 1
                continue
            keep.write(document)
            size += len(document["text"].encode())
            sources[document["source"]] = sources.get(document["source"], 0) + 1
    return {"sources": sources, "dropped": dropped, "bytes": size}


def _duplicates_of(
    ws: Workspace, shard: int, shards: int, files: list[tuple[str, str]]
) -> dict[int, tuple[int, int, str]]:
    """Line -> (shard, line, reason) of the kept document, for the duplicates in one shard; exact ones first."""
    found: dict[int, tuple[int, int, str]] = {}
    for name, reason in files:
        with ws.store.open(f"{ws.payload}/duplicates/{name}.bin") as file:
            header = np.frombuffer(file.read(8 * (shard + 2)), dtype="<u8")
            first, end = int(header[shard]), int(header[shard + 1])
            if first == end:
                continue
            file.seek(8 * (shards + 1) + first * DUPLICATE.itemsize)
            entries = np.frombuffer(file.read((end - first) * DUPLICATE.itemsize), dtype=DUPLICATE)
        for _, row, kept_shard, kept_row in entries.tolist():
            # The first of a component stays whatever is exactly equal to a later member of it.
            found[row] = (kept_shard, kept_row, found[row][2] if row in found else reason)
    return found


dedup = stage(dedup_documents, name="dedup", version=1)
