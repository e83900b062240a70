"""Makes one attempt at one artifact: it reuses what is committed, resumes what is half done, or runs the stage, and commits
once."""

import importlib
import resource
import socket
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from infra.compute.processes import run_in_process
from infra.compute.shards import run_shards
from infra.compute.train_group import run_in_group
from infra.events import Events, Listener
from infra.execution.energy import joules_between, read_joules
from infra.execution.fingerprint import fingerprint_of
from infra.execution.stale import accept, changes_since, stale_error
from infra.records.artifact import Artifact
from infra.records.lease import Lease, acquire
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
from infra.session import Session
from infra.settings import ComputeSettings, Execution
from infra.stage import Call, Stage
from infra.stopping import Interrupted, fenced
from infra.storage.store import Store, StoreError
from infra.workspace import WorkSettings, Workspace

SIZES_AT_ONCE = 32
"""Payload files whose size is asked for at a time: a stage of 100,000 files would else wait for an object store for an hour."""


@dataclass(frozen=True)
class Outcome:
    """Says what became of a stage."""

    artifact: Artifact
    record: Record
    reused: bool


@dataclass(frozen=True)
class Finished:
    """What a stage function hands back from wherever it ran."""

    artifact: Artifact
    files: dict[str, Any]
    notes: dict[str, Any]
    resumed_from: str
    peak_memory_bytes: int


def run_stage(
    stage: Stage, session: Session, arguments: dict[str, Any], listener: Listener, flow_run: str = ""
) -> Outcome:
    """Reuse, resume or run a stage in the session's store.

    Raises whatever the stage function raises; nothing is committed then, and what it saved stays for the next attempt.
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
    if found is not None:
        return Outcome(found.artifact(), found, reused=True)
    generation = newest + 1
    folder = progress_folder(stage.name, id, generation)

    def committed() -> Record | None:
        return load_record(store, stage.name, id, generation)

    def tell(holder: dict[str, Any]) -> None:
        listener("waiting", f"{stage.label} is being made by process {holder['pid']} on {holder['host']}; waiting")

    lease = acquire(
        store,
        folder,
        session.execution.lease_stale_seconds,
        finished=lambda: committed() is not None,
        waiting=tell,
    )
    if lease is None or (record := committed()) is not None:
        record = committed()
        assert record is not None
        return Outcome(record.artifact(), record, reused=True)
    with lease:
        try:
            record = _run_and_commit(
                stage, session, arguments, call, Generation(id, generation), lease, listener, flow_run
            )
        except Interrupted:
            raise
        except Exception as error:  # a stage may raise anything; its traceback is kept before it goes on
            clean_error(error)
            keep_log(store, f"{folder}/error-{lease.number:06d}.txt", error, listener)
            raise
    return Outcome(record.artifact(), record, reused=False)


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
        listener("log", f"{store.url}/{path}")
    except StoreError as failure:
        listener("log", f"not kept: {failure}")


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


class Generation(NamedTuple):
    """Names what an attempt makes."""

    id: str
    generation: int


def _run_and_commit(
    stage: Stage,
    session: Session,
    arguments: dict[str, Any],
    call: Call,
    made: Generation,
    lease: Lease,
    listener: Listener,
    flow_run: str,
) -> Record:
    id, generation = made
    execution = session.execution
    workspace = Workspace(
        session.store,
        stage=stage.name,
        id=id,
        payload=payload_address(stage.name, id, generation),
        progress_folder=lease.folder,
        settings=WorkSettings(
            compute=execution.compute(stage.name, stage.label),
            ray=_ray_of(stage, execution),
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
        id=id,
        label=stage.label,
        generation=generation,
        config=call.config,
        inputs=call.records(),
        fingerprint=fingerprint_of(stage.function),
    )
    # For people who ask before there is a record.
    session.store.write(started_path(stage.name, id, generation), started.model_dump_json(indent=2).encode())
    created = datetime.now(UTC).isoformat(timespec="seconds")
    began, energy = time.monotonic(), read_joules()

    def tell(kind: str, *values: Any) -> None:
        lease.check_alive()
        listener(kind, *values)

    with fenced(lease.check_alive):
        finished = _run_somewhere(stage, workspace, arguments, tell, execution.ray)
    record = Record(
        **dict(started),
        kind=finished.artifact.kind,
        address=finished.artifact.address,
        digest=content_digest(finished.files),
        facts=finished.artifact.facts(),
        files=finished.files,
        created=created,
        seconds=round(time.monotonic() - began, 3),
        attempts=lease.number,
        resumed_from=finished.resumed_from,
        peak_memory_bytes=finished.peak_memory_bytes,
        energy_joules=joules_between(energy, read_joules()),
        notes=finished.notes,
        flow_run=flow_run,
        folder=workspace.folder,
        token=lease.token,
        **_surroundings(workspace.compute),
    )
    return commit(session.store, record, lease.check)


def _ray_of(stage: Stage, execution: Execution) -> str:
    """Where a stage's shards run. A stage's own process does not start a second Ray for this machine's cores. It starts one
    for its GPUs, which nobody else shares out. Any process may use an existing cluster.
    """
    on_gpus = execution.device.startswith("cuda") and execution.stage_generation(stage.name) == "local"
    return "off" if stage.process and execution.ray == "local" and not on_gpus else execution.ray


def _run_somewhere(
    stage: Stage, workspace: Workspace, arguments: dict[str, Any], listener: Listener, ray_address: str
) -> Finished:
    """The stage function in a group of workers, in a process of its own, or here."""
    call = (stage.reference, workspace, arguments)
    if workspace.compute.parallel.workers > 1:
        return run_in_group(call_function, call, listener, ray_address=ray_address)
    if stage.process:
        return run_in_process(call_function, call, listener)
    workspace.report_to(Events(listener))
    return call_function(*call)


def _surroundings(compute: ComputeSettings) -> dict[str, Any]:
    """What a record says of the machine and the code that made it."""
    return {
        "host": socket.gethostname(),
        "device": compute.device,
        "threads": compute.threads,
        "code": code_version(),
        "packages": package_versions(),
        "python": sys.version.split()[0],
    }


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
    data = orjson.dumps(record.model_dump(mode="json"), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    store.create(path, data)
    store.settle([path])
    # Whoever won the creation, what is in the store is what counts.
    winner = load_record(store, record.stage, record.id, record.generation)
    assert winner is not None
    folder = progress_folder(record.stage, record.id, record.generation)
    leftovers = [ephemeral_area(folder), f"{folder}/shards"]
    if winner.payload != record.payload:
        leftovers.append(record.payload)
    for leftover in leftovers:
        # The artifact exists. What a last straggler still writes there, or a store just now gone, must not deny that.
        with suppress(StoreError):
            store.remove(leftover)
    return winner


def call_function(reference: str, workspace: Workspace, arguments: dict[str, Any]) -> Finished:
    """Import a stage function and call it; used in this process and in a stage's own."""
    module, name = reference.split(":")
    function = getattr(importlib.import_module(module), name)
    try:
        artifact = function(workspace, **arguments)
    finally:
        workspace.close()
    # Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Finished(artifact, workspace.written, workspace.notes, workspace.resumed_from, peak)
