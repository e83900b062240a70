"""Shard work: one function over many items, on Ray or in this process, one commit per shard.

A shard's commit is a marker in the progress area that lists the files it wrote and its result. A later attempt
runs only the shards without one, so a kill costs at most the shards that were running.
"""

import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import orjson

from infra.processes import check_stopping
from infra.record import FileEntry
from infra.store import StoreError

if TYPE_CHECKING:
    from infra.workspace import Workspace

RAY_RETRIES = 3


def run_shards(
    ws: "Workspace",
    function: Callable[["Workspace", Any], Any],
    items: list[Any],
    description: str,
    *,
    ray: str,
) -> list[Any]:
    """All results, in the order of the items; their files are added to the workspace's."""
    slug = re.sub(r"[^a-z0-9]+", "-", description.lower()).strip("-")
    keys = [f"{slug}-{index:06d}" for index in range(len(items))]
    markers: dict[str, dict[str, Any]] = {}
    names = set(ws.store.names(f"{ws.progress_folder}/shards"))
    for key in keys:
        if f"{key}.json" in names:
            markers[key] = ws.store.read_json(f"{ws.progress_folder}/shards/{key}.json")
    if markers:
        ws.resumed_from = f"shard {len(markers)} of {len(items)} ({description})"
    missing = [(key, item) for key, item in zip(keys, items, strict=True) if key not in markers]
    with ws.progress(description, len(items), "shards") as bar:
        bar.advance(len(markers))
        run = shards_here if ray == "off" or len(missing) < 2 else shards_on_ray
        for key, marker in run(ws, function, missing):
            check_stopping()
            markers[key] = marker
            bar.advance()
    for key in keys:
        for name, entry in markers[key]["files"].items():
            if name in ws.written and ws.written[name].sha256 != entry["sha256"]:
                raise StoreError(f"two shards of {ws.stage} wrote {name!r}: file names must be unique per shard")
            ws.written[name] = FileEntry(**entry)
    ws.note(**{f"{slug}_seconds": round(sum(markers[key]["seconds"] for key in keys), 3)})
    return [markers[key]["result"] for key in keys]


def run_shard(ws: "Workspace", function: Callable[["Workspace", Any], Any], key: str, item: Any) -> dict[str, Any]:
    """Run one shard and commit it; returns its marker."""
    shard = ws.for_shard(key)
    began = time.monotonic()
    try:
        result = function(shard, item)
    finally:
        shard.close()
    marker = {
        "files": {name: entry.model_dump() for name, entry in shard.written.items()},
        "result": result,
        "seconds": time.monotonic() - began,
    }
    data = orjson.dumps(marker, option=orjson.OPT_SERIALIZE_NUMPY)
    ws.store.write(f"{ws.progress_folder}/shards/{key}.json", data)
    # What a resumed attempt would read is what this attempt uses.
    return orjson.loads(data)


def shards_here(
    ws: "Workspace", function: Callable[["Workspace", Any], Any], missing: list[tuple[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, item in missing:
        yield key, run_shard(ws, function, key, item)


def shards_on_ray(
    ws: "Workspace", function: Callable[["Workspace", Any], Any], missing: list[tuple[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Shards as Ray tasks, each on one core; a task whose worker or node dies is run again elsewhere."""
    from infra.ray_cluster import connected

    with connected(ws._ray) as ray:
        remote = ray.remote(num_cpus=1, max_retries=RAY_RETRIES)(run_shard)
        # Shards carry no live listener: progress is counted here, as they finish.
        bare = ray.put(ws.for_shard(""))
        waiting = iter(missing)
        # Enough in flight to keep every core busy, few enough that the queue stays small.
        limit = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
        running: dict[Any, str] = {}
        while True:
            while len(running) < limit and (next_item := next(waiting, None)) is not None:
                key, item = next_item
                running[remote.remote(bare, function, key, item)] = key
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                key = running.pop(reference)
                yield key, ray.get(reference)
