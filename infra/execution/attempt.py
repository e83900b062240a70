"""Makes one attempt at one artifact: it reuses what is committed, resumes what is half done, or runs the stage, and commits
once."""

import hashlib
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
from functools import partial
from typing import Any, NamedTuple

import orjson

from infra.compute.placed import Claim, run_placed
from infra.compute.processes import is_out_of_memory, run_in_process
from infra.compute.shards import run_shards
from infra.compute.train_group import run_in_group
from infra.events import Events, Listener
from infra.execution.energy import joules_between, read_joules
from infra.execution.fingerprint import fingerprint_of
from infra.execution.stale import accept, changes_since, stale_error
from infra.json_values import JsonObject
from infra.records.artifact import Artifact
from infra.records.lease import Lease, ProcessIdentity, acquire
from infra.records.record import (
    FileEntry,
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
from infra.session import Arguments, Session
from infra.settings import ComputeSettings, Execution
from infra.stage import Call, Stage
from infra.stopping import Interrupted, fenced
from infra.storage.store import Store, StoreError
from infra.workspace import WorkSettings, Workspace

HALVINGS = 5
"""How often a stage that runs out of memory starts again with half as much at once: down to a thirty-second."""
SIZES_AT_ONCE = 32
"""Payload files whose size is asked for at a time: a stage of 100,000 files would else wait for an object store for an hour."""


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
    device: str = ""
    """The GPU that the stage has to itself; empty for the recipe's device."""


@dataclass(frozen=True)
class Finished:
    """What a stage function hands back from wherever it ran."""

    artifact: Artifact
    files: dict[str, FileEntry]
    notes: JsonObject
    resumed_from: str
    peak_memory_bytes: int
    host: str
    folder: str
    """Where its payload lies: that of an earlier attempt, where the stage outlived its driver."""


def run_stage(
    stage: Stage, session: Session, arguments: Arguments, listener: Listener, caller: Caller = Caller()
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

    def tell(holder: ProcessIdentity) -> None:
        listener("waiting", f"{stage.label} is being made by process {holder['pid']} on {holder['host']}; waiting")

    lease = acquire(
        store,
        folder,
        session.execution.lease_stale_seconds,
        finished=lambda: committed() is not None,
        waiting=tell,
    )
    # Another attempt may have committed while this one waited for the lease.
    if lease is None or (record := committed()) is not None:
        record = committed()
        assert record is not None
        return Outcome(record.artifact(), record, reused=True)
    with lease:
        try:
            record = _run_and_commit(
                stage, session, arguments, call, Generation(id, generation), lease, listener, caller
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
    arguments: Arguments,
    call: Call,
    made: Generation,
    lease: Lease,
    listener: Listener,
    caller: Caller,
) -> Record:
    id, generation = made
    execution = session.execution
    compute = execution.compute(stage.name, stage.label)
    if caller.device:
        compute = compute.model_copy(update={"device": caller.device})
    workspace = Workspace(
        session.store,
        stage=stage.name,
        id=id,
        payload=payload_address(stage.name, id, generation),
        progress_folder=lease.folder,
        settings=WorkSettings(
            compute=compute,
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
        # Each event is a chance to end an attempt whose lease is lost before it does more work.
        lease.check_alive()
        listener(kind, *values)

    with fenced(lease.check_alive):
        finished = _run_fitting(stage, workspace, arguments, tell, execution, started.fingerprint)
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
        flow_run=caller.flow_run,
        folder=finished.folder,
        token=lease.token,
        host=finished.host,
        **_surroundings(workspace.compute),
    )
    return commit(session.store, record, lease.check)


def _ray_of(stage: Stage, execution: Execution) -> str:
    """Where a stage's shards run. A stage's own process does not start a second Ray for this machine's cores. It starts one
    for its GPUs, which nobody else shares out. Any process may use an existing cluster.
    """
    on_gpus = execution.device.startswith("cuda") and execution.stage_generation(stage.name) == "local"
    return "off" if stage.process and execution.ray == "local" and not on_gpus else execution.ray


def _run_fitting(
    stage: Stage,
    workspace: Workspace,
    arguments: Arguments,
    listener: Listener,
    execution: Execution,
    fingerprint: dict[str, dict[str, str]],
) -> Finished:
    """The stage, with half as much going through the model at once each time its process runs out of memory. It goes on from
    its last save point; results change by rounding only.
    """
    for _ in range(HALVINGS):
        try:
            return _run_somewhere(stage, workspace, arguments, listener, execution, fingerprint)
        except Exception as error:  # of whichever library ran out of memory
            # A stage without a process of its own has left its memory in this one.
            if not (stage.process and is_out_of_memory(error)):
                raise
            workspace.compute = workspace.compute.halved()
            workspace.note(out_of_memory=workspace.compute.halvings)
            listener("warning", f"out of memory ({_first_line(error)}); goes on with half as much at once")
    return _run_somewhere(stage, workspace, arguments, listener, execution, fingerprint)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _run_somewhere(
    stage: Stage,
    workspace: Workspace,
    arguments: Arguments,
    listener: Listener,
    execution: Execution,
    fingerprint: dict[str, dict[str, str]],
) -> Finished:
    """The stage function on a node of the cluster, in a group of workers, in a process of its own, or here."""
    call = (stage.reference, workspace, arguments)
    if execution.cluster:
        # Sorted keys, so that two drivers of the same code get the same name for their actor.
        code = hashlib.sha256(orjson.dumps(fingerprint, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
        return run_placed(
            partial(call_on_node, code),
            call,
            listener,
            address=execution.cluster,
            name=workspace.progress_folder.replace("/", "."),
            code=code,
            claim=claim_of(stage, execution),
            settled=lambda: load_finished(workspace.store, workspace.progress_folder, code),
        )
    if workspace.compute.parallel.workers > 1:
        return run_in_group(call_function, call, listener, ray_address=execution.ray)
    if stage.process:
        return run_in_process(call_function, call, listener)
    workspace.report_to(Events(listener))
    return call_function(*call)


def claim_of(stage: Stage, execution: Execution) -> Claim:
    """What a stage takes of a node of the cluster. One that leads a group or hands out shards takes no core: they do."""
    compute = execution.compute(stage.name, stage.label)
    alone = stage.process and not stage.sharded and compute.parallel.workers == 1
    on_gpu = alone and compute.device.startswith("cuda")
    return Claim(cpus=compute.threads if alone else 0, gpus=int(on_gpu), placement=compute.placement)


def _surroundings(compute: ComputeSettings) -> dict[str, Any]:
    """What a record says of the machine and the code that made it."""
    return {
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


def call_on_node(code: str, reference: str, workspace: Workspace, arguments: Arguments) -> Finished:
    """Call a stage function on the node of a cluster that it was placed on, and leave its result in the store as well, for
    a driver of the same code that comes back after the stage has ended.
    """
    compute = workspace.compute
    if compute.parallel.workers > 1:
        finished = run_in_group(
            call_function, (reference, workspace, arguments), workspace.tell, ray_address=workspace.ray
        )
    else:
        importlib.import_module("torch").set_num_threads(compute.threads)
        finished = call_function(reference, workspace, arguments)
    save_finished(workspace.store, workspace.progress_folder, code, finished)
    return finished


def save_finished(store: Store, folder: str, code: str, finished: Finished) -> None:
    """Write the result of a stage that has no record yet into its progress folder, with a hash of the code that made it."""
    files = {name: entry.model_dump() for name, entry in finished.files.items()}
    artifact = finished.artifact.model_dump(mode="json")
    value = vars(finished) | {"artifact": artifact, "kind": finished.artifact.kind, "files": files, "code": code}
    store.write(finished_path(folder), orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def load_finished(store: Store, folder: str, code: str) -> Finished | None:
    """The result that `save_finished` wrote; None if there is none, if other code made it, or if files of it are gone."""
    try:
        value = store.read_json(finished_path(folder))
    except FileNotFoundError:
        return None
    # Another driver's code may have made it, and would make other bytes now.
    if value.pop("code") != code:
        return None
    files = {name: FileEntry(**entry) for name, entry in value.pop("files").items()}
    artifact = Artifact.kinds[value.pop("kind")].model_validate(value.pop("artifact"))
    with ThreadPoolExecutor(SIZES_AT_ONCE) as pool:
        sizes = pool.map(lambda name: store.size(f"{value['folder']}/{name}"), files)
        whole = all(size == entry.size for size, entry in zip(sizes, files.values(), strict=True))
    return Finished(artifact, files, **value) if whole else None


def finished_path(folder: str) -> str:
    return f"{folder}/finished.json"


def call_function(reference: str, workspace: Workspace, arguments: Arguments) -> Finished:
    """Import a stage function and call it; used in this process and in a stage's own."""
    module, name = reference.split(":")
    function = getattr(importlib.import_module(module), name)
    try:
        artifact = function(workspace, **arguments)
    finally:
        workspace.close()
    # Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Finished(
        artifact,
        workspace.written,
        workspace.notes,
        workspace.resumed_from,
        peak,
        host=socket.gethostname(),
        folder=workspace.folder,
    )
