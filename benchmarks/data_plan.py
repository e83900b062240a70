"""What curating the published corpus (22 TB, 3.1 billion documents) would take: costs measured here, shards simulated.

Run alone: `python benchmarks/data_plan.py [--megabytes 16]`. Measured on this machine's one core: processor seconds per
megabyte of text in each data stage, run as a recipe runs it; what the driver pays per shard on Ray; and what grows with the
number of files: records, markers, listings. Simulated: every stage's shards handed by one driver, at its measured pace, to
10, 100 and 1,000 cores, with shard times spread as a log-normal (a tenth of them 1.5 times the median and more) and one shard
in a thousand ten times as slow, which gets a second run. Not simulated: the network; `gigabytes_per_second` says what it must
carry. The last line is one JSON object. docs/data-at-scale.md discusses it.
"""

import argparse
import heapq
import json
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CORPUS_BYTES = 22e12
"""Text of DCLM-baseline and the other sources of the published mix, bytes (RECIPE C.2: 3.9T tokens; issue's round figure)."""
CORPUS_DOCUMENTS = 3.1e9
CORES = (10, 100, 1000)
SHARD_MEGABYTES = (64, 256, 1024)
COMPRESSED = 0.25
"""Bytes of a document file per byte of text, zstd level 1 on source code."""
FILES_PER_SHARD = 4
"""Of the filter: documents, dropped, and attributes of two rules."""
SPREAD = 0.32
SLOW_SHARE, SLOW_FACTOR, SECOND_RUN_AFTER = 1e-3, 10.0, 3.0
REQUEST_SECONDS = 0.02
"""One request to an object store, a common latency of S3 within a region."""


# --- measuring ----------------------------------------------------------------------------------------


def stage_costs(folder: Path, megabytes: float) -> dict[str, float]:
    """Processor seconds per megabyte of text of each stage, in this process."""
    from infra.execution.attempt import run_stage
    from infra.session import Session
    from infra.settings import Execution
    from infra.storage.store import Store
    from tasks.data.collect import LocalSource, PythonSource, collect
    from tasks.data.dedup import DedupConfig, dedup
    from tasks.data.duplicates.minhash import MinHashConfig
    from tasks.data.encode import EncodeConfig, encode
    from tasks.data.filter import FilterConfig, filter
    from tasks.data.filters.statistics.length import LengthRule
    from tasks.data.filters.statistics.repetition import RepetitionRule
    from tasks.data.score import ScoreConfig, score

    session = Session(Store(str(folder / "store")), Execution(ray="off"))
    costs: dict[str, float] = {}

    def timed(name: str, stage: Any, *arguments: Any) -> Any:
        began = time.process_time()
        artifact = run_stage(stage, session, stage.bind(*arguments), lambda event: None).artifact
        costs[name] = (time.process_time() - began) / megabytes
        return artifact

    code = PythonSource(name="code", content="code", max_bytes=int(megabytes * 1e6), shard_bytes=4_000_000)
    made = timed("python source", collect, code.pinned())
    shards = str(folder / "store" / made.address / "documents" / "*.jsonl.zst")
    source = LocalSource(name="web", paths=(shards,), shard_bytes=4_000_000)
    documents = timed("collect", collect, source.pinned())
    config = FilterConfig(rules=(LengthRule(min_chars=100, max_chars=None), RepetitionRule()))
    scores = timed("score", score, documents, ScoreConfig(scorers=config.scorers))
    kept = timed("filter", filter, documents, config, scores)
    unique = timed("dedup", dedup, [kept], DedupConfig(near=MinHashConfig()))
    timed("encode", encode, unique, EncodeConfig())
    del costs["python source"]
    return costs


def nothing(ws: Any, item: int) -> int:
    """The cheapest shard: what is left is its administration."""
    return item


def driver_costs(folder: Path, shards: int = 300) -> dict[str, float]:
    """Seconds per shard on Ray beyond its work: of the driver's processor, and from end to end with two cores."""
    import ray

    from infra.compute.shards import run_shards
    from infra.storage.store import Store
    from infra.workspace import WorkSettings, Workspace

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=256 * 2**20)
    seconds = {}
    for name, count in (("warm", 20), ("measured", shards)):
        ws = Workspace(
            Store(str(folder / "store")),
            stage=name,
            id="0",
            payload=f"{name}/0",
            progress_folder=f"_progress/{name}/0",
            settings=WorkSettings(ray="local"),
            run_shards=run_shards,
        )
        began, processor = time.perf_counter(), time.process_time()
        ws.map(nothing, list(range(count)), description="nothing")
        seconds[name] = (time.perf_counter() - began, time.process_time() - processor)
    wall, processor = seconds["measured"]
    began = time.perf_counter()
    ws.map(nothing, list(range(shards)), description="nothing")
    resumed = time.perf_counter() - began
    ray.shutdown()
    return {"driver": processor / shards, "end_to_end": wall / shards, "resume": resumed / shards}


