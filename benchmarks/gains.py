"""What every step of the laptop recipe gains, over seeds and kinds of processor, in paired standard errors.

Run alone: `python benchmarks/gains.py [--recipe laptop] [--seeds 5] [--isa default,avx2] [--out docs/laptop-gains.md]`. Each
cell of the table is one whole run in a store of its own. `--isa avx2` makes oneDNN and ATen use no wider instructions
(`ONEDNN_MAX_CPU_ISA`, `ATEN_CPU_CAPABILITY`), which stands for the other kind of processor. A seed shifts the seeds of the model,
the data orders and the sampling. `--stores A,B` runs nothing and reads finished stores.

A gain is the mean difference of two models' results on the same items over its standard error; every run keeps the
results of its items (`evaluate/*/items/`). `soup` is against the base model, `sweep` is the best candidate against the next,
`sft`, `dpo` and `rlvr` are against the step before, `reward` is the held-out accuracy against chance. The last line is one
JSON object: of every step, the share of runs whose gain exceeds 3 standard errors, and the longest wall time.
"""

import argparse
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

CLEAR = 3.0
"""Standard errors above which a gain is called clear."""
STEPS = {"soup": ("base", "soup"), "sft": ("soup", "sft"), "dpo": ("sft", "dpo"), "rlvr": ("dpo", "instruct")}
"""Of every step, the labels of the models before and after it."""
NARROW = {"avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}, "default": {}}
SEEDED = (
    "pretrain.init_seed",
    "pretrain.data_seed",
    "sft.seed",
    "preferences.seed",
    "dpo.seed",
    "reward.seed",
    "rlvr.seed",
    "microanneal.anneal.seed",
)
SOUP_SEEDS = (42, 42069, 666)


def main() -> None:
    options = arguments()
    if options.stores:
        rows = [gains_of(Path(store)) | {"run": store} for store in options.stores.split(",")]
    else:
        with tempfile.TemporaryDirectory(dir=options.scratch, prefix="gains-") as folder:
            rows = [
                run(options.recipe, seed, isa, Path(folder))
                for seed in range(options.seeds)
                for isa in options.isa.split(",")
            ]
    table = "\n".join(markdown(rows))
    print(table)
    if options.out:
        Path(options.out).write_text(f"# What every step of the laptop recipe gains\n\n{table}\n")
    print(json.dumps(summary(rows)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="laptop")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--isa", default="default,avx2", help="default, avx2, or both")
    parser.add_argument("--stores", default="", help="finished stores to read instead of running")
    parser.add_argument("--scratch", default=None, help="folder for the stores")
    parser.add_argument("--out", default="")
    return parser.parse_args()


def run(recipe: str, seed: int, isa: str, folder: Path) -> dict[str, Any]:
    """One whole run, and its gains."""
    store = folder / f"{seed}-{isa}"
    command = [sys.executable, "-m", "flows.cli", "run", recipe, "--store", str(store), *seeds(seed)]
    began = time.perf_counter()
    subprocess.run(command, env=os.environ | NARROW[isa], check=True, stdout=sys.stderr)
    return {"run": f"seed {seed}, {isa}", "seconds": time.perf_counter() - began} | gains_of(store)


def seeds(seed: int) -> list[str]:
    """The overrides that shift every seed; none for seed 0, which is the recipe as it is."""
    if not seed:
        return []
    shifted = [f"{name}={1000 * seed + place}" for place, name in enumerate(SEEDED)]
    shifted.append(f"anneal_seeds={[number + seed for number in SOUP_SEEDS]}")
    return [part for change in shifted for part in ("--set", change)]


def gains_of(store: Path) -> dict[str, Any]:
    """The gain of every step in standard errors, from the last report of a store and what it was made from."""
    reports = sorted(store.glob("report/*/g*/report.json"), key=lambda path: path.stat().st_mtime)
    if not reports:
        raise SystemExit(f"{store} holds no report; run a recipe in it to its end first")
    report = json.loads(reports[-1].read_text())
    items = item_results(store, [node["address"] for node in report["lineage"] if node["stage"] == "evaluate"])
    found = {
        step: paired(items[before], items[after])
        for step, (before, after) in STEPS.items()
        if before in items and after in items
    }
    tried = sorted((mean(rows), label) for label, rows in items.items() if label.startswith("try "))
    if len(tried) > 1:
        found["sweep"] = paired(items[tried[-2][1]], items[tried[-1][1]])
    if report["reward"]:
        found["reward"] = (report["reward"]["accuracy"] - 0.5, report["reward"]["accuracy_stderr"])
    return {step: {"gain": gain, "stderr": error} for step, (gain, error) in found.items()}


def item_results(store: Path, addresses: list[str]) -> dict[str, dict[str, float]]:
    """Of every evaluated model, by its label: the primary result of each item of each benchmark."""
    found: dict[str, dict[str, float]] = {}
    for address in addresses:
        folder = store / address
        scores = json.loads((folder / "scores.json").read_text())
        results: dict[str, float] = {}
        for benchmark in scores["benchmarks"]:
            file = folder / "items" / f"{benchmark['name']}.jsonl.zst"
            if file.exists():  # a suite has no items of its own
                results |= {row["id"]: row["metrics"][benchmark["primary"]] for row in read_rows(file)}
        found[scores["label"]] = results
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as raw:
        text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8")
        return [json.loads(line) for line in text]


def paired(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[float, float]:
    """Mean difference over the items that both were asked, and its standard error."""
    common = before.keys() & after.keys()
    difference = np.array([after[name] - before[name] for name in sorted(common)])
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))


def mean(results: Mapping[str, float]) -> float:
    return float(np.mean(list(results.values())))


def standard_errors(gain: Mapping[str, float]) -> float:
    """A gain in its standard errors; without an error there is no difference at all, or one beyond doubt."""
    return (
        gain["gain"] / gain["stderr"]
        if gain["stderr"]
        else math.copysign(math.inf, gain["gain"])
        if gain["gain"]
        else 0.0
    )


def names_of(rows: list[dict[str, Any]]) -> list[str]:
    return [name for name in ("sweep", *STEPS, "reward") if any(name in row for row in rows)]


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """The table: a run a line, a step a column; gain in points and in standard errors."""
    names = names_of(rows)
    lines = [f"| run | {' | '.join(names)} | minutes |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        cells = [
            f"{100 * row[n]['gain']:+.1f} ({standard_errors(row[n]):+.1f} s.e.)" if n in row else "" for n in names
        ]
        minutes = f"{row['seconds'] / 60:.1f}" if "seconds" in row else ""
        lines.append(f"| {row['run']} | {' | '.join(cells)} | {minutes} |")
    return lines


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every step the share of runs with a clear gain, and the longest wall time in seconds."""
    clear = {
        name: sum(standard_errors(row[name]) > CLEAR for row in rows if name in row) / len(rows)
        for name in names_of(rows)
    }
    return {
        "clear": clear,
        "runs": len(rows),
        "longest_seconds": max((row.get("seconds", 0.0) for row in rows), default=0.0),
    }


if __name__ == "__main__":
    main()
