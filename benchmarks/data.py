"""Data curation on two cores against dolma and datatrove, and against bare tiktoken with the repetition detector.

Run alone: `python benchmarks/data.py [--megabytes 72] [--dolma-python P] [--datatrove-python P]`; the peers get environments
of their own (.venv-dolma, .venv-datatrove), made when missing.

Text: Python sources (six sevenths) and docstrings of the installed packages, as the product's own embedded source collects
them: 3 kB a document on average, less than the web's 7 kB. Every contestant reads the same documents and does the same:
drops texts below 100 characters and texts that repeat a span of 1 to 13 tokens 32 times, writes token files of OLMo 2's
vocabulary (peers with the tokenizer.json that our tokenizer saves). What differs:

* ours: three stages on Ray (score, filter, encode), with scores, kept and dropped documents written between them, hashes and
  a commit per shard; the repetition rule on whole documents.
* dolma 1.2.1: tag, mix, tokens, three passes as in its manual, two processes; its own repetition tagger (slices of 100,000
  characters, spans written as attributes).
* datatrove 0.10.1: one pass, two workers, nothing written between; its library has no rule on repeated tokens, so it gets
  our detector as a filter of its own kind. `length_only` is the same without that rule: a bound that favours it.

A throughput is that of the text beyond a tiny run (two files), so that starting Ray, interpreters and vocabularies counts for
nobody: the peers' tiny run is a process of its own, ours is the second one in a Ray that is up. `whole_run` has everything in
it, for everybody. The last line is one JSON object: `ratio_dolma` and
`ratio_datatrove` are throughputs on two cores, ours over theirs; `share_of_raw` is ours per core over one process of
`encode_to_numpy` and the published detector (RECIPE C.4), `share_of_screened` over one with the quick screen before it that
the loader uses; `scaling` is two workers over one.
"""

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
from peers.environment import peer_python

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "out" / "data"
PEERS = ROOT / "benchmarks" / "peers"
SHARD_BYTES = 4_000_000
DOCS_SHARE = 1 / 7
TINY_SHARD_BYTES = 20_000
TINY_DOCUMENTS = 40
"""In each of the two files of the first run."""
# Pins let pip end at once; without them it walks through years of botocore.
DOLMA = ["dolma==1.2.1", "s3fs==2023.6.0", "aiobotocore==2.5.4", "botocore==1.31.17", "boto3==1.28.17"]
DATATROVE = ["datatrove[processing,io]==0.10.1", "tokenizers", "orjson", "jaxtyping", "numpy"]


# --- the text -----------------------------------------------------------------------------------------


def run_in(store: str, stage: Any, *arguments: Any, ray: str = "off") -> Any:
    """The artifact of a stage call in a store."""
    from infra.execution.attempt import run_stage
    from infra.session import Session
    from infra.settings import Execution
    from infra.storage.store import Store

    session = Session(Store(store), Execution(store=store, ray=ray))
    return run_stage(stage, session, stage.bind(*arguments), lambda event: None).artifact


