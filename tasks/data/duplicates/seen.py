"""Paragraphs and documents most of whose n-grams occurred before, by a Bloom filter (AllenAI's bff, with which DCLM and
so the recipe's web text was deduplicated).

bff fills one filter from many threads, so that what it drops depends on their timing. Here an n-gram counts as seen if it is
in an earlier unit, in the order of inputs, shards, rows and paragraphs. Shards leave their n-grams' hashes in partitions,
and a partition walks them in that order through its own filter. Memory is bounded by a partition, and results do not depend
on workers. Unlike bff, n-grams of dropped paragraphs are seen too, and a repeated n-gram counts once in its paragraph. For
the report, a second walk looks up where one seen n-gram of each dropped unit stood first.
"""

from collections.abc import Iterator
from typing import Any, Literal, Self, TypedDict

import numpy as np
from pydantic import Field, model_validator

from infra.workspace import ShardItem, Workspace
from model.config import Config
from tasks.data.documents.partitions import (
    BUCKETS,
    REPEAT,
    GroupWriter,
    Spill,
    bucket_of,
    first_of_equal,
    group_sizes,
    partitions,
    put_pieces,
    put_work,
    read_groups,
    read_many,
    read_pieces,
    read_work,
    write_groups,
)
from tasks.data.duplicates.bloom import BloomFilter, shape
from tasks.data.duplicates.pieces import UnitList, cut_paragraphs, kept_documents, long_enough, read_units
from tasks.data.filters.ngrams import word_ngrams
from tasks.data.filters.windows import WINDOW_CHARACTERS, window_batches

NGRAM = np.dtype([("hash", "<u8"), ("unit", "<u4")])
SEEN = np.dtype([("hash", "<u8"), ("unit", "<u4"), ("count", "<u4")])
"""How many n-grams of a unit were seen in one partition, and the least hash among them."""
WHOLE = 1 << 31
"""Marks a unit number as standing for its whole document."""
_AROUND = 4
"""Bits of memory for each n-gram besides its own in the filter: records of one piece at a time."""


class NGramConfig(Config):
    """Drop what consists of n-grams that occurred before; defaults as published for DCLM (bff)."""

    kind: Literal["ngrams"] = "ngrams"
    ngram: int = Field(default=13, ge=1)
    """Words per n-gram; shorter paragraphs are kept and not counted."""
    max_seen: float = Field(default=0.8, gt=0, le=1)
    """Share of seen n-grams from which on something is dropped."""
    drop: Literal["paragraphs", "documents", "both"] = "both"
    """Paragraphs; whole documents by the share over all their paragraphs; or these and, of the others, paragraphs."""
    false_positive_rate: float = Field(default=0.01, gt=0, lt=1)
    """Chance that the filter takes a new n-gram for a seen one."""

    @model_validator(mode="after")
    def _rate_is_reached(self) -> Self:
        shape(self.false_positive_rate)
        return self


class SeenCounts(TypedDict):
    """N-grams and units of all shards, and what is dropped of them."""

    ngrams: int
    units: int
    dropped: dict[str, int]
    """Paragraphs and documents."""


class FoundSeen(TypedDict):
    """What the passes over n-grams have found."""

    partitions: int
    """For `read_found`."""
    clusters: SeenCounts


def find_seen(ws: Workspace, shards: list[ShardItem], config: NGramConfig) -> FoundSeen:
    """Find what is to be dropped; `partitions` for `read_found`, and how many `units` were dropped of how many."""
    plain = config.model_dump(mode="json")
    hashed = ws.map(hash_ngrams, [{**shard, "ngrams": plain} for shard in shards], description="hash n-grams")
    put_pieces(ws, "ngrams", [result["pieces"] for result in hashed])
    total = sum(result["ngrams"] for result in hashed)
    shared = {"shards": len(shards), "rate": config.false_positive_rate}
    bits, _ = shape(config.false_positive_rate)
    parts = [
        {"partition": number, "first": first, "end": end, **shared}
        for number, (first, end) in enumerate(partitions(ws, total, (bits + _AROUND) / 8))
    ]
    ws.map(count_seen, parts, description=f"count seen n-grams in {len(parts)}")
    items = [{"shard": s["shard"], "shards": len(shards), "partitions": len(parts), "ngrams": plain} for s in shards]
    decided = ws.map(_decide, items, description="decide")
    ws.map(find_first, parts, description=f"find first n-grams in {len(parts)}")
    dropped = {name: sum(result[name] for result in decided) for name in ("paragraphs", "documents")}
    units = sum(result["units"] for result in hashed)
    return {"partitions": len(parts), "clusters": {"ngrams": total, "units": units, "dropped": dropped}}


