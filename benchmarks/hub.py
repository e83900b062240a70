"""What a dataset of many files on the hub costs to plan and to read: requests and CPU seconds, against a server that counts.

    python benchmarks/hub.py --files 30000 --read 40

The server stands on this machine and answers as the hub does (tree in pages of 1,000, files by `resolve`), with N files of 20
rows each. Measured are pinning and planning with an empty cache, the same again, and reading some files, each row a document.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.hub_server import CountingHub


def main() -> None:
    """Measure and print one line per phase."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=30_000)
    parser.add_argument("--read", type=int, default=40, help="files to read, each as an item of its own")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, CountingHub(options.files) as hub:
        os.environ |= {
            "HF_ENDPOINT": hub.url,
            "XDG_CACHE_HOME": folder,
            "HF_HOME": f"{folder}/hf",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        measure(hub, Path(folder), options.read)


def measure(hub: CountingHub, folder: Path, read: int) -> None:
    """Plan cold and warm, then read `read` files, one item each."""
    # Imported here: the hub's address is read when its client is imported.
    from infra.execution.attempt import run_stage
    from infra.session import Session
    from infra.settings import Execution
    from infra.storage.store import Store
    from tasks.data.collect import collect
    from tasks.data.sources.hub import HubSource, hub_items

    source = HubSource(name="web", path=hub.dataset, subset="dclm")
    config: Any = None
    for label in ("planning, nothing cached", "planning, listing cached"):
        with Phase(label, hub):
            config = source.pinned()
            items = hub_items(config)
    print(f"  {len(items):,} items of {sum(len(item['pieces']) for item in items):,} files")
    store = Store(str(folder / "store"))
    session = Session(store, Execution(store=store.url, ray="off"))
    names = tuple(piece["name"] for item in items for piece in item["pieces"])[:read]
    with Phase(f"reading {len(names)} files", hub, len(names)):
        some = config.model_copy(update={"data_files": names})
        made: Any = run_stage(collect, session, collect.bind(some), lambda event: None).artifact
    print(
        f"  {made.documents:,} documents; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB"
    )


class Phase:
    """Prints requests, CPU seconds of this process and wall seconds of what happens within it."""

    def __init__(self, label: str, hub: CountingHub, each: int = 1):
        self.label, self.hub, self.each = label, hub, each

    def __enter__(self) -> None:
        self.hub.counts.clear()
        self.cpu, self.wall = _cpu(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        cpu, wall = _cpu() - self.cpu, time.perf_counter() - self.wall
        each = f" ({cpu / self.each:.3f} a file)" if self.each > 1 else ""
        print(f"{self.label}: {cpu:.2f} CPU s{each}, {wall:.2f} s, requests {dict(self.hub.counts)}")


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