def make_text(folder: Path, megabytes: float) -> None:
    """Documents from the installed packages as `full/documents/*.jsonl.gz`; two small files of them as `tiny/…`, of others as
    `cold/…`.
    """
    from tasks.data.collect import PythonSource, collect
    from tasks.data.documents.dolma_files import written_rows

    rows: list[dict[str, Any]] = []
    total = megabytes * 1e6
    sources = [
        PythonSource(name="code", content="code", max_bytes=int(total * (1 - DOCS_SHARE))),
        PythonSource(name="docs", content="docs", max_bytes=int(total * DOCS_SHARE)),
    ]
    for source in sources:
        made = run_in(str(folder / "source"), collect, source.pinned())
        files = sorted((folder / "source" / made.address / "documents").iterdir())
        rows += [row for file in files for row in written_rows(file)]
    # Sources and docstrings in every file alike.
    rows.sort(key=lambda row: hash_of(row["id"]))
    size = sum(len(row["text"].encode()) for row in rows)
    files = -(-size // SHARD_BYTES)
    write_documents(folder / "full", [rows[index::files] for index in range(files)])
    for place, name in enumerate(("cold", "tiny")):
        few = rows[place * 2 * TINY_DOCUMENTS : (place + 1) * 2 * TINY_DOCUMENTS]
        write_documents(folder / name, [few[::2], few[1::2]])


def hash_of(id: str) -> bytes:
    return hashlib.sha256(id.encode()).digest()


def write_documents(folder: Path, shards: list[list[dict[str, Any]]]) -> None:
    (folder / "documents").mkdir(parents=True, exist_ok=True)
    for index, rows in enumerate(shards):
        data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
        (folder / f"documents/{index:05d}.jsonl.gz").write_bytes(gzip.compress(data, 4, mtime=0))


def texts(folder: Path) -> Iterator[str]:
    for file in sorted((folder / "documents").glob("*.jsonl.gz")):
        with gzip.open(file) as lines:
            for line in lines:
                yield orjson.loads(line)["text"]


# --- contestants, each in a process of its own ------------------------------------------------------------


def ours(folder: Path, workers: int) -> dict[str, Any]:
    """Filter and encode, on a Ray of so many cores: a tiny text to warm it up, another one, then the whole."""
    import ray

    from infra.compute.ray_connection import OBJECT_STORE_BYTES
    from tasks.data.collect import LocalSource, collect

    store = str(folder / f"store-{workers}")
    shutil.rmtree(store, ignore_errors=True)
    documents = {}
    # Of the tiny text every worker gets some shards, so that each has its vocabulary.
    for size, shard_bytes in (("cold", TINY_SHARD_BYTES), ("tiny", TINY_SHARD_BYTES), ("full", SHARD_BYTES)):
        paths = (str(folder / size / "documents" / "*.jsonl.gz"),)
        source = LocalSource(name="web", paths=paths, shard_bytes=shard_bytes, max_bad_fraction=1.0)
        documents[size] = run_in(store, collect, source.pinned())
    began = time.perf_counter()
    ray.init(
        address="local", num_cpus=workers, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
    )  # fmt: skip
    start = time.perf_counter() - began
    seconds = {}
    for size, made in documents.items():
        began = time.perf_counter()
        tokens = curate(store, made)
        seconds[size] = time.perf_counter() - began
    whole = start + seconds["cold"] + seconds["full"]
    counts = {"tokens": tokens.tokens, "documents": tokens.documents}
    return {**seconds, "start": start, "whole": whole, **counts, "per_stage": stage_seconds(store)}


def curate(store: str, documents: Any) -> Any:
    from tasks.data.encode import EncodeConfig, encode
    from tasks.data.filter import FilterConfig, filter
    from tasks.data.filters.statistics.length import LengthRule
    from tasks.data.filters.statistics.repetition import RepetitionRule
    from tasks.data.score import ScoreConfig, score

    config = FilterConfig(rules=(LengthRule(min_chars=100, max_chars=None), RepetitionRule()))
    scores = run_in(store, score, documents, ScoreConfig(scorers=config.scorers), ray="local")
    kept = run_in(store, filter, documents, config, scores, ray="local")
    return run_in(store, encode, kept, EncodeConfig(), ray="local")


def stage_seconds(store: str) -> dict[str, float]:
    """Seconds of each stage on the whole text."""
    from infra.records.record import all_records
    from infra.storage.store import Store

    found: dict[str, float] = {}
    for record in all_records(Store(store)):
        found[record.stage] = max(record.seconds, found.get(record.stage, 0.0))
    return found


def raw(folder: Path) -> dict[str, Any]:
    """Seconds for the whole text in this process: encoding alone, with the screened and with the published detector."""
    from model.data.repetition import find_repetitions, is_repetitive
    from model.tokens.dolma2 import tiktoken_encoding
    from model.tokens.tokenizer import Tokenizer

    everything = list(texts(folder / "full"))
    encoding = tiktoken_encoding(Tokenizer().ranks)
    encoding.encode_to_numpy(everything[0])
    began = time.perf_counter()
    ids = [encoding.encode_to_numpy(text, disallowed_special=()) for text in everything]
    encoded = time.perf_counter()
    screened = sum(map(is_repetitive, ids))
    screen = time.perf_counter()
    published = sum(any(found.times >= 32 for found in find_repetitions(row)) for row in ids)
    end = time.perf_counter()
    assert screened == published, (screened, published)
    return {"encode": encoded - began, "screened": screen - began, "published": encoded - began + end - screen}


# --- running and watching ---------------------------------------------------------------------------------


def watched(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a command; its wall seconds, its last line of output, and the largest resident memory of one of its processes."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    peaks: dict[int, int] = {}
    watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid), process.poll, peaks))
    watcher.start()
    output, errors = process.communicate()
    seconds = time.perf_counter() - began
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{errors[-3000:]}")
    return {"seconds": seconds, "output": output, "peak_mb": max(peaks.values()) // 2**20}


def watch(process: psutil.Process, ended: Callable[[], Any], peaks: dict[int, int]) -> None:
    """Keep the largest resident memory of every worker below a process; with no workers, its own."""
    while ended() is None:
        try:
            for child in process.children(recursive=True) or [process]:
                if "python" in child.name() or child.name().startswith(("ray::", "dolma")):
                    peaks[child.pid] = max(peaks.get(child.pid, 0), child.memory_info().rss)
        except psutil.NoSuchProcess:
            pass  # it ended while it was looked at
        time.sleep(0.1)


def contestant(folder: Path, name: str) -> dict[str, Any]:
    """Ours or raw, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    found = watched([sys.executable, __file__, "--contestant", name, "--folder", str(folder)], environment)
    row = json.loads(found["output"].strip().splitlines()[-1])
    return row | {"seconds": found["seconds"], "peak_mb": found["peak_mb"]}


def peer(folder: Path, python: str, script: str, *arguments: str) -> dict[str, Any]:
    """A peer on the tiny text, then on the whole."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    row: dict[str, Any] = {}
    for size in ("tiny", "full"):
        out = folder / f"{script}-{size}"
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(folder / size / "attributes", ignore_errors=True)
        out.mkdir(parents=True)
        tokenizer = str(folder / "tokenizer" / "tokenizer.json")
        command = [python, str(PEERS / f"{script}_pipeline.py"), str(folder / size / "documents"), tokenizer, str(out)]
        found = watched([*command, "2", *arguments], environment)
        row |= {size: found["seconds"], "peak_mb": found["peak_mb"]}
    files = [*out.rglob("tokens/*.npy"), *out.rglob("tokens/*.ds")]
    return row | {"tokens": sum(file.stat().st_size for file in files) // 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=72, help="text, million bytes")
    parser.add_argument("--dolma-python", help="Python of an environment with dolma")
    parser.add_argument("--datatrove-python", help="Python of an environment with datatrove")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=OUT, help="where text and results are put")
    options = parser.parse_args()
    folder = options.folder
    if options.contestant:
        name, _, workers = options.contestant.partition(":")
        print(json.dumps(raw(folder) if name == "raw" else ours(folder, int(workers))))
        return
    dolma = peer_python("dolma", DOLMA, options.dolma_python)
    datatrove = peer_python("datatrove", DATATROVE, options.datatrove_python)
    shutil.rmtree(folder, ignore_errors=True)
    make_text(folder, options.megabytes)
    from model.tokens.tokenizer import Tokenizer

    Tokenizer().save(folder / "tokenizer")
    contests: dict[str, Callable[[], dict[str, Any]]] = {
        "raw": lambda: contestant(folder, "raw"),
        "ours, 1 worker": lambda: contestant(folder, "ours:1"),
        "ours": lambda: contestant(folder, "ours:2"),
        "raw again": lambda: contestant(folder, "raw"),
        "dolma": lambda: peer(folder, dolma, "dolma"),
        "datatrove": lambda: peer(folder, datatrove, "datatrove", "length+repetition"),
        "datatrove, length only": lambda: peer(folder, datatrove, "datatrove", "length"),
    }
    rows = {}
    for name, run in contests.items():
        rows[name] = run()
        print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    print(json.dumps(summary(folder, rows)))


def summary(folder: Path, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures that count, and every row."""
    size = {name: sum(len(text.encode()) for text in texts(folder / name)) / 1e6 for name in ("tiny", "full")}

    def rate(row: dict[str, Any]) -> float:
        return (size["full"] - size["tiny"]) / (row["full"] - row["tiny"])

    mine = rows["ours"]
    best_raw = {key: min(rows["raw"][key], rows["raw again"][key]) for key in ("encode", "screened", "published")}
    bare = {key: size["full"] / seconds for key, seconds in best_raw.items()}
    return {
        "megabytes": round(size["full"], 1),
        "ratio_dolma": round(rate(mine) / rate(rows["dolma"]), 2),
        "ratio_datatrove": round(rate(mine) / rate(rows["datatrove"]), 2),
        "ratio_datatrove_length_only": round(rate(mine) / rate(rows["datatrove, length only"]), 2),
        "whole_run_ratio_dolma": round(rows["dolma"]["full"] / mine["whole"], 2),
        "whole_run_ratio_datatrove": round(rows["datatrove"]["full"] / mine["whole"], 2),
        "mb_per_second_per_core": round(rate(mine) / 2, 2),
        "raw_mb_per_second": {key: round(value, 2) for key, value in bare.items()},
        "share_of_raw": round(rate(mine) / 2 / bare["published"], 3),
        "share_of_screened": round(rate(mine) / 2 / bare["screened"], 3),
        "share_of_raw_one_worker": round(rate(rows["ours, 1 worker"]) / bare["published"], 3),
        "share_of_screened_one_worker": round(rate(rows["ours, 1 worker"]) / bare["screened"], 3),
        "scaling": round(rate(mine) / rate(rows["ours, 1 worker"]), 2),
        "peak_mb_per_worker": {name: row["peak_mb"] for name, row in rows.items()},
        "tokens": {name: row["tokens"] for name, row in rows.items() if "tokens" in row},
        "rows": rows,
    }


if __name__ == "__main__":
    main()
