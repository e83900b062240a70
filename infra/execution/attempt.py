"""Makes one attempt at one artifact: it reuses what is committed, resumes what is half done, or runs the stage, and commits
once."""

import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import orjson
from tenacity import AttemptManager

from infra.compute.cordoning import Cordoning, check_not_cordoned
from infra.compute.shards import run_shards
from infra.compute.stage_call import Finished
from infra.events import Event, Listener, LogKept, Waiting
from infra.execution.energy import Counters, joules_between, read_joules
from infra.execution.fingerprint import fingerprint_of
from infra.execution.runners import SIZES_AT_ONCE, changing, finished_path, ray_of, runner_of
from infra.execution.stale import accept, changes_since, stale_error
from infra.records.artifact import Artifact
from infra.records.lease import Lease, ProcessIdentity, acquire
from infra.records.record import (
    Record,
    Started,
    code_version,
    content_digest,
    corrupt_file,
    generations,
    identity,
    load_record,
    package_versions,
    payload_address,
    progress_folder,
    record_path,
    started_path,
)
from infra.records.save_points import ephemeral_area
from infra.secrets import clean_error, without_secrets
from infra.session import Arguments, HeldDevice, Session
from infra.settings import StatedSite
from infra.stage import Call, Stage
from infra.stopping import Interrupted, fenced
from infra.storage.store import Store, StoreError
from infra.workspace import WorkSettings, Workspace


@dataclass(frozen=True)
class Outcome:
    """Says what became of a stage."""

    artifact: Artifact
    record: Record
    reused: bool


@dataclass(frozen=True)
class Caller:
    """Who asks for a stage, and what it has been given."""

    flow_run: str = ""
    """Prefect's id of the run."""
    held: HeldDevice | None = None
    """The GPU that the stage has to itself; None for the recipe's device."""


class _Generation(NamedTuple):
    """Names what an attempt makes."""

    id: str
    generation: int


def _exists() -> Finished:
    raise AssertionError("nothing runs where the artifact exists")


@dataclass
class Attempts:
    """The attempts at one artifact: how to make one, and what became of them."""

    tries: Iterable[AttemptManager] = ()
    """Each is entered around one call of `run`; there are none where the artifact exists, and several where memory is short."""
    run: Callable[[], Finished] = _exists
    """Calls the stage's function where its settings say."""
    finished: Finished | None = None
    """What `run` returned."""
    ended: Outcome | None = None
    """Known from the start where the artifact exists, else after the block."""

    @property
    def outcome(self) -> Outcome:
        """What became of the stage."""
        assert self.ended is not None, "asked after the block"
        return self.ended


def run_stage(
    stage: Stage, session: Session, arguments: Arguments, listener: Listener, caller: Caller = Caller()
) -> Outcome:
    """Reuse, resume or run a stage in the session's store.

    Raises whatever the stage function raises; nothing is committed then, and what it saved stays for the next attempt.
    """
    with attempting(stage, session, arguments, listener, caller) as attempts:
        for one in attempts.tries:
            with one:
                attempts.finished = attempts.run()
    return attempts.outcome


