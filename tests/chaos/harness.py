"""Accidents by one seed: each happens to drivers of the small pipeline, and a calm run after it is compared with the calm store.

Counted as lost: an artifact that is gone or cannot be made again. As wrong: another digest, or damage that nobody names. As
double: a second record for the same work. `python -m tests.chaos.harness COUNT SEED` runs as many as it is told. The kinds
take turns; every tenth accident is one that takes a server or a cluster, which is dear.
"""

import contextlib
import json
import multiprocessing.context
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from infra.records.record import Record, all_records, load_record, record_path
from infra.records.upkeep import mend_from, verify_artifacts
from infra.storage.store import CorruptObject, Store
from tests.chaos.drivers import drive_until_full, quicken
from tests.chaos.service_accidents import (
    faulty_storage,
    killed_prefect,
    killed_ray_worker,
    killed_stage,
    lost_ray_node,
)
from tests.chaos.services import Services
from tests.chaos.small_stages import STALE_SECONDS, drive, run_all

CALM_SECONDS = 60.0
"""A driver that nothing happens to ends within this on a busy machine."""
PATIENCE_SECONDS = 60.0


def context() -> multiprocessing.context.ForkServerContext:
    """Processes that begin with the modules loaded: a driver starts in hundredths of a second."""
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(["tests.chaos.drivers"])
    return chosen


