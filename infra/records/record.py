"""A record says of a finished artifact what was computed, from what, by what, and at what cost.

Written last, by a create-only object numbered by generation. No record: the artifact does not exist.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from subprocess import run
from typing import Annotated, Self

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
    model_validator,
)
from typing_extensions import TypedDict

from infra.json_values import JsonObject
from infra.records.artifact import Artifact
from infra.settings import StatedSite
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
    config: JsonObject
    inputs: list[Input]
    fingerprint: dict[str, dict[str, str]] = {}
    """The code behind the stage (`infra/execution/fingerprint.py`): file -> definition -> hash. Empty in older records."""


class CodeVersion(TypedDict, total=False):
    """Which code made an artifact: a commit of this checkout, or the distribution's version outside one."""

    commit: str
    dirty: bool
    """Whether the checkout had uncommitted changes."""
    version: str


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
    facts: JsonObject
    config: JsonObject
    inputs: list[Input]
    fingerprint: dict[str, dict[str, str]] = {}
    files: dict[FileName, FileEntry]
    created: str
    seconds: float
    attempts: int
    resumed_from: str
    peak_memory_bytes: int
    energy_joules: float | None = None
    """Of the whole machine while the stage ran, or of the power that was stated; None where nothing is counted or stated."""
    site: StatedSite = StatedSite()
    """What was stated of the place (`execution.site`); nothing in older records."""
    host: str
    device: str
    threads: int
    code: CodeVersion
    packages: dict[str, str]
    python: str
    notes: JsonObject
    flow_run: str
    folder: str = ""
    """Where the payload lies: each attempt has a folder of its own. Empty in older records: the address itself."""
    token: str = ""
    """Of the attempt that wrote it."""
    seal: str = ""
    """Hash of all other fields; records of schema 1 have none."""

    @model_validator(mode="after")
    def _lies_where_its_stage_and_id_say(self) -> Self:
        address = payload_address(self.stage, self.id, self.generation)
        # Only the folder of an attempt of this very address may be named.
        if self.address != address or not re.fullmatch(rf"({re.escape(address)}(-a\d{{6}})?)?", self.folder):
            raise ValueError(f"address {self.address!r} or folder {self.folder!r} is not below {self.stage}/{self.id}")
        return self

    @property
    def payload(self) -> str:
        """The folder of its files, relative to the store's root."""
        return self.folder or self.address

    def sealed(self) -> "Record":
        """The same as schema 2, with a hash over all of it, by which `load_record` finds an edit."""
        # Sealed under schema 2, so the version is part of what is hashed.
        unsealed = self.model_copy(update={"schema_version": 2})
        return unsealed.model_copy(update={"seal": unsealed.expected_seal()})

    def expected_seal(self) -> str:
        """Hash over all fields but the seal."""
        # Records from before there was a site were sealed without one, and have to pass.
        siteless = self.site == StatedSite()
        body = self.model_dump(mode="json", exclude={"seal", "site"} if siteless else {"seal"})
        return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()

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
    # No name has a NUL in it, so two lists of files never give the same text.
    lines = (f"{name}\0{entry.size}\0{entry.sha256}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def identity(stage: str, version: int, config: Mapping[str, object], inputs: list[Input]) -> str:
    """What is computed, hashed: equal for equal stage, version, config and input contents (not input addresses)."""
    # Digests, not addresses: an input that was rerun to the same bytes reruns nothing below it.
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


def attempt_folder(address: str, attempt: int) -> str:
    """Where an attempt writes its payload: the address for the first, a folder next to it for each later one.

    The attempt's fencing token is in the path, so one that lost its lease cannot change what a later one has committed.
    """
    return address if attempt == 1 else f"{address}-a{attempt:06d}"


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
    _check_record(store, record, path)
    # A record that somebody copied to another path must not pass for another artifact.
    place = payload_address(stage, id, generation)
    if (record.stage, record.id, record.generation, record.address) != (stage, id, generation, place):
        raise CorruptObject(
            f"{path} in store {store.url} is the record of {record.stage}/{record.id}, generation {record.generation}, at "
            f"{record.address}: it was copied or changed from outside. Restore it, or remove it to make the artifact anew."
        )
    return record


def _check_record(store: Store, record: Record, path: str) -> None:
    """Raise CorruptObject for a record that was edited, or that belongs to another artifact."""
    if record_path(record.stage, record.id, record.generation) != path:
        finding = f"it is the record of {record.stage}/{record.id}, generation {record.generation}"
    elif record.schema_version > 1 and record.seal != record.expected_seal():
        finding = "its fields are not those that were sealed; it was edited, or damaged"
    elif record.schema_version > 1 and record.digest != content_digest(record.files):
        finding = "its digest is not that of its files"
    else:
        return
    raise CorruptObject(
        f"{path} in store {store.url} is not what was committed: {finding}. "
        f"Mend it with: olmo2 repair {path.split('/')[1]} --store {store.url}"
    )


def record_of(store: Store, artifact: Artifact) -> Record:
    """The record of exactly the generation that an artifact value stands for."""
    # `stage/id/g0003` is generation 3.
    generation = int(artifact.address.rsplit("/g", 1)[1])
    record = load_record(store, artifact.stage, artifact.id, generation)
    if record is None:
        raise StoreError(
            f"{artifact.address} has no record in store {store.url}: it was deleted or belongs to another store. "
            f"Run the recipe again to make it anew."
        )
    return record


def record_at(store: Store, address: str) -> Record:
    """The record of an address that somebody names. Raises StoreError if there is none."""
    stage, id, generation = address.split("/")
    record = load_record(store, stage, id, int(generation[1:]))
    if record is None:
        raise StoreError(f"{address} is named by an input but is not in store {store.url}; rerun that input")
    return record


def payload_at(store: Store, address: str) -> str:
    """The folder with the files of the artifact at an address."""
    return record_at(store, address).payload


def all_records(store: Store) -> list[Record]:
    """Every record of a store, oldest first: for people who look around, never for deciding what to reuse."""
    found = []
    for stage in store.names(""):
        # These folders are the store's own: progress, looks, marks.
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
        # An artifact that two others share is shown once.
        if current.address in seen:
            return
        for item in current.inputs:
            parent = load_record(store, item.stage, item.id, int(item.address.rsplit("/g", 1)[1]))
            # A parent that gc removed, or that stayed in another store, ends this branch; the rest is still worth
            # showing.
            if parent is not None:
                visit(parent)
        # After its inputs, so that the list is in an order in which it could be made.
        seen[current.address] = current

    visit(record)
    return list(seen.values())


def corrupt_file(store: Store, record: Record, name: str, finding: str) -> CorruptObject:
    """The error for a committed artifact whose bytes no longer agree with its record."""
    return CorruptObject(
        f"{record.payload}/{name} in store {store.url} is corrupt: {finding}. "
        f"Mend it with: olmo2 repair {record.id} --store {store.url}, or make it anew with: "
        f"olmo2 rerun RECIPE {record.label} --store {store.url}"
    )


@cache
def code_version() -> CodeVersion:
    """Commit of this checkout and whether it has uncommitted changes; the distribution's version outside a checkout."""
    here = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(here)]
    try:
        # `check=False`: outside a checkout the exit status says so, and that is no error.
        commit = run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        status = run([*command, "status", "--porcelain"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        # Without git, as in a small container, the version of the distribution has to do.
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
            # An entry all the same, since a package that comes later explains a difference as well.
            installed[name] = "absent"
    return installed
