"""Ids that occur twice in a source: the first document keeps its place, later ones are kept aside with file and line.

Out of core: items leave the hashes of their ids in partitions (`tasks/data/documents/partitions.py`), and only the document
files in which something repeats are written again, as `<name>.unique.jsonl.zst`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import orjson

from infra.workspace import ShardItem, ShardResult, Workspace
from tasks.data.documents.dolma_files import LineWriter, Row, parse_rows, read_own
from tasks.data.documents.partitions import find_all_repeats, group_sizes, read_repeats, read_work
from tasks.data.sources.files.listing import SourceFile
from tasks.data.sources.intake import EXAMPLES, PLACE, example, part_name
from tasks.data.sources.reading.lines import count_lines

REPEATED = "repeated_id"


def set_repeated_ids_aside(ws: Workspace, results: list[ShardResult]) -> list[ShardResult]:
    """Take the documents whose id came before out of the payload. Returns, per item that has any, their counts as
    `Intake.finish` does, with negative `documents` and `bytes`."""
    ids = [result["ids"] for result in results]
    partitions = find_all_repeats(ws, "ids", ids)["partitions"]
    shards = len(results)
    found = np.array([result["repeats"] for result in ids])
    found += group_sizes(ws, [f"ids/repeats-{number:05d}.bin" for number in range(partitions)], 0, shards)
    items = [{"item": item, "shards": shards, "partitions": partitions} for item in np.flatnonzero(found).tolist()]
    removed = ws.map(_set_aside, items, description="repeated ids") if items else []
    for result in removed:
        for name in result["replaced"]:
            # Removed only now: until all items are written, an attempt that ends can be made again from them.
            del ws.written[name]
            ws.store.remove(ws.address(name))
    return removed


def _set_aside(ws: Workspace, item: ShardItem) -> ShardResult:
    """Shard function: write one item's document files without those that repeat an id."""
    number = item["item"]
    rows = read_repeats(ws, "ids", number, item["shards"], item["partitions"])["row"]
    places = np.frombuffer(read_work(ws, f"places/{number:05d}.bin"), dtype=PLACE)
    pinned = orjson.loads(read_work(ws, f"places/{number:05d}.json"))
    urls, files = [url for url, _ in pinned], dict(pinned)
    repeated = set(rows.tolist())
    # A byte range's rows share what stands before it, which may be most of a large file.
    lines_before = cache(lambda url, first: count_lines(SourceFile.model_validate(files[url]), first))
    size, examples, replaced = 0, [], []
    with LineWriter(ws, f"bad/{number:05d}-ids.jsonl.zst") as bad:
        for part in np.unique(places["part"][rows]).tolist():
            name = part_name(number, part)
            replaced.append(name)
            # Documents are numbered through the item; the part's first one is found by bisection.
            first = int(np.searchsorted(places["part"], part))
            with LineWriter(ws, name.replace(".jsonl", ".unique.jsonl")) as keep:
                for row, document in enumerate(parse_rows(read_own(ws, name)), first):
                    if row not in repeated:
                        keep.write(document)
                        continue
                    kept_aside = _bad_row(document, places[row], urls, lines_before)
                    bad.write(kept_aside)
                    if len(examples) < EXAMPLES:
                        examples.append(example(kept_aside))
                    size += len(document["text"].encode())
    count = len(repeated)
    # Negative counts are added to what the items reported before.
    counts = {"documents": -count, "bytes": -size, "repaired": 0, "bad": {REPEATED: count}}
    return {**counts, "examples": examples, "passed_over": {}, "files": {}, "replaced": replaced}


def _bad_row(document: Row, place: Any, urls: list[str], lines_before: Callable[[str, int], int]) -> Row:
    """A document as it is kept aside. The lines before a byte range are counted now that they matter."""
    url, line = urls[place["file"]], int(place["line"])
    if place["first"]:
        line += lines_before(url, int(place["first"]))
    detail = f"id {document['id'][:200]!r} came before; the whole document is here"
    group = {"group": int(place["group"])} if place["group"] >= 0 else {}
    return {"file": url, "line": line, **group, "reason": REPEATED, "detail": detail, "document": document}
