"""The plan says what a run would do with each stage, and why, without doing any of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from infra.execution.attempt import reusable
from infra.execution.stale import changes_since, other_packages
from infra.json_values import JsonObject
from infra.records.artifact import Artifact
from infra.records.index import Index, Known
from infra.records.record import Input, Record, generations, identity, progress_folder
from infra.records.save_points import newest_save_point
from infra.session import Arguments, Pending, Session, StageEstimate
from infra.stage import Call, Stage
from infra.storage.store import CorruptObject, Store

R = TypeVar("R")

TOLD_OF_A_FIELD = 3
"""So many values of one config field are named where it differs from an earlier record; `olmo2 diff` names all."""
_COMPARED = 200
"""So many of the newest records of a stage are asked which is nearest."""
TOLD_OF_A_VALUE = 80
"""Characters of a value that are told."""


@dataclass(frozen=True)
class PlanRow:
    """What a run would do with one stage, and why."""

    label: str
    stage: str
    action: str
    """reused, stale (made by other code), corrupt, resume, run or left out"""
    reason: str
    id: str
    inputs: tuple[str, ...]
    """Labels of the stages it takes artifacts from."""
    estimate: StageEstimate
    artifact: Artifact | None


class Plan:
    """The engine of a plan: it runs nothing and notes, stage by stage, what a run would do."""

    def __init__(self) -> None:
        self.rows: list[PlanRow] = []
        self._origins: dict[str, str] = {}  # address of an artifact -> label of the stage that gave it

    def taker(self, stage: Stage, session: Session) -> Callable[[Stage, Session, Arguments], Artifact | Pending]:
        """What adds a stage's row, the same for all of them."""
        return self.stage

    def promised(self, promise: object) -> None:
        """Nothing is waited for: a plan has no promises."""

    def stage(self, stage: Stage, session: Session, arguments: Arguments) -> Artifact | Pending:
        """Add the stage's row; returns its artifact if it exists, else what is known of it."""
        call = stage.sort(arguments)
        estimate: StageEstimate = stage.estimate(call.config, **call.inputs) if stage.estimate else {}
        action, reason, id, artifact = decide(stage, call, session)
        labels = input_labels(call, self._origins)
        self.rows.append(PlanRow(stage.label, stage.name, action, reason, id, labels, estimate, artifact))
        if artifact is not None and action != "run":
            self._origins[artifact.address] = stage.label
            return artifact
        return Pending(stage.label, stage.result_kind, estimate)

    def phase(self, name: str, function: Callable[[], R]) -> Callable[[], R]:
        """The phase's function as it is: its stages add their rows."""
        return function

    def given(self, label: str, record: Record) -> None:
        """Add a row for an artifact that the recipe starts at."""
        artifact, reason = record.artifact(), f"given by {label.replace(':', '.')}"
        self._origins[artifact.address] = label
        self.rows.append(PlanRow(label, record.stage, "reused", reason, record.id, (), {}, artifact))


def decide(stage: Stage, call: Call, session: Session) -> tuple[str, str, str, Artifact | None]:
    """(action, reason, id where it is known, artifact where there is one) of one stage."""
    if session.is_left_out(stage.label):
        return "left out", "not needed for --until", "", None
    if call.pending:
        return "run", f"after {some(call.pending)}", "", None
    id = identity(stage.name, stage.version, call.config, call.records())
    if session.is_forced(stage.name, stage.label):
        return "run", "rerun was asked for", id, None
    try:
        record = reusable(session.store, stage.name, id)
    except CorruptObject as error:
        return "corrupt", str(error), id, None
    if record is not None:
        return *_known(stage, record, session), id, record.artifact()
    started = started_work(session.store, stage.name, id)
    if started:
        return "resume", started, id, None
    return "run", _why(session.store, stage, call), id, None


def _known(stage: Stage, record: Record, session: Session) -> tuple[str, str]:
    """Action and reason for an artifact that exists: reused, or stale when the code behind it has changed."""
    made = f"made {record.created[:16]}"
    packages = other_packages(record)
    with_packages = f"{made}; {packages} since" if packages else made
    changed = changes_since(session.store, stage, record)
    if not changed:
        return "reused", with_packages
    if session.execution.accept:
        return "reused", f"{with_packages}; accepted, though changed since: {'; '.join(changed)}"
    if session.execution.stale == "rerun":
        return "run", f"code changed since: {'; '.join(changed)}"
    return "stale", f"{with_packages}; changed since: {'; '.join(changed)}"


def some(labels: list[str], most: int = 3) -> str:
    """The first few labels, and how many more there are."""
    unique = list(dict.fromkeys(labels))
    more = f" and {len(unique) - most} more" if len(unique) > most else ""
    return ", ".join(unique[:most]) + more