def hash_ngrams(ws: Workspace, item: ShardItem) -> dict[str, int]:
    """Shard function: the distinct n-grams of every unit, and how many each has."""
    config = NGramConfig.model_validate(item["ngrams"])
    spill, units, totals = Spill(ws, "ngrams", item["shard"]), UnitList(ws, item["shard"]), []
    for first, texts in _unit_batches(kept_documents(ws, item), units, config.ngram):
        counts = np.zeros(len(texts), dtype="<u4")
        for windows, owners in window_batches(texts, config.ngram):
            grams = word_ngrams(windows, config.ngram)
            owner = np.array(owners, dtype="<u4")[grams.text]
            order = np.lexsort((grams.hashes, owner))
            hashes, owner = grams.hashes[order], owner[order]
            new = first_of_equal(hashes, owner)
            records = np.zeros(int(new.sum()), dtype=NGRAM)
            records["hash"], records["unit"] = hashes[new], first + owner[new]
            spill.add(records)
            # bincount over the batch: units without a new n-gram count 0.
            counts += np.bincount(owner[new], minlength=len(texts)).astype("<u4")
        totals.append(counts)
    spill.flush()
    units.close()
    totals = np.concatenate([np.zeros(0, dtype="<u4"), *totals])
    put_work(ws, f"totals/{item['shard']:05d}.bin", totals.astype("<u4").tobytes())
    return {"pieces": spill.pieces, "ngrams": spill.records, "units": len(totals)}


def _unit_batches(documents: Iterator[tuple[int, Any]], units: UnitList, words: int) -> Iterator[tuple[int, list[str]]]:
    """(number of the first, texts) of units in batches of bounded size."""
    first, batch, size = 0, [], 0
    for row, document in documents:
        for piece, text in enumerate(cut_paragraphs(document["text"])):
            if not long_enough(text, words):
                # Short units neither count nor are dropped: they have no n-gram of this length.
                continue
            units.add(row, piece)
            batch.append(text)
            size += len(text)
            if size >= WINDOW_CHARACTERS:
                yield first, batch
                first, batch, size = first + len(batch), [], 0
    if batch:
        yield first, batch


def count_seen(ws: Workspace, item: ShardItem) -> None:
    """Shard function: walk one partition's n-grams in order and count, per unit, those that an earlier one has."""
    first, end = item["first"], item["end"]
    pieces = list(read_pieces(ws, "ngrams"))
    names = [name for _, name in pieces]
    bloom = BloomFilter(group_sizes(ws, names, first, end), first, BUCKETS.bit_length() - 1, item["rate"])
    writer = GroupWriter(ws, f"seen/{item['partition']:05d}.bin", item["shards"])
    for shard, name in pieces:
        records = read_groups(ws, name, first, end, BUCKETS, NGRAM)
        records = records[np.argsort(records["hash"], kind="stable")]
        new = first_of_equal(records["hash"])
        run = np.cumsum(new) - 1
        hashes = records["hash"][new]
        before = bloom.find(hashes)
        bloom.add(hashes)
        # Within a piece, equal hashes stand in the order of their units.
        seen = before[run] | (records["unit"] > records["unit"][new][run])
        writer.append(shard, _per_unit(records[seen]))
    writer.close()


