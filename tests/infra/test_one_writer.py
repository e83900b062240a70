"""One writer: an attempt that lost its lease changes nothing that a later one committed. Oracle: DESIGN section 3.

The stage here writes other bytes in each attempt (its process id), so that a file of the wrong attempt is seen.
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import orjson
import pytest

from infra.execution.attempt import Outcome, run_stage
from infra.records.lease import LeaseLost, acquire, is_dead, lease_path, process_identity
from infra.records.reader import Reader
from infra.records.record import CorruptObject, all_records, load_record, record_path
from infra.session import Session
from infra.settings import Execution
from infra.stage import stage
from infra.storage.store import Store, StoreError
from infra.workspace import Workspace
from tests.infra.stages_for_tests import Number, NumberConfig, number, squares


def write_pid(ws: Workspace, config: NumberConfig) -> Number:
    """Stops its own process before it writes, once."""
    marker = Path(config.kill_marker)
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    ws.write_json("number.json", os.getpid())
    return ws.artifact(Number, value=config.value)


def work_and_tell(ws: Workspace, config: NumberConfig) -> Number:
    """Would work for a minute."""
    Path(config.kill_marker).touch()
    with ws.progress("work", 600) as bar:
        for _ in range(600):
            time.sleep(0.1)
            bar.advance()
    return ws.artifact(Number, value=config.value)


def work_in_silence(ws: Workspace, config: NumberConfig) -> Number:
    """Would sleep for a minute and tells nobody."""
    Path(config.kill_marker).touch()
    time.sleep(60)
    return ws.artifact(Number, value=config.value)


pid = stage(write_pid, name="pid", version=1)
telling = stage(work_and_tell, name="telling", version=1)
silent = stage(work_in_silence, name="silent", version=1, process=True)

FIRST_ATTEMPT = """
import os, signal, sys
from infra.storage.store import Store
from tests.infra.test_one_writer import attempt
url, marker, where = sys.argv[1:]
if where == "record":
    create = Store.create
    def stopped(self, path, data):
        if "/record-" in path:
            os.kill(os.getpid(), signal.SIGSTOP)
        return create(self, path, data)
    Store.create = stopped
    open(marker, "w").close()
attempt(Store(url), marker)
"""


def attempt(store: Store, marker: Path | str, made=pid, stale: float = 1.0) -> Outcome:
    session = Session(store, Execution(ray="off", lease_stale_seconds=stale))
    return run_stage(made, session, {"config": NumberConfig(kill_marker=str(marker))}, lambda event: None)


@pytest.mark.parametrize("where", ["payload", "record"])
def test_an_attempt_that_was_paused_changes_nothing_that_a_later_one_committed(
    where: str, store: Store, tmp_path: Path
):
    marker = tmp_path / "begun"
    command = [sys.executable, "-c", FIRST_ATTEMPT, store.url, str(marker), where]
    paused = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        _wait_until_stopped(paused.pid)
        outcome = attempt(store, marker)
        assert outcome.record.attempts == 2
        files = {name: store.read(name) for name in store.walk("pid")}
        paused.send_signal(signal.SIGCONT)
        assert paused.stderr is not None
        told = paused.stderr.read().decode()
        paused.wait(60)
    finally:
        paused.kill()
    # One that finds a record that is not its own takes it, as one does that comes later.
    assert (paused.returncode, "LeaseLost" in told) == ((1, True) if where == "payload" else (0, False)), told
    assert {name: store.read(name) for name in files if name.startswith(outcome.record.payload)} == {
        name: data for name, data in files.items() if name.startswith(outcome.record.payload)
    }
    assert load_record(store, "pid", outcome.artifact.id) == outcome.record
    assert Reader(store).read_json(outcome.artifact, "number.json") == os.getpid()
    assert attempt(store, marker).reused


def _wait_until_stopped(process: int) -> None:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline, "the first attempt did not come that far"
        time.sleep(0.05)


@pytest.mark.parametrize("made", [telling, silent], ids=["in this process", "in its own, silent"])
def test_a_heartbeat_that_dies_ends_the_attempt_at_once(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = Store.write

    def dying(self: Store, path: str, data: bytes) -> None:
        if path.endswith(".beat") and (tmp_path / "begun").exists():
            raise MemoryError("no thread can be started")
        write(self, path, data)

    monkeypatch.setattr(Store, "write", dying)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    began = time.monotonic()
    with pytest.raises(LeaseLost, match=r"heartbeat of attempt 1 ended with MemoryError: no thread.*it resumes"):
        attempt(Store(str(tmp_path / "store")), tmp_path / "begun", made)
    assert time.monotonic() - began < 30
    assert [name for name in Store(str(tmp_path / "store")).walk("") if "/record-" in name] == []


def test_an_attempt_that_was_superseded_ends_at_its_next_heartbeat(tmp_path: Path):
    store = Store(str(tmp_path / "store"))

    def supersede() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        (lease,) = [name for name in store.walk("_progress") if name.endswith("lease-000001.json")]
        store.create(lease.replace("000001", "000002"), b"{}")

    thread = threading.Thread(target=supersede)
    thread.start()
    with pytest.raises(LeaseLost, match="attempt 1 was superseded by attempt 2"):
        attempt(store, tmp_path / "begun", telling)
    thread.join()


@pytest.mark.parametrize(
    ("change", "dead"),
    [
        ({}, False),
        ({"host": "renamed"}, False),
        ({"boot_id": "0d3f4e0c-0000-4000-8000-000000000000"}, False),
        ({"namespace": "pid:[1]"}, False),
        ({"boot_id": ""}, False),
        ({"pid": 2**22 + 1}, True),
        ({"start_ticks": 1}, True),
    ],
    ids=[
        "we",
        "renamed host",
        "same host name elsewhere",
        "another container",
        "no boot id",
        "no such pid",
        "pid reused",
    ],
)
def test_who_is_dead(change: dict, dead: bool):
    """Neither the host's name nor any clock decides."""
    assert is_dead(process_identity() | change) is dead