def input_labels(call: Call, origins: dict[str, str]) -> tuple[str, ...]:
    """Labels of the stages that the inputs come from; `origins` has those of artifacts by address."""
    labels = []
    for _, item in call.flat():
        label = item.label if isinstance(item, Pending) else origins.get(item.address, item.stage)
        labels.append(label)
    return tuple(dict.fromkeys(labels))


def started_work(store: Store, stage: str, id: str) -> str:
    """Where an interrupted attempt would go on, in words; empty if nothing was saved."""
    generation = max(generations(store, stage, id), default=0) + 1
    folder = progress_folder(stage, id, generation)
    point = newest_save_point(store, folder)
    if point is not None:
        return f"from step {point.step}"
    shards = sum(name.endswith(".json") for name in store.names(f"{folder}/shards"))
    return f"{shards} shards are done" if shards else ""


def kept_work(stage: Stage, session: Session, arguments: Arguments) -> str:
    """What the next attempt at a stage that was stopped would go on from, in words."""
    call = stage.sort(arguments)
    found = started_work(session.store, stage.name, identity(stage.name, stage.version, call.config, call.records()))
    return (
        f"kept for the next attempt: {found}" if found else "nothing of it was saved yet; the next attempt begins anew"
    )


def _why(store: Store, stage: Stage, call: Call) -> str:
    """What differs from the nearest earlier record of the stage: version, config fields, inputs."""
    records = Index(store).newest(stage.name, _COMPARED)
    if not records:
        return "first run of this stage"
    differences = [_differences(stage, call, record) for record in records]
    nearest = min(differences, key=len)
    return "; ".join(shortened(nearest)) or "the earlier record was removed"


def _differences(stage: Stage, call: Call, record: Known) -> list[tuple[str, str]]:
    """(field of the config or "", what differs) for each value."""
    found = [("", f"version {record.version} → {stage.version}")] if record.version != stage.version else []
    found += config_differences(record.config, call.config)
    return found + [("", text) for text in _input_differences(record.inputs, call.records())]


def config_differences(before: JsonObject, now: JsonObject) -> list[tuple[str, str]]:
    """(field, path of the value: what it was → what it is) for each value that differs."""
    had, has = flatten(before), flatten(now)
    return [
        (path.partition(".")[0], f"{path}: {_short(had.get(path, 'absent'))} → {_short(has.get(path, 'absent'))}")
        for path in sorted(had.keys() | has.keys())
        if had.get(path, "absent") != has.get(path, "absent")
    ]


def shortened(differences: list[tuple[str, str]]) -> list[str]:
    """The texts, but of one field (a list of sources, the versions of packages) only the first few."""
    by_field: dict[str, list[str]] = {}
    for field, text in differences:
        by_field.setdefault(field, []).append(text)
    told = []
    for field, texts in by_field.items():
        most = len(texts) if not field or len(texts) <= TOLD_OF_A_FIELD else TOLD_OF_A_FIELD - 1
        told += texts[:most]
        if texts[most:]:
            told.append(f"and {len(texts) - most} more values of {field}")
    return told


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= TOLD_OF_A_VALUE else f"{text[:TOLD_OF_A_VALUE]}…"


def _input_differences(before: list[Input], now: list[Input]) -> list[str]:
    was = {item.name: item for item in before}
    will = {item.name: item for item in now}
    found = [f"input {name} is new" for name in will if name not in was]
    found += [f"input {name} is gone" for name in was if name not in will]
    found += [
        f"input {name} changed ({was[name].stage} {was[name].digest[:8]} → {item.digest[:8]})"
        for name, item in will.items()
        if name in was and was[name].digest != item.digest
    ]
    return found


def flatten(value: object, prefix: str = "") -> JsonObject:
    """Nested dicts and lists as one dict from dotted path to leaf."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and value:
        items = enumerate(value)  # type: ignore[assignment]
    else:
        return {prefix: value}
    flat: JsonObject = {}
    for key, member in items:
        flat |= flatten(member, f"{prefix}.{key}" if prefix else str(key))
    return flat


def below(rows: list[PlanRow], labels: set[str]) -> set[str]:
    """The labels and every stage that takes, directly or not, an artifact from them."""
    found = set(labels)
    for item in rows:  # rows come in the order of the flow, inputs first
        if found & set(item.inputs):
            found.add(item.label)
    return found


def above(rows: list[PlanRow], labels: set[str]) -> set[str]:
    """The labels and every stage that they need."""
    found = set(labels)
    for item in reversed(rows):
        if item.label in found:
            found |= set(item.inputs)
    return found
