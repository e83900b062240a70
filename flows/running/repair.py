"""Mending a damaged artifact: from another store that has it whole, or made again from its record.

The address stays, so what was made from the artifact still finds it. A stage that gives other bytes the second time leaves
them as a new generation, and says so.
"""

import inspect
import os
import re
from collections.abc import Callable
from typing import Any, get_type_hints

from pydantic import BaseModel

from flows.config.stages import STAGES
from infra.events import silent
from infra.execution.attempt import run_stage
from infra.records.artifact import Artifact
from infra.records.record import (
    Record,
    Started,
    load_record,
    record_at,
    record_path,
    started_path,
)
from infra.records.upkeep import (
    Garbage,
    artifacts,
    damaged_files,
    mend_from,
    remove,
    replace_files,
    set_record_aside,
    told_digest,
)
from infra.session import Arguments, Session
from infra.settings import Execution
from infra.stage import Stage
from infra.storage.store import CorruptObject, Store, StoreError


def repair(store: Store, id: str, other: Store | None, tell: Callable[[str], None], ray: str = "off") -> list[str]:
    """Mend the newest generation of an artifact; returns the names of what was mended, nothing if it is whole.

    Raises ValueError for an id that is unknown or not unique, StoreError when it cannot be mended.
    """
    stage, whole_id, generation = find(store, id)
    path = record_path(stage, whole_id, generation)
    try:
        record = load_record(store, stage, whole_id, generation)
    except CorruptObject as error:
        tell(f"damaged: {error}")
        return _mend_record(store, other, stage, whole_id, generation, tell, ray)
    assert record is not None, path
    damaged = damaged_files(store, record)
    for name, finding in damaged.items():
        tell(f"damaged: {record.payload}/{name}: {finding}")
    if not damaged:
        return []
    if other is not None:
        mend_from(store, other, record, damaged)
    else:
        _mend_by_running(store, record, list(damaged), ray)
    # Hashed again: a repair that is not checked is only a promise.
    assert not damaged_files(store, record)
    return list(damaged)


def find(store: Store, id: str) -> tuple[str, str, int]:
    """Stage, id and newest generation of the artifact whose id begins so; its record need not be readable."""
    found = [place for place in artifacts(store) if id and place[1].startswith(id)]
    ids = sorted({f"{stage}/{whole}" for stage, whole, _ in found})
    if len(ids) != 1:
        said = f"is not unique: {', '.join(ids)}; give more of it" if ids else "is unknown; see: olmo2 ls"
        raise ValueError(f"id {id!r} in store {store.url} {said}")
    # Ids are equal, so the largest generation is the newest.
    return max(found, key=lambda place: place[2])


def _mend_by_running(store: Store, record: Record, damaged: list[str], ray: str) -> None:
    """Run the stage again as another generation, and take the damaged files from it if it gives the same bytes."""
    # Forced, since the record of the damaged artifact would be found and reused.
    again = _run(store, record, ray, force=True)
    if again.digest != record.digest:
        raise StoreError(
            f"{record.label} gave other bytes this time (digest {again.digest[:16]}…, not {record.digest[:16]}…): "
            f"{again.address} is a new generation beside {record.address}, and the next run uses it."
        )
    # Equal digests mean equal files, so each damaged one can be taken over.
    replace_files(store, record, store, again, damaged)
    # The second generation has done its work; left there, it would be what the next run uses.
    remove(store, Garbage([record_path(again.stage, again.id, again.generation), again.payload]))


def _mend_record(
    store: Store, other: Store | None, stage: str, id: str, generation: int, tell: Callable[[str], None], ray: str
) -> list[str]:
    """Bring a record back from another store, or run the stage again as what was begun says."""
    path = record_path(stage, id, generation)
    if other is not None:
        theirs = load_record(other, stage, id, generation)
        if theirs is None:
            raise StoreError(f"store {other.url} has no {path}")
        # The damaged record is renamed and not deleted: it may be all that tells what happened.
        set_record_aside(store, stage, id, generation)
        store.create(path, other.read(path))
        files = damaged_files(store, theirs)
        mend_from(store, other, theirs, files)
        return [path, *files]
    try:
        begun = Started.model_validate(store.read_json(started_path(stage, id, generation)))
    except FileNotFoundError:
        raise StoreError(
            f"{path} is damaged and nothing else says what {stage}/{id} computed; fetch it with --from OTHER_STORE, or remove "
            "the record and run its recipe again"
        ) from None
    # Read before the record is set aside.
    before = told_digest(store, path)
    tell(f"the damaged record is kept as {set_record_aside(store, stage, id, generation)}")
    # Not forced: without its record the artifact does not exist, so the stage runs under the same address.
    again = _run(store, begun, ray, force=False)
    if before and again.digest != before:
        tell(f"{again.label} has digest {again.digest[:16]}… now; the damaged record said {before[:16]}…")
    return [path]


def _run(store: Store, record: Record | Started, ray: str, *, force: bool) -> Record:
    """Run a stage as its record says: config, inputs, and where known device and threads, on which bytes may depend."""
    stages = {stage.name: stage for stage in STAGES}
    if record.stage not in stages:
        raise ValueError(f"{record.stage} is given and not made by a recipe; fetch it with --from OTHER_STORE")
    stage = stages[record.stage]
    if stage.version != record.version:
        raise ValueError(
            f"{record.label} was made by version {record.version} of {stage.name}, this is version {stage.version}; "
            "fetch it with --from OTHER_STORE, or run its recipe again"
        )
    # Sums in another order round differently, so bytes depend on device and threads.
    device, threads = (record.device, record.threads) if isinstance(record, Record) else ("cpu", 1)
    # As many cores as the record's threads, or a smaller machine would run it with fewer.
    execution = Execution(
        ray=ray, device=device, threads={stage.name: threads}, cores=max(os.cpu_count() or 1, threads)
    )
    session = Session(store, execution, force=frozenset({stage.name} if force else ()))
    return run_stage(stage, session, arguments_of(store, stage, record), silent).record


def arguments_of(store: Store, stage: Stage, record: Record | Started) -> Arguments:
    """The arguments that a record's config and inputs were."""
    hints = get_type_hints(stage.function)
    # The first parameter is the workspace, which no record has.
    parameters = list(inspect.signature(stage.function).parameters)[1:]
    configs = [name for name in parameters if _is_config(hints[name])]
    # As `Stage.sort` put them into the record: one config alone, several by their names.
    bodies = {configs[0]: record.config} if len(configs) == 1 else record.config
    arguments: Arguments = {name: hints[name].model_validate(bodies[name]) for name in configs}
    for name in parameters:
        if name in arguments:
            continue
        # Members of a list are named `name[0]`, `name[1]`; the pattern matches both forms.
        members = [item for item in record.inputs if re.fullmatch(rf"{name}(\[\d+\])?", item.name)]
        values = [record_at(store, item.address).artifact() for item in members]
        # An input that may be a list stays one even with a single member.
        many = any(item.name != name for item in members) or getattr(hints[name], "__origin__", None) in (list, tuple)
        arguments[name] = values if many else values[0] if values else None
    return arguments


def _is_config(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, BaseModel) and not issubclass(hint, Artifact)
