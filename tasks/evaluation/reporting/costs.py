"""What a run cost and where its artifacts came from, as plain values: from records to what `report.json` holds.

Costs are those of making an artifact, also when this run found it made already. Times are seconds, sizes are bytes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from infra.records.record import Record


@dataclass(frozen=True)
class ReportedCost:
    """What one stage cost over all its runs. `share` is of all stages' seconds; memory is the largest run's."""

    stage: str
    runs: int
    tokens: int
    flops: float
    seconds: float
    share: float
    peak_memory_bytes: int
    energy_joules: float | None
    """Of the runs whose energy was counted or stated; None where it was of none."""


@dataclass(frozen=True)
class CostNode:
    """One record of the lineage."""

    address: str
    """Stage, id and generation: what tells a record from all others."""
    id: str
    label: str
    stage: str
    kind: str
    digest: str
    inputs: list[tuple[str, str]]
    """(address, id) of each."""
    created: str
    seconds: float
    attempts: int
    config: Mapping[str, object]
    version: int
    code: str


@dataclass(frozen=True)
class Versions:
    """What the records were made with: every distinct value, with the number of records that name it."""

    code: dict[str, int]
    packages: dict[str, list[str]]
    python: list[str]
    machines: dict[str, int]
    first: str
    last: str


def costs(records: Sequence[Record]) -> list[ReportedCost]:
    """Cost per stage, in order of first appearance. Tokens and FLOPs count where a model was trained."""
    stages: dict[str, list[Record]] = {}
    for record in records:
        stages.setdefault(record.stage, []).append(record)
    # Summed with fsum, so that the order of records does not matter.
    total = math.fsum(record.seconds for record in records)
    rows = []
    for stage, runs in stages.items():
        trained = [run.facts for run in runs if "flops" in run.facts]
        seconds = math.fsum(run.seconds for run in runs)
        rows.append(
            ReportedCost(
                stage=stage,
                runs=len(runs),
                tokens=sum(facts["tokens"] for facts in trained),
                flops=math.fsum(facts["flops"] for facts in trained),
                seconds=seconds,
                share=seconds / total if total > 0 else 0.0,
                peak_memory_bytes=max(run.peak_memory_bytes for run in runs),
                energy_joules=energy_of(runs),
            )
        )
    return rows


def energy_of(records: Iterable[Record]) -> float | None:
    """Joules of the records that have some; None where none has."""
    known = [record.energy_joules for record in records if record.energy_joules is not None]
    return math.fsum(known) if known else None


def node(record: Record) -> CostNode:
    """What the lineage table shows of a record."""
    inputs = [(item.address, item.id) for item in record.inputs]
    return CostNode(
        address=record.address,
        id=record.id,
        label=record.label,
        stage=record.stage,
        kind=record.kind,
        digest=record.digest,
        inputs=inputs,
        created=record.created,
        seconds=record.seconds,
        attempts=record.attempts,
        config=record.config,
        version=record.version,
        code=_code(record),
    )


def versions(records: Sequence[Record]) -> Versions:
    """Everything the records were made with. Differences between records show as more than one value."""
    packages: dict[str, list[str]] = {}
    for record in records:
        for name, version in record.packages.items():
            if version not in packages.setdefault(name, []):
                packages[name].append(version)
    machines = [f"{run.host}, {run.device}, threads: {run.threads}" for run in records]
    return Versions(
        code=_tally(_code(record) for record in records),
        packages=dict(sorted(packages.items())),
        python=sorted({record.python for record in records}),
        machines=_tally(machines),
        first=min(record.created for record in records),
        last=max(record.created for record in records),
    )


def _code(record: Record) -> str:
    commit = record.code.get("commit")
    if commit is None:
        return f"version {record.code.get('version', 'unknown')}"
    return commit[:10] + (" with uncommitted changes" if record.code.get("dirty") else "")


def _tally(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
