"""Each device proves itself before it trains, and again after numbers or waits that it may be to blame for (RECIPE J).

The check runs in the process that uses the device: matmuls against an fp64 reference on the host, a copy, memory that keeps
what was written into it, the host's clock, and in a group an all-reduce whose sum is known. It needs nothing but torch, so it
is the same on every kind of device. It draws from a generator of its own and frees its memory, so results do not change.

    >>> examine("cpu").passed
    True
"""

import math
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from infra.records.nodes import HealthRow, remember_health
from infra.storage.store import Store
from infra.workspace import Workspace

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SEED = 20_650
"""Of the matrices and patterns; any other would do."""
_REPEATS = 3
"""Times that what is timed is done; the quickest counts."""
_WORD_BYTES = 8
_PATTERN = 0x5555_5555_5555_5555
"""Every second bit; its complement, written next, is the others."""
_CLOCK_SECONDS = 60.0
"""How far a host's clock may be from the store's. S3 tells whole seconds, and refuses requests that are 15 minutes off."""
_GROUP_SECONDS = 120.0
"""How long the ranks wait for each other in the check. All come to it right after they have joined their group."""
_ROUNDING = {"fp32": 2.0**-24, "bf16": 2.0**-8}
"""Unit roundoff: half the distance from 1 to the next number."""


@dataclass(frozen=True)
class _Sizes:
    """How much a check does: enough to keep all of a GPU busy, little enough for a CPU's few milliseconds."""

    matrix: int
    """Rows and columns."""
    matmuls: int
    """Equal matmuls at once, so that all multiprocessors of a GPU take part; the host computes the reference once."""
    copied: int
    """Bytes that are copied."""
    written: int
    """Bytes of a block of memory that is written and read back."""


_CPU = _Sizes(matrix=256, matmuls=2, copied=16 * 2**20, written=16 * 2**20)
_ACCELERATOR = _Sizes(matrix=1024, matmuls=32, copied=2**30, written=2**30)
_MOST_BLOCKS = {"cpu": 2, "mps": 2}
"""Blocks of memory that are written on devices that share the host's; others get as many as half of what is free."""


@dataclass(frozen=True)
class CheckResult:
    """What one check measured on a device, next to what was expected."""

    check: str
    passed: bool
    measured: str
    expected: str

    def text(self) -> str:
        return f"{self.check}: {self.measured}, expected {self.expected}"


