"""The session of one recipe run: which store, which settings, which stages to force, and the engine that plans or runs them.

Flows open a session; every stage called inside it asks the session what to do. It lives in a context variable, which
Prefect copies into its task threads.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
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


class NoDeviceLeft(Exception):
    """All devices of this machine that a stage could have are cordoned."""


class Devices:
    """The GPUs of this machine: a stage that computes has one to itself, a group of workers all of them.

    `kind` is torch's name of them, such as cuda.
    """

    def __init__(self, count: Callable[[], int], kind: str = "cuda"):
        self.kind = kind
        self._count = count
        self._free: set[int] | None = None
        self._all = frozenset[int]()
        self._unfit: dict[int, str] = {}
        self._changed = threading.Condition()

    @contextmanager
    def take(self, *, together: bool, unfit: Mapping[int, str] | None = None) -> "Iterator[HeldDevice]":
        """Wait for a GPU (for all of them with `together`). Those that are unfit, by a reason each, are given to nobody.

        Raises NoDeviceLeft where all are.
        """
        with self._changed:
            self._unfit = dict(unfit or {})
            if self._free is None:
                # Asked at the first use: whoever computes on the CPU has no use for a count.
                self._all = frozenset(range(max(1, self._count())))
                self._free = set(self._all)
            held = HeldDevice(self, self._taken(together))
        try:
            yield held
        finally:
            with self._changed:
                self._give_back(held.numbers)

    def exchange(self, numbers: frozenset[int], unfit: Mapping[int, str]) -> frozenset[int]:
        """Another GPU for those that are held, now that some are unfit, waited for. Raises NoDeviceLeft where all are."""
        with self._changed:
            # Known before they are given back, or whoever waits would take an unfit one.
            self._unfit = dict(unfit)
            self._give_back(numbers)
            return self._taken(together=False)

    def _give_back(self, numbers: frozenset[int]) -> None:
        assert self._free is not None, "they were taken"
        self._free |= numbers
        self._changed.notify_all()

    def _taken(self, together: bool) -> frozenset[int]:
        """Wait, within the lock, for as many as are wanted, and take the lowest numbers."""
        assert self._free is not None, "they are counted"
        while fit := self._all - self._unfit.keys():
            free = sorted(self._free & fit)
            if len(free) >= (len(fit) if together else 1):
                taken = frozenset(free if together else free[:1])
                self._free -= taken
                return taken
            self._changed.wait()
        raise NoDeviceLeft(
            f"none of this machine's {len(self._all)} device(s) of kind {self.kind} is left for a stage: "
            f"{'; '.join(self._unfit[number] for number in sorted(self._all))}. Repair or replace them, then lift each cordon: "
            "olmo2 nodes --uncordon NODE"
        )


class HeldDevice:
    """The GPUs of this machine that a stage holds."""

    def __init__(self, devices: Devices, numbers: frozenset[int]):
        self.numbers = numbers
        self._devices = devices

    @property
    def kind(self) -> str:
        return self._devices.kind

    @property
    def name(self) -> str:
        """torch's name of the first: cuda:0."""
        return f"{self._devices.kind}:{min(self.numbers)}"

    def exchange(self, unfit: Mapping[int, str]) -> None:
        """Give them back and wait for another, none of the unfit."""
        # None are held while another is waited for, or where there is none.
        numbers, self.numbers = self.numbers, frozenset()
        self.numbers = self._devices.exchange(numbers, unfit)


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
