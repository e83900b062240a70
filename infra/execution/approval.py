"""Approval of stages whose price passes `execution.approve_above`: who is asked, what is kept, and when nobody is asked again.

Each decision is an object of its own below `_approvals/` in the store, with who, when, why and the price that was shown. A
resumed attempt goes on with the approval it has, unless it would cost more than was approved.
"""

import getpass
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

import orjson

from infra.execution.plan import decide
from infra.records.record import generations, payload_address
from infra.session import Arguments, Session
from infra.stage import Stage
from infra.storage.store import CorruptObject, Store, StoreError

_AREA = "_approvals"
_TRIES = 100
Decision = Literal["approve", "refuse"]


class Refused(ValueError):
    """A person did not approve a stage; the text says who and why."""


class ApprovalNeeded(ValueError):
    """A stage needs an approval and there is nobody to ask; the text says the ways out."""


@dataclass(frozen=True)
class Question:
    """What a person is asked."""

    label: str
    id: str
    price: float
    above: float
    why: str
    """Why the stage runs at all, as the plan says it."""
    plan: tuple[tuple[str, str], ...]
    """What the price is made of: name and value."""


@dataclass(frozen=True)
class Answer:
    """What the person said."""

    decision: Decision
    reason: str
    who: str


@dataclass(frozen=True)
class Approval:
    """A decision as it is kept."""

    artifact: str
    """Address of the artifact that the stage makes."""
    label: str
    decision: Decision
    reason: str
    who: str
    when: str
    price: float
    above: float


def check_approved(stage: Stage, session: Session, arguments: Arguments, ask: Callable[[Question], Answer]) -> None:
    """Return when the stage may run: it is cheap, was approved, or is approved now by whoever `ask` reaches.

    Raises Refused when it is not.
    """
    above = session.execution.approve_above
    if above is None or session.price is None:
        return
    call = stage.sort(arguments)
    action, why, id, _ = decide(stage, call, session)
    price = session.price(stage.label) if action in ("run", "resume") else None
    # Only work costs: a reused or a left-out stage asks nobody.
    if price is None or price.money <= above:
        return
    address = payload_address(stage.name, id, max(generations(session.store, stage.name, id), default=0) + 1)
    last = newest_approval(session.store, address)
    # A price above the one that was approved is asked about again.
    if last is not None and last.decision == "approve" and price.money <= last.price:
        return
    if session.execution.approve:
        answer = Answer("approve", session.execution.approve, f"{_user()}@{socket.gethostname()}")
    else:
        answer = ask(Question(stage.label, id, price.money, above, why, price.plan))
    _keep(session.store, address, stage.label, answer, price.money, above)
    if answer.decision == "refuse":
        raise Refused(
            f"{stage.label} (price {as_money(price.money)}, above {as_money(above)}) was refused by {answer.who}: "
            f"{answer.reason}. What is done is kept; make it cheaper, or run again and approve it"
        )


def as_money(value: float) -> str:
    """A price for people; what is below a cent keeps its digits."""
    return f"{value:,.2f}" if value >= 0.01 or not value else f"{value:.2g}"


def newest_approval(store: Store, address: str) -> Approval | None:
    """The last decision on an artifact, if there is one."""
    files = store.names(f"{_AREA}/{address}")
    return _read(store, f"{_AREA}/{address}/{files[-1]}") if files else None


def approvals(store: Store) -> list[Approval]:
    """All decisions, oldest first."""
    return sorted((_read(store, path) for path in store.walk(_AREA)), key=lambda said: said.when)


def _read(store: Store, path: str) -> Approval:
    try:
        return Approval(**store.read_json(path))
    except TypeError as error:
        raise CorruptObject(
            f"{path} in store {store.url} is no approval: it was changed from outside; remove it"
        ) from error


def _keep(store: Store, address: str, label: str, answer: Answer, price: float, above: float) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    said = Approval(address, label, answer.decision, answer.reason, answer.who, now, price, above)
    # Numbers go on from the newest, and create-only writing finds who else took one.
    number = len(store.names(f"{_AREA}/{address}"))
    for _ in range(_TRIES):
        number += 1
        if store.create(f"{_AREA}/{address}/{number:06d}.json", orjson.dumps(asdict(said), option=orjson.OPT_INDENT_2)):
            return
    raise StoreError(f"{_TRIES} others decided on {address} of store {store.url} at the same time; try again")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())  # a container's user without a name