def file_costs(folder: Path, files: int = 20_000) -> dict[str, float]:
    """What every file of an artifact adds to its record, and to whoever reads the record."""
    from infra.records.record import FileEntry, Record
    from infra.storage.store import Store

    entries = {
        f"attributes/length/{index:05d}-000.jsonl.zst": FileEntry(size=index, sha256=f"{index:064x}")
        for index in range(files)
    }
    names = dict.fromkeys(("kind", "stage", "id", "label", "address", "digest", "created", "resumed_from", "host"), "")
    record = Record(
        **names, version=1, generation=1, facts={}, config={}, inputs=[], files=entries, seconds=0.0, attempts=1,
        peak_memory_bytes=0, device="cpu", threads=1, code={}, packages={}, python="3", notes={}, flow_run="",
    )  # fmt: skip
    store = Store(str(folder / "store"))
    data = json.dumps(record.model_dump(mode="json")).encode()
    store.write("record.json", data)
    tracemalloc.start()
    kept = Record.model_validate(store.read_json("record.json"))
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    began = time.process_time()
    assert Record.model_validate(store.read_json("record.json")) == kept
    seconds = time.process_time() - began
    return {"record_bytes": len(data) / files, "record_seconds": seconds / files, "memory_bytes": memory / files}


# --- simulating ---------------------------------------------------------------------------------------


def stage_hours(shards: int, shard_seconds: float, cores: int, driver_seconds: float, seed: int = 0) -> float:
    """Hours from the first shard to the last: shards go one after the other to the core that is free first."""
    chance = np.random.default_rng(seed)
    times = shard_seconds * np.exp(chance.normal(-(SPREAD**2) / 2, SPREAD, shards))
    slow = chance.random(shards) < SLOW_SHARE
    free = [0.0] * min(cores, shards)
    handed = 0.0
    for index, seconds in enumerate((times * np.where(slow, SLOW_FACTOR, 1.0)).tolist()):
        handed += driver_seconds
        core = heapq.heappop(free)
        # A straggler of the last wave has a second run; one before it holds its core and nothing else.
        last_wave = index >= shards - cores
        limit = (SECOND_RUN_AFTER + 1) * shard_seconds
        heapq.heappush(free, max(core, handed) + (min(seconds, limit) if last_wave else seconds))
    return max(free) / 3600


def plan(stages: dict[str, float], driver: dict[str, float], files: dict[str, float]) -> list[dict[str, Any]]:
    """A row per shard size and number of cores."""
    from infra.execution.runners import SIZES_AT_ONCE

    rows = []
    for megabytes in SHARD_MEGABYTES:
        shards = int(CORPUS_BYTES / (megabytes * 1e6))
        record = shards * FILES_PER_SHARD
        # Every worker reads each stage's input record once, to know the size and hash of its files.
        reading = record * files["record_seconds"]
        for cores in CORES:
            hours = {
                name: reading / 3600 + stage_hours(shards, cost * megabytes, cores, driver["driver"])
                for name, cost in stages.items()
            }
            rows.append(
                {
                    "shard_megabytes": megabytes, "shards": shards, "cores": cores,
                    "hours": {name: round(value, 1) for name, value in hours.items()},
                    "total_hours": round(sum(hours.values()), 1),
                    "driver_hours": round(len(stages) * shards * driver["driver"] / 3600, 2),
                    "record_megabytes": round(record * files["record_bytes"] / 1e6, 1),
                    "record_seconds_per_worker": round(reading, 2),
                    "worker_record_megabytes": round(record * files["memory_bytes"] / 1e6, 1),
                    "reuse_check_hours": round(record * REQUEST_SECONDS / SIZES_AT_ONCE / 3600, 2),
                    "gigabytes_per_second": round(CORPUS_BYTES * COMPRESSED * 2 / (hours["filter"] * 3600) / 1e9, 2),
                }
            )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--megabytes", type=float, default=16, help="text on which the stages are measured, million bytes"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="olmo2-data-plan-"))
    measure: dict[str, Callable[[], dict[str, float]]] = {
        "stages": lambda: stage_costs(folder, options.megabytes),
        "driver": lambda: driver_costs(folder),
        "files": lambda: file_costs(folder),
    }
    try:
        found = {name: run() for name, run in measure.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = plan(found["stages"], found["driver"], found["files"])
    print({name: {key: float(f"{value:.3g}") for key, value in costs.items()} for name, costs in found.items()})
    for row in rows:
        print(row, file=sys.stderr)
    best = {
        cores: min((row for row in rows if row["cores"] == cores), key=lambda row: row["total_hours"])
        for cores in CORES
    }
    result = {
        "corpus_terabytes": CORPUS_BYTES / 1e12, "documents": CORPUS_DOCUMENTS, **found,
        "core_hours": round(sum(found["stages"].values()) * CORPUS_BYTES / 1e6 / 3600),
        "hours": {cores: row["total_hours"] for cores, row in best.items()}, "rows": rows,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