@contextmanager
def attempting(
    stage: Stage, session: Session, arguments: Arguments, listener: Listener, caller: Caller = Caller()
) -> Iterator[Attempts]:
    """Hold an artifact's lease around a block that makes the attempts, and commit what the block set as `finished`.

    The block calls the stage itself, as `run_stage` does, so no layer stands between who asks for the artifact and what runs.
    """
    call = stage.sort(arguments)
    store = session.store
    id = identity(stage.name, stage.version, call.config, call.records())
    forced = session.is_forced(stage.name, stage.label)
    # Listed before anything is looked at: what another driver commits from here on is this generation, not one below the next.
    newest = max(generations(store, stage.name, id), default=0)
    found = None if forced or not newest else reusable(store, stage.name, id, newest)
    if found is not None and (changed := changes_since(store, stage, found)):
        found = _judge_stale(stage, session, found, changed)
    made = _Generation(id, newest + 1)
    if found is None:
        check_not_cordoned(stage, session)
    lease = _lease_of(stage, session, made, listener) if found is None else None
    if found is None:
        # Another attempt may have committed while this one waited for the lease.
        found = load_record(store, stage.name, *made)
    if found is not None:
        yield Attempts(ended=Outcome(found.artifact(), found, reused=True))
        return
    assert lease is not None, "a holder that is waited for has committed"
    with lease, _keeping_log(store, lease, listener):
        attempt = _begin(stage, session, call, made, lease, caller)
        run = runner_of(stage, session, attempt.workspace, arguments, attempt.told_by(listener), attempt.started)
        # A cluster places whole stages, or, led from here, the workers of a group.
        alone = attempt.workspace.compute.parallel.workers == 1
        on_cluster = bool(session.execution.cluster) or (not alone and session.execution.ray != "local")
        elsewhere = Cordoning(attempt.workspace, caller.held, on_cluster, listener)
        attempts = Attempts(changing(stage, attempt.workspace, listener, elsewhere), run)
        with fenced(lease.check_alive):
            yield attempts
        assert attempts.finished is not None, "the last attempt of a Retrying returns or raises"
        record = commit(store, attempt.record(attempts.finished), lease.check)
    attempts.ended = Outcome(record.artifact(), record, reused=False)


def _lease_of(stage: Stage, session: Session, made: _Generation, listener: Listener) -> Lease | None:
    """The lease of a generation, waited for while another attempt has it; None when that one has committed."""
    store = session.store

    def tell(holder: ProcessIdentity) -> None:
        listener(Waiting(f"{stage.label} is being made by process {holder['pid']} on {holder['host']}; waiting"))

    return acquire(
        store,
        progress_folder(stage.name, *made),
        session.execution.lease_stale_seconds,
        finished=lambda: load_record(store, stage.name, *made) is not None,
        waiting=tell,
    )


@contextmanager
def _keeping_log(store: Store, lease: Lease, listener: Listener) -> Iterator[None]:
    """Keep the traceback of what ends the block, unless that is a request to stop."""
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:  # a stage may raise anything; its traceback is kept before it goes on
        clean_error(error)
        keep_log(store, f"{lease.folder}/error-{lease.number:06d}.txt", error, listener)
        raise


def _judge_stale(stage: Stage, session: Session, record: Record, changed: list[str]) -> Record | None:
    """A stale artifact's record if it is accepted, None if it is to be rerun. Raises StaleError if nothing was said."""
    if session.execution.accept:
        accept(session.store, stage, record, session.execution.accept)
        return record
    if session.execution.stale == "rerun":
        return None
    raise stale_error([(stage.label, stage.function.__module__, "; ".join(changed))])


def keep_log(store: Store, path: str, error: Exception, listener: Listener) -> None:
    """Leave the whole traceback in the progress area and tell where; a store that cannot be written is told instead."""
    try:
        store.write(path, without_secrets("".join(traceback.format_exception(error))).encode())
        listener(LogKept(f"{store.url}/{path}"))
    except StoreError as failure:
        listener(LogKept(f"not kept: {failure}"))


def reusable(store: Store, stage: str, id: str, generation: int | None = None) -> Record | None:
    """The committed record of an id (of its newest generation, if none is given), its files present with the sizes it names.
    Raises StoreError if they are not.
    """
    record = load_record(store, stage, id, generation)
    if record is None:
        return None
    check_sizes(store, record)
    return record


def check_sizes(store: Store, record: Record) -> None:
    """Raise StoreError unless the files of a record are there with the sizes it names."""
    with ThreadPoolExecutor(SIZES_AT_ONCE) as pool:
        sizes = list(pool.map(lambda name: store.size(f"{record.payload}/{name}"), record.files))
    for (name, entry), size in zip(record.files.items(), sizes, strict=True):
        if size != entry.size:
            found = "the file is missing" if size is None else f"it has {size:,} bytes, its record says {entry.size:,}"
            raise corrupt_file(store, record, name, found)


