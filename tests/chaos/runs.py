"""Runs of the command as a user's process, in a session of their own, that tests may kill at a chosen moment."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from infra.records.record import all_records, lineage, load_started
from infra.storage.store import Store

CHANGES = (
    "collect.code.shard_bytes=40000",
    "pretrain.steps=60",
    "sft.epochs=6",
    "rlvr.episodes=512",
    "execution.ray=off",
    "execution.save_every=2",
)
"""What these runs change in `smoke`: several shards, and training stages long enough to be met in the middle."""

MARK = "OLMO2_CHAOS_RUN"
PATIENCE_SECONDS = 120.0


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Return as soon as the condition holds. Raises AssertionError when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.002)


def environment(api: str | None, **more: str) -> dict[str, str]:
    """A user's environment; with `api`, runs talk to that Prefect server instead of starting one each."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "OLMO2_", "PREFECT_"))}
    return clean | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"} | ({"PREFECT_API_URL": api} if api else {}) | more


class Run:
    """`olmo2 run smoke` with the changes of these tests; `arguments` come after them."""

    def __init__(self, store: Path, *arguments: str, api: str | None, log: Path, **more: str):
        self.mark = uuid.uuid4().hex
        self.store = Store(str(store))
        self.log = log
        options = [part for change in CHANGES for part in ("--set", change)]
        command = [sys.executable, "-m", "flows.cli", "run", "smoke", "--store", str(store), *options, *arguments]
        # A file, not a pipe: what outlives the command must not be able to block the test.
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                env=environment(api, **{MARK: self.mark}, **more),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait for a moment of the run. Raises AssertionError when the run ends before it."""

        def reached() -> bool:
            ended = self.process.poll() is not None
            found = bool(condition())
            assert found or not ended, f"ended with {self.process.returncode} before: {what}\n{self.output[-3000:]}"
            return found

        wait_for(reached, what, seconds)

    def kill_group(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stage_process(self) -> psutil.Process:
        """The process of the stage that runs now: a child of the fork server."""
        servers = [child for child in psutil.Process(self.process.pid).children() if is_fork_server(child)]
        stages = [stage for server in servers for stage in server.children()]
        assert len(stages) == 1, (servers, stages)
        return stages[0]

    def finish(self, code: int = 0, seconds: float = 3 * PATIENCE_SECONDS) -> str:
        """Wait for the end; returns the output. Raises AssertionError for another exit code."""
        self.process.wait(seconds)
        assert self.process.returncode == code, f"exit {self.process.returncode}\n{self.output[-5000:]}"
        return self.output

    def living(self) -> list[psutil.Process]:
        """Everything that descends from this run, whoever its parent is now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def all_gone(self, seconds: float = 20.0) -> None:
        """Raises AssertionError if any process of this run is still there after a while, and ends it."""
        try:
            wait_for(lambda: not self.living(), "the end of all processes of the run", seconds)
        except AssertionError as error:
            left = self.living()
            commands = [" ".join(process.cmdline())[:200] for process in left]
            for process in left:
                process.kill()
            raise AssertionError(f"{error}: {commands}\n{self.output[-2000:]}") from None


def is_fork_server(process: psutil.Process) -> bool:
    return any("multiprocessing.forkserver" in part for part in process.cmdline())


def save_points(store: Store, label: str) -> list[int]:
    """Steps of the whole save points in the progress area of a step's unfinished work."""
    stage = label.partition(":")[0]
    begun = {
        id
        for id in store.names(f"_progress/{stage}")
        if (work := load_started(store, stage, id, 1)) and work.label == label
    }
    paths = [path for path in progress(store, stage) if "/points/point-" in path]
    names = [path.rsplit("/", 1)[-1] for path in paths if any(f"/{id}/" in path for id in begun)]
    return sorted(int(name[6:16]) for name in names)


def shards_done(store: Store, stage: str, map: str) -> int:
    """Committed shards of a stage's unfinished map."""
    return sum(f"/shards/{map}-" in path for path in progress(store, stage))


def progress(store: Store, stage: str) -> list[str]:
    """Paths in the progress area of a stage; files may vanish while they are listed."""
    root = Path(store.full(f"_progress/{stage}"))
    return [f"{folder}/{name}" for folder, _, names in os.walk(root) for name in names]


def records(store: Store) -> dict[str, tuple[str, str]]:
    """Label -> (id, digest) of everything in a store but the report, which tells times."""
    return {record.label: (record.id, record.digest) for record in all_records(store) if record.stage != "report"}


def resumed_from(store: Store, label: str) -> str:
    return next(record.resumed_from for record in all_records(store) if record.label == label)


def copy_before(finished: Path, label: str, target: Path) -> Path:
    """A copy of a finished store in which a stage, and all that was made from it, never ran."""
    shutil.copytree(finished, target)
    store = Store(str(target))
    for record in all_records(store):
        if label in {parent.label for parent in lineage(store, record)}:
            shutil.rmtree(target / record.stage / record.id)
            shutil.rmtree(target / "_progress" / record.stage / record.id)
    return target
