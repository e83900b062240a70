"""What every step of the laptop recipe gains, over seeds and kinds of processor, in paired standard errors.

Run alone: `python benchmarks/quality/gains.py [--recipe laptop] [--seeds 0,1,2,3,4] [--isa default,avx2] [--folder FOLDER]
[--out docs/laptop-gains.md]`. Each line of the table is one whole run in a store of its own under `--folder`. Finished runs are
kept there and not repeated. A run that was interrupted resumes in its store, so `--seeds 2 --isa avx2` makes one line and a later
call the others. With `--one-core` every stage has one thread and one runs at a time, so two calls can share two cores, each with
lines of its own; those have no wall time. `--isa avx2` makes oneDNN and ATen use no wider instructions (`ONEDNN_MAX_CPU_ISA`,
`ATEN_CPU_CAPABILITY`), which stands for the other kind of processor. A seed shifts the seeds of the model, the data orders and
the sampling. `--stores A,B` runs nothing and reads finished stores.

The gains are those of the report (`facts.gains`). KL and hedged are of RLVR's own log: the largest KL of a rollout against its
budget, and the share of answers with several final answers in the first and in the last quarter. The last line printed is one
JSON object: of every step, the share of runs whose gain exceeds 3 standard errors, and the longest wall time.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.processor import processor_name

CLEAR = 3.0
"""Standard errors above which a gain is called clear."""
STEPS = ("curation", "sweep", "soup", "sft", "dpo", "reward", "rlvr")
"""Steps of the table, in the order of the recipe."""
FURTHER = {"soup over mean": ("soup", "over_mean"), "soup over best": ("soup", "over_best")}
"""Further comparisons of a step."""
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
    "curation_trial.pretrain.init_seed",
    "curation_trial.pretrain.data_seed",
)
SOUP_SEEDS = (42, 42069, 666)

Run = dict[str, Any]


def main() -> None:
    options = arguments()
    if options.stores:
        rows = [{"run": store} | gains_of(Path(store)) for store in options.stores.split(",")]
    else:
        rows = all_runs(options)
    table = "\n".join(markdown(rows))
    print(table)
    if options.out:
        Path(options.out).write_text(page(table, rows))
    print(json.dumps(summary(rows)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="laptop")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="seeds to run, such as 3 or 0,1")
    parser.add_argument("--isa", default="default,avx2", help="default, avx2, or both")
    parser.add_argument("--folder", default="gains-runs", help="where stores and finished runs are kept")
    parser.add_argument("--one-core", action="store_true", help="use one core, and time nothing")
    parser.add_argument("--stores", default="", help="finished stores to read instead of running")
    parser.add_argument("--out", default="")
    return parser.parse_args()


def all_runs(options: argparse.Namespace) -> list[Run]:
    """Every finished run in the folder, after those asked for have been made."""
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for seed in map(int, options.seeds.split(",")):
        for isa in options.isa.split(","):
            kept = folder / f"{options.recipe}-{seed}-{isa}.json"
            if not kept.exists():
                made = run(options.recipe, seed, isa, folder, options.one_core)
                kept.write_text(json.dumps({"run": f"seed {seed}, {isa}"} | made, indent=1))
    return [json.loads(kept.read_text()) for kept in sorted(folder.glob(f"{options.recipe}-*.json"))]


def run(recipe: str, seed: int, isa: str, folder: Path, one_core: bool) -> Run:
    """One whole run, and its gains; without a wall time where it resumed or had one core."""
    store = folder / f"{recipe}-{seed}-{isa}"
    timed = not store.exists() and not one_core
    changes = ["--set", "execution.cores=1", "--set", "execution.threads={default: 1}"] if one_core else []
    command = [sys.executable, "-m", "flows.cli", "run", recipe, "--store", str(store), *seeds(seed), *changes]
    began = time.perf_counter()
    subprocess.run(command, env=os.environ | NARROW[isa], check=True, stdout=sys.stderr)
    seconds = {"seconds": time.perf_counter() - began} if timed else {}
    return seconds | {"processor": processor_name()} | gains_of(store)


def seeds(seed: int) -> list[str]:
    """The overrides that shift every seed; none for seed 0, which is the recipe as it is."""
    if not seed:
        return []
    shifted = [f"{name}={1000 * seed + place}" for place, name in enumerate(SEEDED)]
    shifted.append(f"anneal_seeds={[number + seed for number in SOUP_SEEDS]}")
    return [part for change in shifted for part in ("--set", change)]


def gains_of(store: Path) -> dict[str, Any]:
    """The gains of the last report of a store."""
    reports = sorted(store.glob("report/*/g*/report.json"), key=lambda path: path.stat().st_mtime)
    if not reports:
        raise SystemExit(f"{store} holds no report; run a recipe in it to its end first")
    gains = json.loads(reports[-1].read_text())["gains"]
    found = {step: gains[step] for step in STEPS if step in gains} | control_of(store)
    return found | {name: gains[step][part] for name, (step, part) in FURTHER.items() if part in gains.get(step, {})}


def control_of(store: Path) -> dict[str, Any]:
    """What RLVR kept to, of the newest in a store: KL and its budget, and shares of hedged answers."""
    logs = sorted(store.glob("rlvr/*/g*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return {}
    rows = [row for row in map(json.loads, logs[-1].read_text().splitlines()) if "rollout_kl" in row]
    (record,) = logs[-1].parents[1].glob(f"record-*{logs[-1].parent.name[2:]}.json")
    control = json.loads(record.read_text())["config"].get("kl_control") or {}
    quarter = max(1, len(rows) // 4)
    hedged = [sum(row["hedged"] for row in part) / quarter for part in (rows[:quarter], rows[-quarter:])]
    return {"kl": max(row["rollout_kl"] for row in rows), "budget": control.get("budget"), "hedged": hedged}


def standard_errors(gain: Mapping[str, float]) -> float:
    """A gain in its standard errors; without an error there is no difference at all, or one beyond doubt."""
    if gain["stderr"]:
        return gain["gain"] / gain["stderr"]
    return math.copysign(math.inf, gain["gain"]) if gain["gain"] else 0.0


def names_of(rows: list[Run]) -> list[str]:
    return [name for name in (*STEPS, *FURTHER) if any(name in row for row in rows)]


def markdown(rows: list[Run]) -> list[str]:
    """The table: a run a line, a step a column; gain and standard errors. What was compared in bits per byte stays in bits."""
    names = names_of(rows)
    lines = [f"| run | {' | '.join(names)} | KL | hedged | minutes |", "|---" * (len(names) + 4) + "|"]
    for row in rows:
        cells = []
        for name in names:
            one = row.get(name, {})
            in_bits = name == "curation" or one.get("metric") == "bits_per_byte"
            scale, digits = (1, 3) if in_bits else (100, 1)
            cells.append(f"{scale * one['gain']:+.{digits}f} ({standard_errors(one):+.1f})" if one else "")
        minutes = f"{row['seconds'] / 60:.1f}" if "seconds" in row else ""
        kept = ["", ""]
        if "kl" in row:
            kept = [
                f"{row['kl']:.3f}" + (f" of {row['budget']}" if row["budget"] else ""),
                " → ".join(f"{100 * share:.1f} %" for share in row["hedged"]),
            ]
        lines.append(f"| {row['run']} | {' | '.join((*cells, *kept))} | {minutes} |")
    return lines


def page(table: str, rows: list[Run]) -> str:
    """The page of the documentation."""
    shares = summary(rows)["clear"].items()
    clear = ", ".join(f"{name} {round(share * len(rows))}" for name, share in shares)
    return f"""# What every step of the laptop recipe gains