@dataclass(frozen=True)
class DeviceHealth:
    """What the checks of one device found."""

    device: str
    """Such as cpu or cuda:3."""
    host: str
    node: str
    """Ray's id of the node; empty outside a cluster."""
    findings: tuple[CheckResult, ...]
    speeds: dict[str, float]
    """TFLOP/s and GB/s; see `HealthRow`."""
    seconds: float

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)

    @property
    def failed(self) -> list[CheckResult]:
        return [finding for finding in self.findings if not finding.passed]

    @property
    def place(self) -> str:
        """What is cordoned if it fails: a cluster gives out nodes, a single machine devices."""
        if self.node:
            return self.node
        # A wrong clock is the host's.
        of_host = self.device == "cpu" or (self.failed and all(finding.check == _CLOCK for finding in self.failed))
        return self.host if of_host else f"{self.host}/{self.device}"

    def row(self) -> HealthRow:
        """As records and the store keep it."""
        return {
            "place": self.place,
            "device": self.device,
            "host": self.host,
            "node": self.node,
            "passed": self.passed,
            "failed": [finding.text() for finding in self.failed],
            "speeds": self.speeds,
            "seconds": self.seconds,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def why(self) -> str:
        """Why it is cordoned."""
        return f"health check of {self.device}: {'; '.join(finding.text() for finding in self.failed)}"


class DeviceUnfit(Exception):
    """Devices failed their health check; a training on them would compute something else."""

    def __init__(self, devices: tuple[DeviceHealth, ...]):
        super().__init__(devices)
        self.devices = devices

    def __str__(self) -> str:
        told = "; ".join(f"{one.device} of host {one.host}: {_listed(one.failed)}" for one in self.devices)
        return f"the health check failed: {told}"


class GroupUnfit(Exception):
    """An all-reduce gave a wrong sum everywhere, so no single device can be named."""


_CLOCK = "clock"


def _listed(findings: Iterable[CheckResult]) -> str:
    return ", ".join(finding.text() for finding in findings)


def examine(device: str, *, node: str = "", label: str = "") -> DeviceHealth:
    """Check the device of this process by itself. `label` is its name where the process knows it by another.

    Whatever torch raises meanwhile, such as a GPU's uncorrectable memory error, is a finding too.
    """
    import torch

    found, began, speeds = torch.device(device), time.monotonic(), dict[str, float]()
    sizes = _CPU if found.type == "cpu" else _ACCELERATOR
    findings: list[CheckResult] = []
    for check in (_check_matmuls, _check_copy, _check_memory):
        name = check.__name__.removeprefix("_check_")
        try:
            findings += check(found, sizes, speeds)
        except Exception as error:  # a driver may raise anything
            first = str(error).partition("\n")[0]
            findings.append(CheckResult(name, False, f"{type(error).__name__}: {first}", "no error"))
            # After an error of its driver a GPU refuses whatever this process asks of it.
            break
    if found.type != "cpu":
        # A device in that state may refuse this as well.
        with suppress(RuntimeError):
            torch.accelerator.empty_cache()
    seconds = round(time.monotonic() - began, 3)
    return DeviceHealth(label or _label(device), socket.gethostname(), node, tuple(findings), speeds, seconds)


def _label(device: str) -> str:
    """The device with its number."""
    import torch

    return f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device


def _check_matmuls(device: "torch.device", sizes: _Sizes, speeds: dict[str, float]) -> Iterator[CheckResult]:
    """Matmuls in fp32 and bf16 against the host's fp64.

    An entry may be off by what rounding allows (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.5):
    n u |A||B| for n products that are summed in fp32, whose roundoff is u; bf16 results are rounded, perhaps once for each of
    a few partial sums.
    """
    import torch

    n = sizes.matrix
    random = torch.Generator().manual_seed(_SEED)
    left, right = (torch.randn(n, n, generator=random) for _ in range(2))
    for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        first, second = left.to(kind), right.to(kind)
        exact = first.double() @ second.double()
        allowed = n * _ROUNDING["fp32"] + (4 * _ROUNDING["bf16"] if name == "bf16" else 0.0)
        bound = allowed * (first.double().abs() @ second.double().abs())
        many = first.to(device).expand(sizes.matmuls, n, n).contiguous()
        other = second.to(device)
        products, seconds = _timed(device, lambda many=many, other=other: torch.matmul(many, other))
        speeds[f"{name}_tflops"] = _rounded(2 * n**3 * sizes.matmuls / seconds / 1e12)
        # On the host, for a device that multiplies wrongly may compare wrongly too.
        errors = [((product.cpu().double() - exact).abs() / bound).max() for product in products]
        # torch's maximum, since Python's may pass over a NaN; and a comparison that a NaN fails.
        worst = float(torch.stack(errors).max())
        passed = worst <= 1.0
        yield CheckResult(f"{name} matmul", passed, f"largest error {worst:.3g} of what rounding allows", "at most 1")


def _check_copy(device: "torch.device", sizes: _Sizes, speeds: dict[str, float]) -> Iterator[CheckResult]:
    """A copy on the device: its speed, reading and writing counted, and whether it is one."""
    import torch

    source = torch.arange(sizes.copied // _WORD_BYTES, dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    _, seconds = _timed(device, lambda: target.copy_(source))
    speeds["copy_gb_per_s"] = _rounded(2 * sizes.copied / seconds / 1e9)
    wrong = int((target != source).sum())
    yield CheckResult("copy", wrong == 0, f"{wrong:,} of {len(source):,} words differ", "0")


def _check_memory(device: "torch.device", sizes: _Sizes, speeds: dict[str, float]) -> Iterator[CheckResult]:
    """Blocks of memory that are all written, with a pattern and with its complement, before the first is read."""
    import torch

    count = _MOST_BLOCKS.get(device.type)
    if count is None:
        free, _ = torch.accelerator.get_memory_info(device)
        count = max(1, free // 2 // sizes.written)
    words = sizes.written // _WORD_BYTES
    blocks: list[Tensor] = [torch.empty(words, dtype=torch.int64, device=device) for _ in range(count)]
    wrong = 0
    for pattern in (_PATTERN, ~_PATTERN):
        # Each block's own, so that an address that leads to another's memory is seen.
        for place, block in enumerate(blocks):
            block.fill_(pattern ^ place)
        wrong += sum(int((block != pattern ^ place).sum()) for place, block in enumerate(blocks))
    size = f"{count * sizes.written / 1e9:.2f} GB"
    yield CheckResult("memory", wrong == 0, f"{wrong:,} words of {size} do not hold what was written", "0")


def _timed(device: "torch.device", call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returned last, and the seconds of the quickest of a few."""
    import torch

    best = math.inf
    for _ in range(_REPEATS):
        began = time.perf_counter()
        result = call()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return result, best


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def known_device(store: Store, device: str, *, node: str = "", label: str = "") -> DeviceHealth:
    """Check the device of this process and its host's clock, and leave what was found in the store."""
    found = examine(device, node=node, label=label)
    before = time.time()
    written = remember_health(store, found.row())
    if written is None:
        return found
    found = replace(found, findings=(*found.findings, clock_finding(before, written, time.time())))
    if not found.passed:
        # What was kept did not know of the clock.
        remember_health(store, found.row())
    return found


def check_all_reduce(device: str) -> tuple[list[bool], float]:
    """Sum what all ranks of the default process group give, and say of each rank whether it got the right sum; GB/s.

    The entries are whole numbers below 2^24, so their fp32 sum is exact in any order.
    """
    import torch
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    group = cast(dist.ProcessGroup, dist.new_group(timeout=timedelta(seconds=_GROUP_SECONDS)))
    try:
        base = torch.arange(2**18, dtype=torch.float32, device=device) % 2**10
        expected = base * world + world * (world - 1) // 2
        seconds = math.inf
        right = True
        for _ in range(_REPEATS):
            values = base + rank
            began = time.perf_counter()
            dist.all_reduce(values, group=group)
            # Reading the comparison waits for the device.
            right = bool(torch.equal(values, expected)) and right
            seconds = min(seconds, time.perf_counter() - began)
        told: list[Any] = [None] * world
        dist.all_gather_object(told, right, group=group)
    finally:
        dist.destroy_process_group(group)
    return told, _rounded(base.nbytes / seconds / 1e9)


def clock_finding(before: float, store: float, after: float) -> CheckResult:
    """The host's clock against the store's, which said `store` between two looks at the host's; all in seconds since 1970."""
    off = max(before - store, store - after, 0.0)
    return CheckResult(
        _CLOCK, off <= _CLOCK_SECONDS, f"{off:.1f} s from the store's clock", f"at most {_CLOCK_SECONDS:.0f} s"
    )


@dataclass(frozen=True)
class Proof:
    """Checks the device of a stage's process for its workspace."""

    workspace: Workspace
    node: str = ""
    """Ray's id of the node, where a cluster gives out nodes."""
    label: str = ""
    """The device's name on its host, where this process knows it by another."""
    grouped: bool = False
    """Whether this process is one of a group's."""

    def before(self) -> None:
        """Check the device before the stage and note what was found, where `execution.health` asks for it.

        Raises DeviceUnfit, or GroupUnfit where an all-reduce went wrong and it cannot be told whose fault it is.
        """
        if not self.workspace.compute.checks_first:
            return
        found = self.alone()
        if not found.passed:
            raise DeviceUnfit((found,))
        self.workspace.note(health=[one.row() for one in (self._together(found) if self.grouped else [found])])

    def doubts(self, error: Exception) -> bool:
        """Whether the device is to be checked because of what ended the stage."""
        return self.workspace.compute.health is not False and casts_doubt(error)

    def alone(self) -> DeviceHealth:
        """Check the device by itself."""
        return known_device(self.workspace.store, self.workspace.compute.device, node=self.node, label=self.label)

    def _together(self, own: DeviceHealth) -> Sequence[DeviceHealth]:
        """The health of all ranks, after an all-reduce."""
        import torch.distributed as dist

        right, speed = check_all_reduce(self.workspace.compute.device)
        if not any(right):
            raise GroupUnfit(
                f"an all-reduce gave a wrong sum on all {len(right)} ranks of stage {self.workspace.stage}; each device "
                "passed the checks of its own, so look at the links between them. execution.health=false runs without"
            )
        here = right[dist.get_rank()]
        sums = CheckResult("all-reduce", here, "the known sum" if here else "another sum", "the known sum")
        own = replace(own, findings=(*own.findings, sums), speeds={**own.speeds, "all_reduce_gb_per_s": speed})
        ranks: list[Any] = [None] * len(right)
        dist.all_gather_object(ranks, own)
        if unfit := tuple(one for one in ranks if not one.passed):
            raise DeviceUnfit(unfit)
        return ranks


_TIMED_OUT = re.compile("timed? ?out", re.IGNORECASE)


def casts_doubt(error: BaseException) -> bool:
    """Whether a device may be to blame for what ended a training: numbers that left the finite, a peer that did not answer."""
    if isinstance(error, FloatingPointError):
        return True
    # The classes of torch.distributed are known by their names, so that this need not import torch; gloo raises RuntimeError.
    of_group = type(error).__name__.startswith("Dist") or type(error) is RuntimeError
    return of_group and _TIMED_OUT.search(str(error)) is not None


def verdict(error: Exception, devices: Sequence[DeviceHealth], expected: int) -> Exception:
    """What a training ended with, now that `devices` of `expected` have been checked: DeviceUnfit, or the error, which then says
    that they passed.
    """
    if unfit := tuple(one for one in devices if not one.passed):
        return DeviceUnfit(unfit)
    passed = f"{len(devices)} of {expected}" if len(devices) < expected else "all" if expected > 1 else "its"
    error.args = (
        f"{error}. The health check ran afterwards: {passed} device{'s' * (passed != 'its')} passed",
        *error.args[1:],
    )
    return error


__all__ = [
    "CheckResult",
    "DeviceHealth",
    "DeviceUnfit",
    "GroupUnfit",
    "Proof",
    "casts_doubt",
    "examine",
    "known_device",
    "verdict",
]  # fmt: skip