def test_a_holder_that_an_older_version_wrote_is_waited_for():
    old = {"host": os.uname().nodename, "boot": 1.0, "namespace": "", "pid": 2**22 + 1, "started": 1.0}
    assert not is_dead(old)


class LostReplies(Store):
    """Each creation is done and then said to have failed on what was there: a repeated request whose first reply was lost."""

    def _create_remote(self, target: str, data: bytes) -> bool:
        super()._create_remote(target, data)
        return super()._create_remote(target, data)


@pytest.mark.s3
@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_lost_reply_to_a_creation_is_known_as_ones_own(store: Store):
    store = LostReplies(store.url, store.cache)
    began = time.monotonic()
    lease = acquire(store, "p", stale_seconds=60)
    assert lease is not None
    assert lease.number == 1
    assert store.create("x", b"mine")
    assert not store.create("x", b"theirs")
    session = Session(store, Execution(ray="off"))
    made = run_stage(number, session, {"config": NumberConfig(value=3)}, lambda event: None)
    assert not made.reused
    assert (
        made.record.token
        == orjson.loads(store.read(f"_progress/number/{made.artifact.id}/g0001/lease-000001.json"))["token"]
    )
    assert time.monotonic() - began < 30


class Lagging(Store):
    """Listings know nothing of the last seconds."""

    listings = 0

    def names(self, folder: str) -> list[str]:
        self.listings += 1
        return []


def test_a_listing_that_lags_is_not_asked_again_and_again(tmp_path: Path):
    store = Lagging(str(tmp_path))
    store.create(lease_path("p", 1), orjson.dumps(process_identity()))
    ended = time.monotonic() + 3
    assert acquire(store, "p", stale_seconds=60, finished=lambda: time.monotonic() > ended) is None
    assert 2 <= store.listings <= 20


def test_a_lease_that_a_listing_does_not_show_yet_is_held(tmp_path: Path):
    store = Lagging(str(tmp_path))
    lease = acquire(store, "p", stale_seconds=60)
    assert lease is not None
    lease.check()
    store.create(lease_path("p", 2), b"{}")
    with pytest.raises(LeaseLost):
        lease.check()


def test_shards_of_an_earlier_attempt_are_taken_over_and_its_late_writes_change_nothing(store: Store, tmp_path: Path):
    arguments = {"config": NumberConfig(value=6, kill_marker=str(tmp_path / "calls"))}
    session = Session(store, Execution(ray="off"))
    with pytest.raises(KeyboardInterrupt):
        run_stage(squares, session, arguments, lambda event: None)
    made = run_stage(squares, session, arguments, lambda event: None)
    assert made.record.attempts == 2
    assert made.record.payload == f"{made.artifact.address}-a000002"
    for number_ in range(6):
        store.write(f"{made.artifact.address}/squares/{number_}.txt", b"late")
    workspace = Reader(store)
    assert [workspace.path(made.artifact, f"squares/{n}.txt").read_text() for n in range(6)] == [
        "0",
        "1",
        "4",
        "9",
        "16",
        "25",
    ]
    assert run_stage(squares, session, arguments, lambda event: None).reused


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "a//b", "", ".", "a/.", "a\\..\\x", "a\x00b", "a\nb", "..", "a/.."]
)
def test_a_record_that_lists_a_file_outside_its_folder_is_refused_when_it_is_loaded(name: str, tmp_path: Path):
    store = Store(str(tmp_path))
    made = run_stage(
        number, Session(store, Execution(ray="off")), {"config": NumberConfig()}, lambda event: None
    ).record
    path = record_path(made.stage, made.id, made.generation)
    body = orjson.loads(store.read(path))
    entry = next(iter(body["files"].values()))
    store.write(path, orjson.dumps(body | {"files": {name: entry}, "schema_version": 1, "seal": ""}))
    with pytest.raises(CorruptObject, match="is no name of a file below a folder"):
        load_record(store, made.stage, made.id)


