"""Commands on large stores: python benchmarks/store.py [RECORDS]...  (10,000 and 100,000 if none is given).

Makes a store of synthetic records (sealed as real ones, without payload files), then times whole commands with Python's start:
the first `ls`, which reads every record into the index, and the commands after it.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

from infra.records.record import FileEntry, Record, content_digest, payload_address, record_path

STAGES = ("pretrain", "anneal", "sft", "dpo", "evaluate")
CONFIG = {
    "model": {"d_model": 64, "n_layers": 4},
    "schedule": {"length": 100, "lr": 4e-4},
    "seed": 0,
    "batch_instances": 8,
}


def make_store(folder: Path, count: int) -> str:
    """So many records in a folder; returns the id of one of the last."""
    files = {"model.safetensors": FileEntry(size=10**9, sha256="0" * 64)}
    for number in range(count):
        stage, id = STAGES[number % len(STAGES)], f"{number * 2654435761 % 2**64:016x}"
        record = Record(
            kind="Checkpoint", stage=stage, version=1, id=id, label=f"{stage}:{number % 50}", generation=1,
            address=payload_address(stage, id, 1), digest=content_digest(files), config=CONFIG | {"seed": number}, inputs=[],
            facts={"steps": 100, "tokens": 1, "parameters": 1, "loss": 2 + number % 997 / 997, "ranks": 300, "parent": ""},
            files=files, created=f"2026-01-{1 + number % 28:02d}T00:00:{number % 60:02d}+00:00", seconds=1.0, attempts=1,
            resumed_from="", peak_memory_bytes=1, host="h", device="cpu", threads=1, code={}, packages={}, python="3",
            notes={}, flow_run="",
        ).sealed()  # fmt: skip
        path = folder / record_path(stage, id, 1)
        path.parent.mkdir(parents=True)
        path.write_bytes(orjson.dumps(record.model_dump(mode="json")))
    return id


def seconds(folder: Path, *words: str) -> tuple[float, float]:
    """Of one whole command, by the clock and of the processor, which a busy machine does not change."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flows.cli", *words, "--store", str(folder / "store")]
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, used


def told(words: tuple[str, ...], measured: list[tuple[float, float]]) -> str:
    """The fastest of several."""
    clock, used = min(measured)
    return f"  {' '.join(words)}: {clock:.2f} s, {used:.2f} s of the processor"


def main() -> None:
    for count in [int(word) for word in sys.argv[1:]] or [10_000, 100_000]:
        with tempfile.TemporaryDirectory(prefix="olmo2-store-") as made:
            folder = Path(made)
            id = make_store(folder / "store", count)
            time.sleep(3)  # folders that changed a moment ago are read again
            print(f"{count:,} records; the first time:", told(("ls",), [seconds(folder, "ls")]), flush=True)
            for words in (
                ("ls",), ("ls", "--json"), ("ls", "--stage", "dpo:3"), ("show", id), ("search", "loss>2.99"), ("plan", "smoke"),
            ):  # fmt: skip
                print(told(words, [seconds(folder, *words) for _ in range(3)]), flush=True)


if __name__ == "__main__":
    main()