def _per_unit(seen: np.ndarray) -> np.ndarray:
    order = np.lexsort((seen["hash"], seen["unit"]))
    units, starts, counts = np.unique(seen["unit"][order], return_index=True, return_counts=True)
    result = np.zeros(len(units), dtype=SEEN)
    result["hash"], result["unit"], result["count"] = seen["hash"][order][starts], units, counts
    return result


def _decide(ws: Workspace, item: ShardItem) -> dict[str, int]:
    """Shard function: the units of one shard that are dropped, each with one seen n-gram to be looked up."""
    config = NGramConfig.model_validate(item["ngrams"])
    shard = item["shard"]
    units = read_units(ws, shard)
    totals = np.frombuffer(read_work(ws, f"totals/{shard:05d}.bin"), dtype="<u4").astype(np.int64)
    counts = np.zeros(len(units), dtype=np.int64)
    least = np.full(len(units), np.iinfo(np.uint64).max, dtype=np.uint64)
    names = [f"seen/{number:05d}.bin" for number in range(item["partitions"])]
    for part in read_many(ws, names, shard, shard + 1, item["shards"], SEEN):
        np.add.at(counts, part["unit"], part["count"])
        np.minimum.at(least, part["unit"], part["hash"])
    # >= so that a unit that consists of seen n-grams alone is dropped at a limit of 1.
    paragraphs, firsts = counts >= config.max_seen * totals, np.zeros(0, dtype=np.int64)
    if config.drop != "paragraphs" and len(units):
        document = np.unique(units["row"], return_inverse=True)[1]
        seen, all = np.bincount(document, counts), np.bincount(document, totals)
        whole = seen >= config.max_seen * all
        # A whole document is named after its first unit of which anything was seen.
        named = np.flatnonzero(whole[document] & (counts > 0))
        firsts = named[np.unique(document[named], return_index=True)[1]]
        paragraphs = paragraphs & ~whole[document] if config.drop == "both" else np.zeros(len(units), dtype=bool)
    wanted = np.zeros(int(paragraphs.sum()) + len(firsts), dtype=NGRAM)
    chosen = np.concatenate([np.flatnonzero(paragraphs), firsts])
    wanted["hash"], wanted["unit"] = least[chosen], chosen
    # Marked by the highest bit: these entries speak for whole documents.
    wanted["unit"][len(chosen) - len(firsts) :] |= WHOLE
    write_groups(ws, f"wanted/{shard:05d}.bin", wanted, bucket_of(wanted["hash"]), BUCKETS)
    return {"paragraphs": int(paragraphs.sum()), "documents": len(firsts)}


def find_first(ws: Workspace, item: ShardItem) -> None:
    """Shard function: for one partition, the unit in which each wanted n-gram stood first."""
    first, end, shards = item["first"], item["end"], item["shards"]
    names = [f"wanted/{shard:05d}.bin" for shard in range(shards)]
    parts = list(read_many(ws, names, first, end, BUCKETS, NGRAM))
    wanted = np.concatenate(parts)
    hashes = np.unique(wanted["hash"])
    owners = np.zeros(len(hashes), dtype=REPEAT)
    open_places = np.ones(len(hashes), dtype=bool)
    for shard, name in read_pieces(ws, "ngrams"):
        if not open_places.any():
            # Every wanted n-gram has its first place, so the remaining pieces need not be read.
            break
        records = read_groups(ws, name, first, end, BUCKETS, NGRAM)
        place = np.minimum(np.searchsorted(hashes, records["hash"]), len(hashes) - 1)
        found = np.flatnonzero((hashes[place] == records["hash"]) & open_places[place])
        places, index = np.unique(place[found], return_index=True)
        owners["kept_shard"][places] = shard
        # Records of a bucket stand in the order of their units, so the first of a hash is the first unit.
        owners["kept_row"][places] = records["unit"][found[index]]
        open_places[places] = False
    result = owners[np.searchsorted(hashes, wanted["hash"])]
    result["shard"] = np.repeat(np.arange(shards), [len(part) for part in parts])
    result["row"] = wanted["unit"]
    write_groups(ws, f"ngrams/repeats-{item['partition']:05d}.bin", result, result["shard"], shards)