def test_a_record_sealed_before_there_was_a_site_is_still_whole_and_one_with_a_site_is_guarded(tmp_path: Path):
    """The oracle of an older seal: SHA-256 over the sorted JSON of all fields but the seal and the site."""
    store = Store(str(tmp_path))
    made = run_stage(
        number, Session(store, Execution(ray="off")), {"config": NumberConfig()}, lambda event: None
    ).record
    path = record_path(made.stage, made.id, made.generation)
    body = orjson.loads(store.read(path))
    older = {name: value for name, value in body.items() if name not in ("site", "seal")}
    seal = hashlib.sha256(orjson.dumps(older, option=orjson.OPT_SORT_KEYS)).hexdigest()
    store.write(path, orjson.dumps(older | {"seal": seal}))
    assert load_record(store, made.stage, made.id) == made
    store.write(path, orjson.dumps(older | {"seal": seal, "site": {"pue": 1.2}}))
    with pytest.raises(CorruptObject, match="its fields are not those that were sealed"):
        load_record(store, made.stage, made.id)


@pytest.mark.parametrize("field", ["address", "folder"])
@pytest.mark.parametrize("place", ["../../elsewhere", "/etc", "number/0123456789abcdef/g0001", "."])
def test_a_record_that_lies_elsewhere_than_its_id_says_is_refused(field: str, place: str, tmp_path: Path):
    store = Store(str(tmp_path))
    made = run_stage(
        number, Session(store, Execution(ray="off")), {"config": NumberConfig()}, lambda event: None
    ).record
    path = record_path(made.stage, made.id, made.generation)
    body = orjson.loads(store.read(path))
    store.write(path, orjson.dumps(body | {field: place, "schema_version": 1, "seal": ""}))
    with pytest.raises(CorruptObject):
        load_record(store, made.stage, made.id)


def test_a_store_that_refuses_every_request_is_told_with_endpoint_and_verb(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Nobody listens on the discard port; nobody waits for it either."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = Store("s3://nowhere-at-all/x", tmp_path)
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"cannot list .* at http://127\.0\.0\.1:9: .*that you may read it"):
        store.names("a")
    assert time.monotonic() - began < 10


class CommittedMeanwhile(Store):
    """Another driver commits everything right after this one has first listed what there is."""

    done = False

    def names(self, folder: str) -> list[str]:
        found = super().names(folder)
        if folder.startswith("number/") and not self.done:
            self.done = True
            other = Session(Store(self.url, self.cache), Execution(ray="off"))
            run_stage(number, other, {"config": NumberConfig(value=5)}, lambda event: None)
        return found


def test_what_another_driver_commits_while_one_looks_is_reused_and_not_made_twice(tmp_path: Path):
    store = CommittedMeanwhile(str(tmp_path / "store"), tmp_path / "cache")
    outcome = run_stage(
        number, Session(store, Execution(ray="off")), {"config": NumberConfig(value=5)}, lambda *_: None
    )
    assert outcome.reused
    assert [record.generation for record in all_records(Store(store.url))] == [1]


def test_what_is_committed_was_on_the_disk_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A power cut cannot be made here. Oracle: the order of `fsync` and of the record's creation, as the system was asked."""
    asked: list[str] = []
    fsync, link = os.fsync, os.link

    def flushed(descriptor: int) -> None:
        asked.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def linked(source: Path, target: str) -> None:
        link(source, target)
        asked.append(f"name {target}")

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "link", linked)
    root = tmp_path / "store"
    session = Session(Store(str(root)), Execution(store=str(root), ray="off"))
    record = run_stage(number, session, {"config": NumberConfig(value=7)}, lambda event: None).record
    payload = root / record.payload / "number.json"
    committed = root / record_path(record.stage, record.id, record.generation)
    folders = [folder for folder in payload.parents if folder.is_relative_to(root)]
    created = asked.index(f"name {committed}")
    for path in (payload, *folders):
        assert str(path) in asked[:created], "what a record names is there before the record is"
    for path in (committed, *(folder for folder in committed.parents if folder.is_relative_to(root))):
        assert str(path) in asked[created:], "and so is its own name when the command goes on"
