"""Documents with equal text: hashes of 128 bits, compared in partitions over all shards."""

import hashlib
from typing import NamedTuple

import numpy as np
import orjson

from infra.workspace import ShardItem, Workspace
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import read_documents
from tasks.data.documents.partitions import (
    FoundRepeats,
    KeySpill,
    find_all_repeats,
    put_work,
    read_found,
    read_repeats,
    read_work,
)

EXACT = "exact_duplicate"
NEAR = "near_duplicate"


class Duplicate(NamedTuple):
    """Why a document is dropped, and where the one that stays is."""

    shard: int
    row: int
    reason: str


def find_equal_documents(ws: Workspace, shards: list[ShardItem]) -> FoundRepeats:
    """Find all repeated texts; returns what `find_all_repeats` does."""
    return find_all_repeats(ws, "texts", ws.map(hash_texts, shards, description="hash", sizes=sizes_of(ws, shards)))


def sizes_of(ws: Workspace, shards: list[ShardItem]) -> list[int]:
    """Bytes of the document file of each shard."""
    inputs = {shard["input"]: Documents.model_validate(shard["documents"]) for shard in shards}
    files = {number: ws.record(documents).files for number, documents in inputs.items()}
    return [files[shard["input"]][shard["name"]].size for shard in shards]


def text_hash(text: str, compare: str) -> bytes:
    """16 bytes; equal for texts that count as the same."""
    if compare == "words":
        text = " ".join(text.lower().split())
    # surrogatepass: texts with lone surrogates are compared by their bytes.
    return hashlib.blake2b(text.strip().encode("utf-8", errors="surrogatepass"), digest_size=16).digest()


def hash_texts(ws: Workspace, item: ShardItem) -> dict[str, int]:
    """Shard function: the texts' hashes, and the ids in line order for naming what is kept."""
    spill = KeySpill(ws, "texts", item["shard"])
    ids = []
    documents = Documents.model_validate(item["documents"])
    for row, document in enumerate(read_documents(ws, documents, item["name"])):
        spill.add(text_hash(document["text"], item["compare"]), row)
        ids.append(document["id"])
    put_work(ws, _ids_name(item["shard"]), orjson.dumps(ids))
    return spill.close()


def read_ids(ws: Workspace, shard: int) -> list[str]:
    """Ids of a shard's documents, by row."""
    return orjson.loads(read_work(ws, _ids_name(shard)))


def _ids_name(shard: int) -> str:
    return f"ids/{shard:05d}.json"


def dropped_documents(ws: Workspace, item: ShardItem) -> dict[int, Duplicate]:
    """Rows of a shard that the document passes drop. `item` has the number of partitions of each: `exact` and `near`."""
    shard, shards = item["shard"], item["shards"]
    equal = read_repeats(ws, "texts", shard, shards, item["exact"])
    dropped = _by_row(equal, EXACT)
    if item["near"]:
        similar = _by_row(read_found(ws, "near", shard, shards, item["near"]), NEAR)
        # The first of a component of similar texts also stands for the exact copies of the others.
        for row, kept in similar.items():
            dropped[row] = kept._replace(reason=EXACT) if row in dropped else kept
    return dropped


def _by_row(found: np.ndarray, reason: str) -> dict[int, Duplicate]:
    return {row: Duplicate(kept_shard, kept_row, reason) for _, row, kept_shard, kept_row in found.tolist()}
