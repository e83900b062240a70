"""Maps one function over many items (shards), on Ray or in this process, with one commit per shard.

A shard's commit is a marker in the progress area that lists the files it wrote and its result, created once and never
replaced. A later attempt runs only the shards without one, so a kill costs at most the shards that were running. Two runs of
one shard may overlap: a straggler and its second run, or a worker that outlives its driver. The first marker counts, and the
other run must have written the same bytes.
"""

import re
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from typing import Any, TypedDict

import orjson

from infra.compute.nodes import keep_off_cordoned
from infra.compute.ray_connection import connected
from infra.compute.shard_actors import actor_results
from infra.compute.shard_tasks import RETRIES, Flight
from infra.records.record import FileEntry
from infra.stopping import check_stopping
from infra.storage.store import StoreError
from infra.workspace import Loading, Workspace

UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
"""Of progress in bytes: the largest of which there are ten."""
READ_AT_ONCE = 16
"""Markers read at a time when a stage resumes: an object store answers in tens of milliseconds, a stage may have 100,000."""


class ShardFile(TypedDict):
    """A file that a shard wrote."""

    size: int
    sha256: str


class ShardMarker(TypedDict):
    """The commit of a shard, as it is in the store."""

    files: dict[str, ShardFile]
    result: Any
    """What the shard's function returned."""
    seconds: float
    folder: str
    """Where the attempt that ran it writes its payload."""


def run_shards(
    ws: Workspace,
    function: Callable[[Workspace, Any], Any],
    items: list[Any],
    description: str,
    *,
    ray: str,
    loading: Loading | None = None,
    sizes: Sequence[int] | None = None,
    agree: Callable[[Any], Any] | None = None,
) -> list[Any]:
    """All results, in the order of the items; their files are added to the workspace's. `sizes`: bytes that each item reads,
    for the progress. `agree`: see `Workspace.map`.
    """
    # Keys are names of objects, so only what every store takes is left.
    slug = re.sub(r"[^a-z0-9]+", "-", description.lower()).strip("-")
    # Six digits, so that names sort like numbers up to a million shards.
    keys = [f"{slug}-{index:06d}" for index in range(len(items))]
    markers: dict[str, ShardMarker] = committed_shards(ws, keys)
    if agree is not None:
        # Each rank has listed by itself, and another attempt may have committed a shard in between.
        markers = agree(markers)
    if markers:
        ws.resumed_from = f"shard {len(markers)} of {len(items)} ({description})"
    missing = [(key, item) for key, item in zip(keys, items, strict=True) if key not in markers]
    shares, unit = _shares(keys, sizes)
    with ws.progress(description, sum(shares.values()), unit) as bar:
        bar.advance(sum(shares[key] for key in markers))
        device = "cpu" if loading is None else loading.device
        if loading is not None:
            function = Loaded(function, loading.load)
        if ray == "off" or runs_here(len(missing), device):
            run = partial(shards_here, agree=agree)
        elif loading is None:
            run = partial(shards_on_ray, address=ray)
        else:
            run = partial(shards_on_actors, address=ray, device=device)
        # Closed on an error too, or Ray's tasks would run on after their stage has failed.
        with closing(run(ws, function, missing)) as results:
            for key, marker in results:
                check_stopping()
                markers[key] = marker
                bar.advance(shares[key])
    for key in keys:
        for name, entry in markers[key]["files"].items():
            if name in ws.written and ws.written[name].sha256 != entry["sha256"]:
                raise StoreError(f"two shards of {ws.stage} wrote {name!r}: file names must be unique per shard")
            ws.written[name] = FileEntry(**entry)
    # Seconds of all shards together, whichever attempt ran them: an estimate of a larger run starts from them.
    ws.note(**{f"{slug}_seconds": round(sum(markers[key]["seconds"] for key in keys), 3)})
    return [markers[key]["result"] for key in keys]


