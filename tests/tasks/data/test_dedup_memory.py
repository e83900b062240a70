"""The memory of deduplication is bounded by `execution.shuffle_bytes`, whatever the number of documents.

Oracle: the kernel's peak of resident memory, for N documents and for a hundred times as many. A tenth of them are copies of
one text and a tenth resemble one, so that single keys grow with the corpus too.
"""

import subprocess
import sys
from pathlib import Path

import pytest

FEW = 1_000
SHUFFLE_BYTES = 16_000_000
MEASURE = """
import random, sys
from pathlib import Path
from infra.execution.attempt import run_stage
from infra.session import Session
from infra.settings import Execution
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Documents
from tasks.data.dedup import DedupConfig, dedup
from tasks.data.documents.dolma_files import LineWriter
from tasks.data.duplicates.pieces import ParagraphConfig
from tasks.data.duplicates.seen import NGramConfig
from tasks.data.duplicates.minhash import MinHashConfig

ROWS = 2_000
WITHIN = {"": None, "paragraphs": ParagraphConfig(min_words=5), "ngrams": NGramConfig(ngram=5)}


class Many(Config):
    count: int


def texts(count):
    rng = random.Random(1)
    one = [f"w{rng.randrange(9**6)}" for _ in range(20)]
    for number in range(count):
        words = [f"w{rng.randrange(9**6)}" for _ in range(20)]
        if number % 10 == 0:
            words = one
        elif number % 10 == 1:
            words = one[:19] + words[:1]
        yield " ".join(words)


def write(ws: Workspace, config: Many) -> Documents:
    made = enumerate(texts(config.count))
    for shard in range(-(-config.count // ROWS)):
        with LineWriter(ws, f"documents/{shard:05d}-000.jsonl.zst") as out:
            for number, text in (next(made) for _ in range(min(ROWS, config.count - shard * ROWS))):
                out.write({"id": str(number), "source": "web", "text": text})
    return ws.artifact(Documents, documents=config.count, bytes=1, sources={"web": config.count}, dropped={})


def resident(which):
    return int(Path("/proc/self/status").read_text().split(which + ":")[1].split()[0]) * 1024


root, count, shuffle_bytes, within = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
execution = Execution(store=root, ray="off", shuffle_bytes=shuffle_bytes)
session = Session(Store(root), execution)
config = DedupConfig(near=MinHashConfig(ngram=5, bands=14, rows=8), within=WITHIN[within])


def run(count):
    made = run_stage(stage(write, name="many", version=1), session, {"config": Many(count=count)}, lambda event: None).artifact
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    kept = run_stage(dedup, session, dedup.bind([made], config), lambda event: None).artifact
    return kept, resident("VmHWM") - before


# What libraries take at their first use is taken before.
run(100)
kept, peak = run(count)
print(peak, kept.documents, sum(kept.dropped.values()))
"""


def measured(folder: Path, count: int, within: str) -> tuple[int, int, int]:
    """Bytes at the peak beyond what the process had before, documents kept and dropped."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(count), str(SHUFFLE_BYTES), within],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    peak, kept, dropped = map(int, run.stdout.split())
    return peak, kept, dropped


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel's peak is read from /proc")
@pytest.mark.parametrize("within", ["", "paragraphs", "ngrams"])
def test_a_hundred_times_the_documents_take_the_memory_of_the_setting(tmp_path: Path, within: str):
    few, many = (measured(tmp_path / str(count), count, within) for count in (FEW, 100 * FEW))
    assert few[1] + few[2] == FEW and many[1] + many[2] == 100 * FEW
    assert many[2] >= 0.1 * 100 * FEW
    print(f"{within or 'documents'}: {few[0] / 1e6:.0f} MB and {many[0] / 1e6:.0f} MB beyond the process")
    assert many[0] < SHUFFLE_BYTES + max(few[0], SHUFFLE_BYTES)
