"""Drivers of the small pipeline as a harness starts them: functions of a process that runs it all on a store and ends."""

import os
import random
import resource
import signal
import threading
from pathlib import Path

from infra.compute import processes
from infra.session import Session, open_session
from infra.storage import retries
from infra.storage.store import Store
from tests.chaos import small_stages
from tests.chaos.small_stages import JOIN, SHARDS, TEXT, TRAIN, PartConfig, drive, execution, run_all


def drive_apart(url: str, cache: str, patience: float) -> None:
    """Trains in a process of its own, as real trainings do; its fork server loads no PyTorch, which nothing here needs."""
    processes.PRELOAD = ["tests.chaos.small_stages"]
    store = Store(url, Path(cache))
    store.patience_seconds = patience
    run_all(store, apart=True)


def drive_until_full(url: str, cache: str, patience: float) -> None:
    """A driver whose files cannot grow beyond some bytes from a random moment on: the kernel refuses its writes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write fails with an error, as it does on a full disk
    limit = random.randrange(100, 20_000)
    threading.Timer(random.uniform(0, 0.4), resource.setrlimit, (resource.RLIMIT_FSIZE, (limit, limit))).start()
    drive(url, cache, patience)


def drive_on_s3(url: str, cache: str, patience: float, endpoint: str) -> None:
    """On object storage behind a proxy; a hang is noticed after a second, and pauses are short, as the pipeline is."""
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    quicken()
    drive(url, cache, patience)


def quicken() -> None:
    """Patience with object storage in proportion to the small pipeline."""
    retries.ANSWER_SECONDS, retries.FIRST_PAUSE_SECONDS, retries.LONGEST_PAUSE_SECONDS = 1, 0.02, 1.0


def drive_on_ray(url: str, cache: str, patience: float, address: str, authentication: str) -> None:
    """Shards on a cluster, slow enough that its workers can be met at their work."""
    os.environ["RAY_AUTH_MODE"] = authentication
    small_stages.SLOWER = 8.0
    store = Store(url, Path(cache))
    store.patience_seconds = patience
    run_all(store, address)


def drive_with_prefect(url: str, cache: str, patience: float, api: str, home: str) -> None:
    """As `olmo2 run` does: every stage a Prefect task, and its server may go away."""
    os.environ |= {"PREFECT_API_URL": api, "PREFECT_HOME": home, "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    from infra.execution.prefect_engine import PrefectEngine  # Prefect reads its settings when it is imported

    store = Store(url, Path(cache))
    store.patience_seconds = patience
    engine = PrefectEngine()

    def pipeline() -> None:
        config = PartConfig()
        text = TEXT(config)
        shards = SHARDS(text, config)
        JOIN([text, shards, TRAIN(shards, config)], config)

    with open_session(Session(store, execution(), engine=engine)):
        engine.phase("small", pipeline)()