def _shares(keys: list[str], sizes: Sequence[int] | None) -> tuple[dict[str, float], str]:
    """What of the progress each shard is, and the unit."""
    if sizes is None:
        return dict.fromkeys(keys, 1.0), "shards"
    scale, unit = next(((scale, unit) for scale, unit in UNITS if sum(sizes) >= 10 * scale), (1, "B"))
    return {key: size / scale for key, size in zip(keys, sizes, strict=True)}, unit


def committed_shards(ws: Workspace, keys: list[str]) -> dict[str, ShardMarker]:
    """Markers of those shards that have one, by key."""
    # One listing instead of a question for each shard: 100,000 questions would take an object store an hour.
    names = set(ws.store.names(f"{ws.progress_folder}/shards"))
    found = [key for key in keys if f"{key}.json" in names]
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        markers = dict(zip(found, pool.map(lambda key: ws.store.read_json(marker_path(ws, key)), found), strict=True))
        # Reading the results raises what went wrong in a thread.
        for taken in pool.map(lambda key: take_over(ws, markers[key]), found):
            assert taken is None
    return markers


def take_over(ws: Workspace, marker: ShardMarker) -> None:
    """Bring the files of a shard that an earlier attempt ran into this attempt's own folder.

    A file that is gone was removed by a later step of that attempt, which this one comes to as well.
    """
    folder = marker.get("folder", ws.payload)
    if folder == ws.folder:
        return
    for name in marker["files"]:
        with suppress(FileNotFoundError):
            ws.store.link(f"{folder}/{name}", f"{ws.folder}/{name}")


def marker_path(ws: Workspace, key: str) -> str:
    return f"{ws.progress_folder}/shards/{key}.json"


def run_shard(
    ws: Workspace,
    function: Callable[[Workspace, Any], Any],
    key: str,
    item: Any,
    agree: Callable[[Any], Any] | None = None,
) -> ShardMarker:
    """Run one shard and commit it; returns its marker. A shard that has one is not run (with `agree`: if rank 0 finds one).

    Raises StoreError if another run of the same shard has committed something else.
    """
    path = marker_path(ws, key)
    # Ray runs a task again whose worker died, which may have been after its commit.
    known: ShardMarker | None = ws.store.read_json(path) if ws.store.exists(path) else None
    if agree is not None:
        # A rank that ran a shard which another one skips would wait for it in every collective call.
        known = agree(known)
    if known is not None:
        take_over(ws, known)
        return known
    shard = ws.for_shard()
    began = time.monotonic()
    try:
        result = function(shard, item)
    finally:
        shard.close()
    marker: ShardMarker = {
        "files": {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in shard.written.items()},
        "result": result,
        "seconds": time.monotonic() - began,
        "folder": ws.folder,
    }
    data = orjson.dumps(marker, option=orjson.OPT_SERIALIZE_NUMPY)
    # Create-only: the second of two runs changes nothing here.
    ws.store.create(path, data)
    # What a resumed attempt would read is what this attempt uses, whoever was first.
    winner = ws.store.read_json(path)
    # Through JSON as well: a tuple comes back as a list, which would not equal it.
    mine = orjson.loads(data)
    if (winner["files"], winner["result"]) != (mine["files"], mine["result"]):
        raise StoreError(
            f"two runs of shard {key} of {ws.stage} wrote different bytes: {_differences(winner, mine)}. A shard must depend "
            "on its item only. Rerun the stage to make all its files anew."
        )
    return winner


def _differences(one: ShardMarker, other: ShardMarker) -> str:
    names = sorted(one["files"].keys() | other["files"].keys())
    files = [name for name in names if one["files"].get(name) != other["files"].get(name)]
    return ", ".join(files[:3]) or f"results {one['result']!r} and {other['result']!r}"


def shards_here(
    ws: Workspace,
    function: Callable[[Workspace, Any], Any],
    missing: list[tuple[str, Any]],
    *,
    agree: Callable[[Any], Any] | None = None,
) -> Generator[tuple[str, ShardMarker], None, None]:
    for key, item in missing:
        yield key, run_shard(ws, function, key, item, agree)


