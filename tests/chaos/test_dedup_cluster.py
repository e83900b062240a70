"""Deduplication on a Ray cluster that loses a node at every step, with memory bounded by its setting.

Oracle: the digest of the same stage in this process, with everything in one partition.
"""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from infra.execution.attempt import run_stage
from infra.records.record import all_records
from infra.session import Session
from infra.settings import Execution
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Documents
from tasks.data.dedup import DedupConfig, dedup
from tasks.data.documents.dolma_files import LineWriter
from tasks.data.duplicates.minhash import MinHashConfig
from tests.chaos.test_cluster import Cluster, cluster, processes

__all__ = ["cluster"]
pytestmark = [pytest.mark.chaos, pytest.mark.slow]

SHARDS, ROWS = 24, 100
LOST_AFTER = (3, 20, 40, 60)
"""Commits of shards after which a node is lost: while texts are hashed, signed and compared, and after."""


class Texts(Config):
    shards: int = SHARDS


def write_texts(ws: Workspace, config: Texts) -> Documents:
    """Of ten texts one is a copy and one is like another, from any shard before."""
    rng = random.Random(1)
    known: list[list[str]] = []
    for shard in range(config.shards):
        with LineWriter(ws, f"documents/{shard:05d}-000.jsonl.zst") as out:
            for row in range(ROWS):
                words = [f"w{rng.randrange(9**5)}" for _ in range(30)]
                if known and row % 5 == 0:
                    words = [*rng.choice(known)[:29], words[0]] if row % 10 else rng.choice(known)
                known.append(words)
                out.write({"id": f"{shard}-{row}", "source": "web", "text": " ".join(words)})
    count = config.shards * ROWS
    return ws.artifact(Documents, documents=count, bytes=1, sources={"web": count}, dropped={})


texts = stage(write_texts, name="texts", version=1)


def drive(folder: str, address: str, shuffle_bytes: int, authentication: str) -> None:
    """The texts and their deduplication, in this process."""
    if address != "off":
        os.environ["RAY_AUTH_MODE"] = authentication
    execution = Execution(ray=address, on_cluster="shards", shuffle_bytes=shuffle_bytes, lease_stale_seconds=2.0)
    session = Session(Store(folder), execution)
    made: Any = run_stage(texts, session, texts.bind(Texts()), lambda event: None).artifact
    config = DedupConfig(near=MinHashConfig(ngram=5, bands=10, rows=4))
    run_stage(dedup, session, dedup.bind([made], config), lambda event: None)


def found(folder: Path) -> tuple[str, int, int] | None:
    """Digest, documents kept and dropped, once the stage has ended."""
    records = all_records(Store(str(folder))) if folder.exists() else []
    for record in records:
        if record.stage == dedup.name:
            return record.digest, record.facts["documents"], sum(record.facts["dropped"].values())
    return None


def commits(folder: Path) -> int:
    return len(list(folder.glob(f"_progress/{dedup.name}/**/shards/*.json")))


@pytest.mark.timeout(900)
def test_deduplication_survives_lost_nodes_within_its_memory(cluster: Cluster, tmp_path: Path):
    authentication = os.environ.get("RAY_AUTH_MODE", "disabled")
    drive(str(tmp_path / "calm"), "off", 256_000_000, authentication)
    expected = found(tmp_path / "calm")
    assert expected is not None and expected[2] >= 0.15 * SHARDS * ROWS
    folder, lost = tmp_path / "store", 0
    process = processes.Process(target=drive, args=(str(folder), cluster.address, 200_000, authentication))
    process.start()
    for count in LOST_AFTER:
        while process.is_alive() and commits(folder) < count:
            time.sleep(0.02)
        if process.is_alive():
            cluster.lose_node(lost % 2)
            lost += 1
    process.join(600)
    assert process.exitcode == 0
    assert lost >= 3
    assert found(folder) == expected