@dataclass
class Chaos:
    """The accidents of one seed on one folder."""

    folder: Path
    seed: int
    services: Services
    done: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    """Where accidents met the pipeline: the number of artifacts that were there."""
    faults: Counter[str] = field(default_factory=Counter)
    """Answers of object storage that went wrong, by kind."""
    missed: Counter[str] = field(default_factory=Counter)
    """Accidents to a service that did not happen: the driver had ended, or there was nothing to meet for too long."""
    reached: Counter[str] = field(default_factory=Counter)
    """Those that did, by what was met."""
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.calm = Store(str(self.folder / "calm"), self.folder / "calm-cache")
        began = time.monotonic()
        self.expected = {name: record.digest for name, record in run_all(self.calm).items()}
        self.seconds = time.monotonic() - began
        self._context = context()
        self._number = 0

    def run(self, count: int) -> None:
        """So many accidents, each kind in turn."""
        kinds: list[tuple[str, Callable[[Store], None]]] = [
            ("kill", self.kill), ("pause", self.pause), ("two drivers", self.two), ("damage", self.damage),
            ("kill twice", self.kill_twice), ("no more files", self.full), ("killed stage", partial(killed_stage, self)),
            ("store faults", partial(faulty_storage, self)),
        ]  # fmt: skip
        dear: list[tuple[str, Callable[[Store], None]]] = [
            ("killed Ray worker", partial(killed_ray_worker, self)), ("killed Prefect server", partial(killed_prefect, self)),
            ("lost Ray node", partial(lost_ray_node, self)),
        ]  # fmt: skip
        for number in range(count):
            is_dear = number % 10 == 9
            name, accident = dear[number // 10 % len(dear)] if is_dear else kinds[(number - number // 10) % len(kinds)]
            self._number += 1
            store = self.new_store(remote=name == "store faults")
            accident(store)
            self.met[str(len(all_records(store)) if name != "damage" else 4)] += 1
            self.check(name, store)
            self.done[name] += 1
            if store.is_local:
                shutil.rmtree(store.root)

    def new_store(self, *, remote: bool) -> Store:
        """A store of its own for each accident."""
        name = f"store-{self._number:04d}"
        if not remote:
            return Store(str(self.folder / name), self.folder / "cache" / name)
        os.environ |= {
            "AWS_ENDPOINT_URL": self.services.s3.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "testtest",
        }
        return Store(f"s3://chaos/{name}", self.folder / "cache" / name)

    def check(self, name: str, store: Store) -> None:
        """After a calm run everything is there once, with the bytes of the calm store."""
        where = f"accident {self._number} ({name}, seed {self.seed})"
        try:
            made = run_all(store)
        except Exception as error:  # whatever it is, it is a finding of this harness
            self.problems.append(f"{where}: lost: {type(error).__name__}: {error}")
            return
        wrong = [stage for stage, digest in self.expected.items() if made[stage].digest != digest]
        _, damage = verify_artifacts(store, [], lambda *heard: None)
        double = len(all_records(store)) - len(self.expected)
        left = [path for path in store.walk("") if "/.tmp-" in path and name not in ("kill", "kill twice", "pause")]
        if wrong or damage or double or left:
            self.problems.append(f"{where}: wrong {wrong}, damaged {damage}, double {double}, left {left}")

    # -- accidents ----------------------------------------------------------------------------------------

    def start(self, store: Store, target: Callable[..., None] = drive, *more: str) -> BaseProcess:
        process = self._context.Process(target=target, args=(store.url, str(store.cache), PATIENCE_SECONDS, *more))
        process.start()
        return process

    def moment(self, longer: float = 1.3) -> None:
        """Wait for a random moment of a run that takes so many times as long as the calm one."""
        time.sleep(self.chance.uniform(0.0, longer * self.seconds))

    def problem(self, text: str) -> None:
        self.problems.append(f"accident {self._number}: {text}")

    def kill(self, store: Store) -> None:
        process = self.start(store)
        self.moment()
        process.kill()
        process.join()

    def kill_twice(self, store: Store) -> None:
        self.kill(store)
        self.kill(store)

    def pause(self, store: Store) -> None:
        """One is stopped, another takes over and ends, and the first wakes up in the middle of a write."""
        first = self.start(store)
        self.moment()
        stopped = first.is_alive()
        if stopped:
            self.tell(first, signal.SIGSTOP)
        time.sleep(STALE_SECONDS * self.chance.choice((0.2, 1.2)))
        second = self.start(store)
        second.join(CALM_SECONDS)
        if stopped:
            self.tell(first, signal.SIGCONT)
        self.settle(first, second)

    def tell(self, process: BaseProcess, number: signal.Signals) -> None:
        """Send a signal; a driver that has just ended needs none."""
        assert process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    def two(self, store: Store) -> None:
        drivers = [self.start(store)]
        time.sleep(self.chance.uniform(0, 0.3))
        drivers.append(self.start(store))
        self.settle(*drivers)
        if codes := [driver.exitcode for driver in drivers if driver.exitcode != 0]:
            self.problems.append(f"accident {self._number}: drivers side by side ended with {codes}")

    def full(self, store: Store) -> None:
        """Writes fail from a random moment on, as on a full disk."""
        self.settle(self.start(store, drive_until_full))

    def damage(self, store: Store) -> None:
        """One file of a finished store changes; it is named, and mended from the other store."""
        shutil.copytree(self.calm.root, store.root)
        records = all_records(store)
        record = self.chance.choice(records)
        edits = self.chance.random() < 0.3
        path = (
            record_path(record.stage, record.id, 1)
            if edits
            else f"{record.payload}/{self.chance.choice(list(record.files))}"
        )
        self.spoil(Path(store.full(path)))
        _, found = verify_artifacts(store, [], lambda *heard: None)
        if [(item.stage, item.id) for item in found] != [(record.stage, record.id)]:
            self.problems.append(f"accident {self._number}: damage to {path} is told as {found}")
        self.mend(store, record, edits)

    def spoil(self, path: Path) -> None:
        data = bytearray(path.read_bytes())
        # A record that is gone is no damage: the artifact does not exist then.
        ways = ("flip", "cut", "longer") if path.name.startswith("record-") else ("flip", "cut", "longer", "gone")
        way = self.chance.choice(ways)
        if way == "flip":
            data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
        elif way == "cut":
            del data[self.chance.randrange(len(data)) :]
        elif way == "longer":
            data += b"\0"
        # Not in place: files of the copy may be links.
        path.unlink()
        if way != "gone":
            path.write_bytes(bytes(data))

    def mend(self, store: Store, record: Record, edits: bool) -> None:
        if not edits:
            names = [item.file for item in verify_artifacts(store, [], lambda *heard: None)[1]]
            mend_from(store, self.calm, record, names)
            return
        path = record_path(record.stage, record.id, 1)
        try:
            load_record(store, record.stage, record.id, 1)
        except CorruptObject:
            store.remove(path)
            store.create(path, self.calm.read(path))

    def settle(self, *processes: BaseProcess) -> None:
        """Wait for drivers that nothing happens to any more; those that do not end are told and killed."""
        for process in processes:
            process.join(CALM_SECONDS)
            if process.is_alive():
                self.problems.append(f"accident {self._number}: a driver did not end within {CALM_SECONDS:.0f} s")
                process.kill()
                process.join()


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    quicken()
    with tempfile.TemporaryDirectory(prefix="olmo2-chaos-") as folder, Services(Path(folder)) as services:
        chaos = Chaos(Path(folder), seed, services)
        began = time.monotonic()
        chaos.run(count)
        told = {"accidents": dict(chaos.done), "artifacts there when it ended": dict(sorted(chaos.met.items()))}
        told |= {"faults of object storage": dict(chaos.faults), "not met": dict(chaos.missed)}
        print(json.dumps(told | {"seconds": round(time.monotonic() - began), "problems": chaos.problems}, indent=1))
    sys.exit(1 if chaos.problems else 0)


if __name__ == "__main__":
    main()
