"""The record of a finished artifact: what was computed, from what, by what, and at what cost.

Written last, by a create-only object numbered by generation. No record: the artifact does not exist.
"""

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path
from subprocess import run
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

from infra.records.artifact import Artifact
from infra.storage.store import CorruptObject, Store, StoreError, checked_name

RECORDED_PACKAGES = [
    "torch",
    "numpy",
    "prefect",
    "ray",
    "datasets",
    "fasttext",
    "tiktoken",
    "tokenizers",
    "safetensors",
    "pyarrow",
    "s3fs",
    "fsspec",
    "pydantic",
]


FileName = Annotated[str, AfterValidator(checked_name)]
"""Below the payload's folder: a record in a shared bucket must not name files elsewhere."""
Component = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][\w.-]*$")]
"""One part of an address."""
ADDRESS = r"^[A-Za-z0-9_][\w.-]*/[\w-]+/g\d{4,}$"
"""stage/id/generation."""
Address = Annotated[str, StringConstraints(pattern=ADDRESS)]


class FileEntry(BaseModel):
    """One payload file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str


class Input(BaseModel):
    """One input of a stage, in the order of its parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    stage: Component
    id: Component
    digest: str
    address: Address


class Started(BaseModel):
    """What a stage was begun with: the part of its record that is known before it ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Component
    version: int
    id: Component
    label: str
    generation: int
    config: dict[str, Any]
    inputs: list[Input]


class Record(BaseModel):
    """Enough to rebuild an artifact, and to explain it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    kind: str
    stage: Component
    version: int
    id: Component
    label: str
    generation: int
    address: Address
    digest: str
    facts: dict[str, Any]
    config: dict[str, Any]
    inputs: list[Input]
    files: dict[FileName, FileEntry]
    created: str
    seconds: float
    attempts: int
    resumed_from: str
    peak_memory_bytes: int
    energy_joules: float | None = None
    """Of the whole machine while the stage ran; None where the kernel counts none."""
    host: str
    device: str
    threads: int
    code: dict[str, Any]
    packages: dict[str, str]
    python: str
    notes: dict[str, Any]
    flow_run: str

    def artifact(self) -> Artifact:
        """The typed value that stages hand on."""
        cls = Artifact.kinds.get(self.kind)
        if cls is None:
            raise StoreError(
                f"{self.stage}/{self.id} is of kind {self.kind!r}, which this version does not know; known: "
                f"{', '.join(sorted(Artifact.kinds))}. It was written by other code: update, or use another store."
            )
        return cls(stage=self.stage, id=self.id, address=self.address, digest=self.digest, **self.facts)


def content_digest(files: dict[str, FileEntry]) -> str:
    """Hash over the sorted (path, size, sha256) of a payload."""
    lines = (f"{name}\0{entry.size}\0{entry.sha256}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def identity(stage: str, version: int, config: dict[str, Any], inputs: list[Input]) -> str:
    """What is computed, hashed: equal for equal stage, version, config and input contents (not input addresses)."""
    body = {
        "stage": stage,
        "version": version,
        "config": config,
        "inputs": [[item.name, item.digest] for item in inputs],
    }
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def record_path(stage: str, id: str, generation: int) -> str:
    return f"{stage}/{id}/record-{generation:04d}.json"


def payload_address(stage: str, id: str, generation: int) -> str:
    return f"{stage}/{id}/g{generation:04d}"


def progress_folder(stage: str, id: str, generation: int) -> str:
    return f"_progress/{stage}/{id}/g{generation:04d}"


def started_path(stage: str, id: str, generation: int) -> str:
    return f"{progress_folder(stage, id, generation)}/started.json"


def load_started(store: Store, stage: str, id: str, generation: int) -> Started | None:
    """What a generation of an id computes, whether it is finished or not; None if nobody has begun it."""
    record = load_record(store, stage, id, generation)
    if record is not None:
        return Started.model_validate(record.model_dump(include=set(Started.model_fields)))
    try:
        return Started.model_validate(store.read_json(started_path(stage, id, generation)))
    except FileNotFoundError:
        return None


def generations(store: Store, stage: str, id: str) -> list[int]:
    """Committed generations of an id, ascending."""
    names = store.names(f"{stage}/{id}")
    return sorted(int(name[7:11]) for name in names if name.startswith("record-") and name.endswith(".json"))


def load_record(store: Store, stage: str, id: str, generation: int | None = None) -> Record | None:
    """The record of a generation (the newest when None), or None if the artifact does not exist."""
    if generation is None:
        generation = max(generations(store, stage, id), default=0)
    path = record_path(stage, id, generation)
    try:
        record = Record.model_validate(store.read_json(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        raise CorruptObject(
            f"{path} in store {store.url} is not a record that this version reads: {'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}. It was written by other code or changed from outside: restore it, or remove it to make "
            "the artifact anew."
        ) from error
    place = payload_address(stage, id, generation)
    if (record.stage, record.id, record.generation, record.address) != (stage, id, generation, place):
        raise CorruptObject(
            f"{path} in store {store.url} is the record of {record.stage}/{record.id}, generation {record.generation}, at "
            f"{record.address}: it was copied or changed from outside. Restore it, or remove it to make the artifact anew."
        )
    return record


def record_of(store: Store, artifact: Artifact) -> Record:
    """The record of exactly the generation that an artifact value stands for."""
    generation = int(artifact.address.rsplit("/g", 1)[1])
    record = load_record(store, artifact.stage, artifact.id, generation)
    if record is None:
        raise StoreError(
            f"{artifact.address} has no record in store {store.url}: it was deleted or belongs to another store. "
            f"Run the recipe again to make it anew."
        )
    return record


def all_records(store: Store) -> list[Record]:
    """Every record of a store, oldest first: for people who look around, never for deciding what to reuse."""
    found = []
    for stage in store.names(""):
        if stage.startswith("_"):
            continue
        found += stage_records(store, stage)
    return sorted(found, key=lambda record: record.created)


def stage_records(store: Store, stage: str) -> list[Record]:
    """Every record of one stage, oldest first."""
    found = []
    for id in store.names(stage):
        for generation in generations(store, stage, id):
            record = load_record(store, stage, id, generation)
            if record is not None:
                found.append(record)
    return sorted(found, key=lambda record: record.created)


def lineage(store: Store, record: Record) -> list[Record]:
    """The record and all that it was made from, inputs before what uses them, each once."""
    seen: dict[str, Record] = {}

    def visit(current: Record) -> None:
        if current.address in seen:
            return
        for item in current.inputs:
            parent = load_record(store, item.stage, item.id, int(item.address.rsplit("/g", 1)[1]))
            if parent is not None:
                visit(parent)
        seen[current.address] = current

    visit(record)
    return list(seen.values())


def corrupt_file(store: Store, record: Record, name: str, finding: str) -> CorruptObject:
    """The error for a committed artifact whose bytes no longer agree with its record."""
    return CorruptObject(
        f"{record.address}/{name} in store {store.url} is corrupt: {finding}. "
        f"Make it anew with: olmo2 rerun RECIPE {record.label} --store {store.url}"
    )


@cache
def code_version() -> dict[str, Any]:
    """Commit of this checkout and whether it has uncommitted changes; the distribution's version outside a checkout."""
    here = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(here)]
    try:
        commit = run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        status = run([*command, "status", "--porcelain"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return {"version": metadata.version("olmo2-recipe")}
    if commit.returncode != 0:
        return {"version": metadata.version("olmo2-recipe")}
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}


@cache
def package_versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    installed = {}
    for name in RECORDED_PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "absent"
    return installed