Each line is one whole run of `recipes/laptop.yaml`. A cell holds the gain, in percent points (of curation, the sweep and the
soup in bits per byte), and in brackets the same in paired standard errors. The soup is compared with the base, with the mean of
its ingredients and with the best of them; reward is the reward model's accuracy over chance; sweep is the best candidate over the
next. KL is the largest of a rollout of RLVR against its budget, and hedged the share of answers with several final answers in
RLVR's first and last quarter. `avx2` runs have narrower instructions only, as older processors do. Wall times are of runs that
had both cores and were not interrupted; the others had one core each.

`python benchmarks/quality/gains.py --out docs/laptop-gains.md` made this page on: {processor_name()}.

Of {len(rows)} runs, so many have a gain of more than {CLEAR:g} standard errors: {clear}.

{table}
"""


def summary(rows: list[Run]) -> dict[str, Any]:
    """Of every step the share of runs with a clear gain, and the longest wall time in seconds."""
    clear = {
        name: sum(standard_errors(row[name]) > CLEAR for row in rows if name in row) / len(rows)
        for name in names_of(rows)
    }
    longest = max((row["seconds"] for row in rows if "seconds" in row), default=None)
    return {"clear": clear, "runs": len(rows), "longest_seconds": longest}


if __name__ == "__main__":
    main()
