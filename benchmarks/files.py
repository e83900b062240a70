"""What collecting a source of many files costs the driver, and what its shards cost as the files become more.

    python benchmarks/files.py --files 10000 100000

For each number of files, in a process of its own: a folder of JSON-lines files of three rows each, pinned, planned and collected
on a local Ray of two workers. Printed are the driver's peak of resident memory, its seconds, and processor seconds per file in
the shards. The first line is the process with nothing done.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = 3


def main() -> None:
    """Measure each number of files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--ray", default="local", help="local, or off")
    parser.add_argument("--folder", help="measure the files of this folder in this process")
    options = parser.parse_args()
    if options.folder:
        measure(Path(options.folder), options.ray)
        return
    for count in options.files:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder) / "in", count)
            subprocess.run([sys.executable, __file__, "--folder", folder, "--ray", options.ray], check=True)


def make(folder: Path, count: int) -> None:
    """Small files, a thousand a folder."""
    for number in range(count):
        if number % 1000 == 0:
            (folder / f"{number // 1000:04d}").mkdir(parents=True)
        rows = "".join(f'{{"text": "the text of row {row} of file {number}"}}\n' for row in range(ROWS))
        (folder / f"{number // 1000:04d}" / f"part-{number:08d}.jsonl").write_text(rows)


def measure(folder: Path, ray: str) -> None:
    """Pin, plan and collect; print the driver's memory and seconds after each."""
    from infra.execution.attempt import run_stage
    from infra.session import Session
    from infra.settings import Execution
    from infra.storage.store import Store
    from tasks.data.collect import collect
    from tasks.data.sources.local import LocalSource, local_items

    tell("imports", time.perf_counter())
    begin = time.perf_counter()
    config: Any = LocalSource(name="web", paths=(str(folder / "in"),)).pinned()
    tell(f"{len(config.files):,} files pinned", begin)
    begin = time.perf_counter()
    print(f"  {len(local_items(config)):,} items")
    tell("planned", begin)
    store = Store(str(folder / "store"))
    session = Session(store, Execution(store=store.url, ray=ray))
    begin = time.perf_counter()
    record = run_stage(collect, session, collect.bind(config), lambda event: None)
    documents: Any = record.artifact
    tell(f"{documents.documents:,} documents collected", begin)
    print(f"  record: {sum(path.stat().st_size for path in Path(store.root).rglob('*record*')) / 1e6:.1f} MB")


def tell(what: str, begin: float) -> None:
    """One line: peak memory and seconds of the processor until now, seconds of the clock of this phase."""
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    used = os.times()
    print(
        f"{what}: peak {peak:.0f} MiB, {used.user + used.system:.1f} CPU s so far, {time.perf_counter() - begin:.1f} s"
    )


if __name__ == "__main__":
    main()