@dataclass(frozen=True)
class Attempt:
    """One attempt under way: what it was begun with, where it works, and since when."""

    started: Started
    workspace: Workspace
    lease: Lease
    caller: Caller
    created: str
    """When it began, as ISO 8601 in UTC."""
    began: float
    """Monotonic seconds."""
    joules: Counters
    """What the machine's energy counters said then."""
    watts: float | None
    """The power that is stated for the stage."""
    site: StatedSite
    """What is stated of the place."""

    def told_by(self, listener: Listener) -> Listener:
        """The listener, which hears nothing more once the lease is lost."""

        def tell(event: Event) -> None:
            # Each event is a chance to end an attempt whose lease is lost before it does more work.
            self.lease.check_alive()
            listener(event)

        return tell

    def record(self, finished: Finished) -> Record:
        """What is written of the finished stage."""
        compute, seconds = self.workspace.compute, round(time.monotonic() - self.began, 3)
        return Record(
            **dict(self.started),
            kind=finished.artifact.kind,
            address=finished.artifact.address,
            digest=content_digest(finished.files),
            facts=finished.artifact.facts(),
            files=finished.files,
            created=self.created,
            seconds=seconds,
            attempts=self.lease.number,
            resumed_from=finished.resumed_from,
            peak_memory_bytes=finished.peak_memory_bytes,
            energy_joules=self.watts * seconds if self.watts else joules_between(self.joules, read_joules()),
            site=self.site,
            notes=finished.notes,
            flow_run=self.caller.flow_run,
            folder=finished.folder,
            token=self.lease.token,
            host=finished.host,
            device=compute.device,
            threads=compute.threads,
            code=code_version(),
            packages=package_versions(),
            python=sys.version.split()[0],
        )


def _begin(stage: Stage, session: Session, call: Call, made: _Generation, lease: Lease, caller: Caller) -> Attempt:
    """Make the attempt's workspace, and write down what it computes for people who ask before there is a record."""
    execution = session.execution
    compute = execution.compute(stage.name, stage.label)
    if caller.held:
        compute = compute.model_copy(update={"device": caller.held.name})
    workspace = Workspace(
        session.store,
        stage=stage.name,
        id=made.id,
        payload=payload_address(stage.name, *made),
        progress_folder=lease.folder,
        settings=WorkSettings(
            compute=compute,
            ray=ray_of(stage, execution),
            save_every=execution.save_every,
            keep_every=execution.keep_every or 0,
            endpoints=execution.endpoints,
            generation=execution.stage_generation(stage.name),
        ),
        attempt=lease.number,
        run_shards=run_shards,
    )
    started = Started(
        stage=stage.name,
        version=stage.version,
        id=made.id,
        label=stage.label,
        generation=made.generation,
        config=call.config,
        inputs=call.records(),
        fingerprint=fingerprint_of(stage.function),
    )
    session.store.write(started_path(stage.name, *made), started.model_dump_json(indent=2).encode())
    created = datetime.now(UTC).isoformat(timespec="seconds")
    watts, began = execution.stage_watts(stage.name), time.monotonic()
    return Attempt(started, workspace, lease, caller, created, began, read_joules(), watts, execution.site)


def commit(store: Store, record: Record, check: Callable[[], None]) -> Record:
    """Write the record, the act that makes the artifact exist. `check` raises if this attempt was superseded.

    Payload and record are on the disk, not only on their way there, when this returns. Raises StoreError if a file that the
    record lists is not there.
    """
    record = record.sealed()
    if record.attempts > 1:
        check_sizes(store, record)  # files of shards that earlier attempts ran were taken over
    store.settle([f"{record.payload}/{name}" for name in record.files])
    check()
    path = record_path(record.stage, record.id, record.generation)
    # Indented and sorted, so that two records can be compared by `diff`.
    data = orjson.dumps(record.model_dump(mode="json"), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    store.create(path, data)
    store.settle([path])
    # Whoever won the creation, what is in the store is what counts.
    winner = load_record(store, record.stage, record.id, record.generation)
    assert winner is not None
    folder = progress_folder(record.stage, record.id, record.generation)
    leftovers = [ephemeral_area(folder), f"{folder}/shards", finished_path(folder)]
    if winner.payload != record.payload:
        leftovers.append(record.payload)
    for leftover in leftovers:
        # The artifact exists. What a last straggler still writes there, or a store just now gone, must not deny that.
        with suppress(StoreError):
            store.remove(leftover)
    return winner
