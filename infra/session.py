"""The session of one recipe run: which store, which settings, which stages to force, and the engine that plans or runs them.

Flows open a session; every stage called inside it asks the session what to do. It lives in a context variable, which
Prefect copies into its task threads.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, Protocol, TypedDict, TypeVar

from infra.events import LabelledListener
from infra.records.record import Record
from infra.settings import Execution
from infra.storage.store import Store

R = TypeVar("R")


Arguments = dict[str, object]
"""What a stage is called with: parameter name -> artifact, promise of one, list of them, None, or config."""


class Engine(Protocol):
    """What a session does with the stages and phases that are called in it: `infra.execution` has one that plans them and
    one that runs them.
    """

    def taker(self, stage: Any, session: "Session") -> Callable[[Any, "Session", Arguments], Any]:
        """What takes a stage (an `infra.stage.Stage`) with its session and arguments, called by the stage itself. It returns what
        stands for the artifact: itself, a promise of it, or Pending.
        """
        ...

    def promised(self, promise: Any) -> None:
        """Note what the taker of a stage returned, for the phase that waits for it."""

    def phase(self, name: str, function: Callable[[], R]) -> Callable[[], R]:
        """What to call for a phase's function: it returns what the function returns, its promises resolved."""
        ...

    def given(self, label: str, record: Record) -> None:
        """Note an artifact that no stage of the recipe makes, such as the checkpoint that it starts at."""


class Cores:
    """The cores of this machine: a stage takes as many as it has threads and waits while they are not free."""

    def __init__(self, total: int):
        self._free = total
        self._changed = threading.Condition()

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        with self._changed:
            # All of a stage's cores are taken at once: taken one by one, two stages could each wait for the other's.
            self._changed.wait_for(lambda: self._free >= count)
            self._free -= count
        try:
            yield
        finally:
            with self._changed:
                self._free += count
                self._changed.notify_all()


class Devices:
    """The GPUs of this machine: a stage that computes has one to itself, a group of workers all of them."""

    def __init__(self, count: Callable[[], int]):
        self._count = count
        self._free: list[int] | None = None
        self._all = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, *, together: bool) -> Iterator[int]:
        """Wait for a GPU (for all of them with `together`); the number of the first."""
        with self._changed:
            if self._free is None:
                # Asked at the first use: whoever computes on the CPU has no use for a count.
                self._all = max(1, self._count())
                self._free = list(range(self._all))
            free, wanted = self._free, self._all if together else 1
            self._changed.wait_for(lambda: len(free) >= wanted)
            taken = [free.pop(0) for _ in range(wanted)]
        try:
            yield taken[0]
        finally:
            with self._changed:
                free.extend(taken)
                # Sorted, so that the lowest number is given out first.
                free.sort()
                self._changed.notify_all()


def count_gpus() -> int:
    """CUDA devices that torch sees on this machine."""
    # Imported here, since torch takes seconds and a plan needs no GPU.
    return import_module("torch").cuda.device_count()


class StageEstimate(TypedDict, total=False):
    """What a plan can say of a stage before it runs; a stage has the fields that are known."""

    tokens: int
    tokens_at_most: int
    """Where rows may be shorter than their limit."""
    steps: int | None
    parameters: int
    flops_per_token: float
    flops: float | None


@dataclass(frozen=True)
class Pending:
    """Stands for an artifact that a plan cannot know yet, or that `--until` leaves out."""

    label: str
    kind: str
    facts: StageEstimate = field(default_factory=lambda: StageEstimate())


@dataclass(frozen=True)
class Price:
    """What a stage that has not run yet would cost."""

    money: float
    plan: tuple[tuple[str, str], ...]
    """What it is made of: name and value."""


@dataclass
class Session:
    """One run (or plan) of a recipe."""

    store: Store
    execution: Execution
    force: frozenset[str] = frozenset()
    """Stage names or labels that get a new generation."""
    only: frozenset[str] | None = None
    """Labels to run; None for all of them."""
    listener: LabelledListener | None = None
    engine: Engine | None = None
    """None where stages are run one by one (`infra.execution.attempt.run_stage`) and no flow is called."""
    price: Callable[[str], Price | None] | None = None
    """Label -> price, asked right before a stage runs, when its inputs exist; None where nothing is priced."""
    preload: tuple[str, ...] = ()
    """Modules that the fork server of stages' processes imports once, besides its own; none may start threads at import."""
    again: str = ""
    """The command that goes on with this run; empty where there is none."""
    cores: Cores = field(init=False)
    waiting: Cores = field(init=False)
    """Slots of stages that wait for a language model: they take no core, but no more of them run at once than there are."""
    devices: Devices = field(default_factory=lambda: Devices(count_gpus))

    def __post_init__(self) -> None:
        self.cores = Cores(self.execution.cores)
        self.waiting = Cores(self.execution.cores)

    @property
    def in_charge(self) -> Engine:
        """The engine. A flow is called only in a session that has one."""
        assert self.engine is not None, "flows are called in a session with an engine"
        return self.engine

    def is_forced(self, stage: str, label: str) -> bool:
        return any(matches(name, stage, label) for name in self.force)

    def is_left_out(self, label: str) -> bool:
        return self.only is not None and label not in self.only


def matches(name: str, stage: str, label: str) -> bool:
    """Whether a name given by a user means this stage: its noun, its label, or a pattern on the label (`anneal:*`)."""
    return name in (stage, label) or ("*" in name and fnmatchcase(label, name))


_current: ContextVar[Session] = ContextVar("olmo2_session")


def current_session() -> Session:
    session = _current.get(None)
    assert session is not None, "stages run inside a flow that has opened a session"
    return session


@contextmanager
def open_session(session: Session) -> Iterator[Session]:
    """Make a session current for the flows and stages called inside."""
    token = _current.set(session)
    try:
        yield session
    finally:
        _current.reset(token)
