"""Looks at held-out scores: who saw which, when, in which run and why, as small files in the store.

What is looked at often is chosen by, whether or not anybody means to. So each evaluation of held-out benchmarks and each
command that shows their scores leaves a line here, which `olmo2 looks` lists and the report counts. A stage's look has a name
made of its artifact, so a resumed or repeated stage leaves one; a command's is new each time.
"""

import getpass
import hashlib
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import orjson

from infra.storage.store import Store

_FOLDER = "_looks"


@dataclass(frozen=True)
class Look:
    """One look at the held-out scores of one evaluation."""

    scores: str
    """Address of the scores."""
    label: str
    """What was evaluated."""
    benchmarks: tuple[str, ...]
    """The held-out benchmarks that were seen."""
    why: str
    run: str
    """The command or stage that showed them."""
    who: str
    when: str
    """UTC, ISO 8601."""


def write_look(
    store: Store, scores: str, label: str, benchmarks: Sequence[str], *, run: str, why: str, once: bool = False
) -> Look | None:
    """Leave a line; None where there is no held-out benchmark. `once`: the same run's look at the same scores is one."""
    if not benchmarks:
        return None
    look = Look(
        scores, label, tuple(benchmarks), why, run, whoami(), datetime.now(UTC).isoformat(timespec="microseconds")
    )
    # The key names the file. A resumed stage gets the same name, and a create-only write then leaves one look.
    key = f"{scores}\n{run}" if once else f"{scores}\n{run}\n{look.when}\n{os.getpid()}"
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    store.create(f"{_FOLDER}/{name}.json", orjson.dumps(asdict(look), option=orjson.OPT_INDENT_2))
    return look


def read_looks(store: Store, scores: str = "") -> list[Look]:
    """All looks, or those at one evaluation's scores, the oldest first."""
    rows = [store.read_json(f"{_FOLDER}/{name}") for name in store.names(_FOLDER)]
    # JSON gives a tuple back as a list.
    looks = [Look(**{**row, "benchmarks": tuple(row["benchmarks"])}) for row in rows]
    return sorted((look for look in looks if scores in ("", look.scores)), key=lambda look: look.when)


def whoami() -> str:
    """User and host; the user's number where it has no name."""
    try:
        user = getpass.getuser()
    except OSError:
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