def shards_on_ray(
    ws: Workspace, function: Callable[[Workspace, Any], Any], missing: list[tuple[str, Any]], *, address: str
) -> Generator[tuple[str, ShardMarker], None, None]:
    """Shards as Ray tasks, each on one core; a task whose worker or node dies is run again elsewhere."""
    items = dict(missing)
    with connected(address) as ray:
        keep_off_cordoned(ray, ws, address, {"CPU": 1})
        # The shards of a stage go to the nodes in turn: with all on one, its disk and network would be the limit.
        remote = ray.remote(
            num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD", **ws.compute.placement.options()
        )(run_shard)
        # Shards carry no live listener: progress is counted here, as they finish.
        bare = ray.put(ws.for_shard())
        flight = Flight(ray, lambda key: remote.remote(bare, function, key, items[key]), list(items))
        yield from flight.results()


class Loaded:
    """A shard function and what else it needs: loaded at its first call in a process, and kept there."""

    def __init__(self, function: Callable[..., Any], load: Callable[[Workspace], Any]):
        self.function = function
        self.load = load
        # A list, because None may be what was loaded.
        self._kept: list[Any] = []

    def prepare(self, ws: Workspace) -> None:
        """Load, unless that was done; the scratch space it used is emptied."""
        if not self._kept:
            own = ws.for_shard()
            try:
                self._kept.append(self.load(own))
            finally:
                own.close()

    def __call__(self, ws: Workspace, item: Any) -> Any:
        self.prepare(ws)
        return self.function(ws, item, self._kept[0])


def runs_here(shards: int, device: str) -> bool:
    """Whether so many shards are left to this process where there is a Ray."""
    match device.split(":")[0]:
        case "cpu":
            return shards < 2  # one is not worth a Ray
        case "cuda":
            return shards == 0  # GPUs are handed out by Ray; this machine may have none
        case _:
            return True  # Ray knows nothing of the device (mps), of which there is one


class Worker:
    """What an actor runs: shards on one core, or one GPU, one after another, with what was loaded once."""

    def __init__(self, ws: Workspace, work: Loaded):
        self.ws = ws
        self.work = work

    def ready(self) -> None:
        """Load before the first shard comes."""
        self.work.prepare(self.ws)

    def run(self, key: str, item: Any) -> ShardMarker:
        """One shard, committed."""
        return run_shard(self.ws, self.work, key, item)


def shards_on_actors(
    ws: Workspace, work: Callable[[Workspace, Any], Any], missing: list[tuple[str, Any]], *, address: str, device: str
) -> Generator[tuple[str, ShardMarker], None, None]:
    """Shards on Ray actors, which keep what they loaded; each has a GPU of its own if they compute on GPUs."""
    own, gpus = ws.for_shard(), int(device.startswith("cuda"))
    if gpus:
        # Whichever GPU an actor gets, it sees no other.
        own.compute = own.compute.model_copy(update={"device": "cuda"})
    with connected(address) as ray:
        keep_off_cordoned(ray, ws, address, {"CPU": 1, "GPU": gpus})
        if gpus and not ray.cluster_resources().get("GPU"):
            tell_of_no_gpu(ws, address)
        # By value: what stands in the object store may be gone when an actor is started again.
        yield from actor_results(ray, Worker, (own, work), missing, gpus=gpus, where=ws.compute.placement.options())


def tell_of_no_gpu(ws: Workspace, address: str) -> None:
    """A cluster may get its first GPU when one is asked for; for a Ray of this machine, which cannot, a ValueError."""
    said = f"execution.device={ws.compute.device}, but Ray has found no GPU"
    if address == "local":
        raise ValueError(f"{said} on this machine; look at nvidia-smi and CUDA_VISIBLE_DEVICES, or use device: cpu")
    ws.warn(f"{said} in the cluster {address}; {ws.stage} waits for a node that has one")
