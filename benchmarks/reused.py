"""A recipe of which everything exists: seconds of `olmo2 plan` and `olmo2 run` on a folder, and on Ceph's S3 gateway with faults.

`python benchmarks/reused.py STORE [--recipe laptop] [--rates 0,0.05] [--repeats 3]`; STORE is a folder in which the recipe has
ended, for example that of `make laptop`. It is not changed: its report is copied with its whole lineage to a gateway on this
machine, which is then asked through a proxy that answers so many of the requests badly (503, 429, resets, hangs of 3 s, lost
replies, wrong ETags, slow answers). Patience and pauses are the product's own. Whole commands, with the start of Python
and of Prefect's server.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import s3fs

from tests.ceph import S3, gateway
from tests.chaos.fault_proxy import FaultProxy

BUCKET = "reused"


def olmo2(cache: Path, server: dict[str, str], *words: str) -> tuple[float, str]:
    """Seconds of one command and what it printed; ends this program where the command fails."""
    environment = os.environ | server | {"XDG_CACHE_HOME": str(cache), "COLUMNS": "200"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"olmo2 {' '.join(words)} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.monotonic() - began, done.stdout


def measure(cache: Path, server: dict[str, str], recipe: str, store: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of plans and runs of a recipe that make nothing."""
    found: dict[str, list[float]] = {"plan": [], "run": []}
    for _ in range(repeats):
        taken, text = olmo2(cache, server, "plan", recipe, "--store", store, "--json")
        actions = Counter(row["action"] for row in json.loads(text))
        if set(actions) != {"reused"}:
            sys.exit(f"{store} does not have all of {recipe}: {dict(actions)}; run the recipe there first")
        found["plan"].append(round(taken, 2))
        found["run"].append(round(olmo2(cache, server, "run", recipe, "--store", store)[0], 2))
    return found | {"stages": [float(actions.total())]}


def copy_to(server: S3, cache: Path, store: str) -> str:
    """The newest report with all that it was made from, in a bucket of the server."""
    filesystem = s3fs.S3FileSystem(
        key=server.key, secret=server.secret, client_kwargs={"endpoint_url": server.endpoint}
    )
    filesystem.mkdir(BUCKET)
    rows = json.loads(olmo2(cache, {}, "ls", "--json", "--store", store)[1])
    newest = max((row for row in rows if row["stage"] == "report"), key=lambda row: row["created"])
    target = f"s3://{BUCKET}/store"
    olmo2(cache, server.environment(), "cp", newest["id"], target, "--store", store)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--recipe", default="laptop")
    parser.add_argument("--rates", default="0,0.05", help="shares of requests that go wrong")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="olmo2-reused-") as folder, gateway() as server:
        cache = Path(folder)
        told: dict[str, object] = {
            "folder": measure(cache / "local", {}, arguments.recipe, arguments.store, arguments.repeats)
        }
        target = copy_to(server, cache / "copy", arguments.store)
        # What was accepted here though its code had changed is not accepted there.
        olmo2(cache / "copy", server.environment(), "run", arguments.recipe, "--store", target, "--accept", "benchmark")
        for place, rate in enumerate(map(float, arguments.rates.split(","))):
            with FaultProxy(server.endpoint, rate, seed=place) as proxy:
                address = server.environment() | {"AWS_ENDPOINT_URL": proxy.url}
                # A cache of its own, which the first of the repeats fills.
                found = measure(cache / f"rate-{place}", address, arguments.recipe, target, arguments.repeats)
                told[f"S3, {rate:.0%} faults"] = found | {"answers": dict(proxy.counts)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
