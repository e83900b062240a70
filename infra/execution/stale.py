"""Finds and accepts stale artifacts: their record names other code than there is now, at the same version.

Nothing stale is used without being asked. The ways out are a rerun, an acceptance (kept in the store: who, when, why, and for
which code, so that it is asked once) and a new version of the stage.
"""

import getpass
import os
import socket
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypedDict

import orjson

from infra.execution.fingerprint import Fingerprint, differences, digest_of, fingerprint_of
from infra.records.record import Record, package_versions
from infra.storage.store import Store

if TYPE_CHECKING:
    from infra.stage import Stage

BYTES_DEPEND_ON = ("torch", "tiktoken", "fasttext")
"""Packages whose versions may change an artifact's bytes: told when they differ, and refused never."""


class Acceptance(TypedDict):
    """What is kept of an acceptance."""

    artifact: str
    """The address."""
    label: str
    who: str
    when: str
    why: str
    changed: list[str]
    """Files and definitions that differ from what made the artifact."""
    code: str
    """Digest of the code that was accepted."""


class StaleError(ValueError):
    """An artifact was made by other code than there is now."""


def changes_since(store: Store, stage: "Stage", record: Record) -> list[str]:
    """What of a stage's code differs from what made an artifact, file by file; nothing if that was accepted.

    Records of before fingerprints name none: nothing is known of them, and they stay in use.
    """
    if not record.fingerprint:
        return []
    now = fingerprint_of(stage.function)
    changed = differences(record.fingerprint, now)
    return [] if not changed or store.exists(acceptance_path(record, now)) else changed


def acceptance_path(record: Record, now: Fingerprint) -> str:
    return f"_accepted/{record.address}/{digest_of(now)}.json"


def accept(store: Store, stage: "Stage", record: Record, why: str) -> Acceptance:
    """Say that an artifact is what the code of now would make; returns what is kept of that."""
    now = fingerprint_of(stage.function)
    said: Acceptance = {
        "artifact": record.address,
        "label": record.label,
        "who": f"{_user()}@{socket.gethostname()}",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "why": why,
        "changed": differences(record.fingerprint, now),
        "code": digest_of(now),
    }
    store.create(acceptance_path(record, now), orjson.dumps(said, option=orjson.OPT_INDENT_2))
    return said


def acceptances(store: Store) -> list[Acceptance]:
    """All that was accepted, oldest first."""
    return sorted((store.read_json(path) for path in store.walk("_accepted")), key=lambda said: said["when"])


def other_packages(record: Record) -> str:
    """Packages that may change bytes and have another version now, in words; empty if there are none."""
    now = package_versions()
    changed = [
        f"{name} {record.packages[name]} → {now[name]}"
        for name in BYTES_DEPEND_ON
        if name in record.packages and record.packages[name] != now[name]
    ]
    return ", ".join(changed)


def stale_error(stages: Iterable[tuple[str, str, str]]) -> StaleError:
    """The error for (label, module of the stage, what changed) of each stale artifact, with the three ways out."""
    found = list(stages)
    told = "\n".join(f"  {label}: {changed}" for label, _, changed in found)
    files = ", ".join(sorted({f"{module.replace('.', '/')}.py" for _, module, _ in found}))
    reruns = " ".join(f"--rerun {label}" for label, _, _ in found[:5]) + (" …" if len(found) > 5 else "")
    return StaleError(
        f"the code of {len(found)} stage{'s' if len(found) > 1 else ''} has changed since the artifact was made, and the "
        f"version has not:\n{told}\n"
        f"Make it anew ({reruns}, or execution.stale=rerun for all), say that the change does not matter "
        f"(--accept 'why', which is kept in the store), or raise version= in {files}."
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())  # a container's user without a name
