"""`olmo2 nodes`: the nodes of a Ray cluster, or this machine and its GPUs, with their health and cordons."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, TypedDict

import psutil
from rich.table import Column, Table

from flows.cli.options import print_folded
from infra.compute.cordoning import cordon_unfit
from infra.compute.health import DeviceUnfit, known_device
from infra.compute.nodes import ClusterNode, NodeCheck, check_nodes, cordon_of, living_nodes
from infra.compute.ray_connection import check_answers, connected
from infra.records.marks import Mark
from infra.records.nodes import HealthRow, cordons, known_health, lift_cordon, set_cordon
from infra.session import count_gpus
from infra.storage.store import Store

if TYPE_CHECKING:
    from flows.cli.plain_console import PlainConsole

SHOWN_ID = 12
"""Characters of a node's id in the table; its beginning will do in commands."""
SHORTEST_ID = 4
"""Of a node's id, what may stand for it."""
_HIDDEN = ("node:", "object_store_memory")
"""Resources of Ray that say nothing of what a stage may ask for."""


class CordonRow(TypedDict):
    """Who cordoned a place, when and why."""

    place: str
    who: str
    when: str
    why: str


class NodeRow(TypedDict):
    """A node, or a device of this machine."""

    node: str
    """Ray's id; on a single machine its host name, perhaps with a device."""
    host: str
    resources: dict[str, float]
    labels: dict[str, str]
    health: list[HealthRow]
    """What the last check of each of its devices found; empty if there was none."""
    problem: str
    """Why the check that was asked for has no result; empty if it has, or none was asked for."""
    cordon: CordonRow | None


class Fleet:
    """The nodes of the cluster at an address, or, without one, this machine and its GPUs."""

    def __init__(self, store: Store, ray: ModuleType | None):
        self.store = store
        self._ray = ray
        self._nodes = living_nodes(ray) if ray is not None else _devices_here()
        self._problems: dict[str, str] = {}

    def check(self) -> bool:
        """Check all devices now and cordon those that fail; whether none did."""
        if self._ray is not None:
            checks = check_nodes(self._ray, self.store, self._nodes)
        else:
            # The machine itself stands for its CPU.
            devices = {node.id: node.id.partition("/")[2] or "cpu" for node in self._nodes}
            checks = [NodeCheck(id, known_device(self.store, device)) for id, device in devices.items()]
        self._problems = {check.node: check.problem for check in checks if check.problem}
        unfit = tuple(check.health for check in checks if check.health and not check.health.passed)
        cordon_unfit(self.store, DeviceUnfit(unfit))
        return not unfit

    def cordon(self, name: str, why: str) -> None:
        """Cordon a node by its id, the beginning of it, or its host's name."""
        set_cordon(self.store, _only(name, [*self._places(), *(node.host for node in self._nodes)]), why)

    def uncordon(self, name: str) -> None:
        """Lift a cordon, of a node that is gone too."""
        lift_cordon(self.store, _only(name, [*cordons(self.store), *self._places()]))

    def rows(self) -> list[NodeRow]:
        """One of each node, and of each cordon of one that is not there."""
        found, known = cordons(self.store), known_health(self.store)
        rows = [self._row(node, found, known) for node in self._nodes]
        shown = {row["cordon"]["place"] for row in rows if row["cordon"]}
        return rows + [_absent(mark) for place, mark in found.items() if place not in shown]

    def _places(self) -> list[str]:
        return [node.id for node in self._nodes]

    def _row(self, node: ClusterNode, found: Mapping[str, Mark], known: Sequence[HealthRow]) -> NodeRow:
        # A device of this machine has no other devices, a node has all of its host.
        mark = cordon_of(node, found) if self._ray is not None else found.get(node.id) or found.get(node.host)
        return {
            "node": node.id,
            "host": node.host,
            "resources": {name: value for name, value in node.resources.items() if not name.startswith(_HIDDEN)},
            "labels": node.labels,
            "health": [row for row in known if row["place"] == node.id],
            "problem": self._problems.get(node.id, ""),
            "cordon": _cordon_row(mark) if mark else None,
        }


@contextmanager
def fleet(store: Store, address: str) -> Iterator[Fleet]:
    """The nodes of the cluster at an address, this machine where it is empty. Raises ValueError where no cluster answers."""
    if not address:
        yield Fleet(store, None)
        return
    check_answers(address)
    with connected(address) as ray:
        yield Fleet(store, ray)


def print_nodes(console: "PlainConsole", rows: Sequence[NodeRow]) -> None:
    """A table of nodes."""
    wide = [Column(name, overflow="fold") for name in ("node", "host", "resources", "health", "cordoned")]
    table = Table(*wide, box=None, pad_edge=False)
    for row in rows:
        # Ids are long hexadecimal numbers; host names stay whole.
        name = row["node"][:SHOWN_ID] if row["node"] != row["host"] and "/" not in row["node"] else row["node"]
        resources = ", ".join(_amount(name, value) for name, value in sorted(row["resources"].items()))
        health = row["problem"] or "; ".join(map(_health_text, row["health"])) or "not checked"
        cordon = row["cordon"]
        cordoned = f"{cordon['when']} {cordon['who']}: {cordon['why']}" if cordon else ""
        table.add_row(name, row["host"], resources, health, cordoned)
    print_folded(console, table)


def _devices_here() -> list[ClusterNode]:
    """This machine, and each of its GPUs."""
    host = socket.gethostname()
    own = {"CPU": float(psutil.cpu_count() or 1), "memory": float(psutil.virtual_memory().total)}
    gpus = [ClusterNode(f"{host}/cuda:{number}", host, {"GPU": 1.0}, {}) for number in range(count_gpus())]
    return [ClusterNode(host, host, own, {}), *gpus]


def _only(name: str, places: Sequence[str]) -> str:
    """The one place that is meant. Raises ValueError where it is none or one of several."""
    if name in places:
        return name
    found = sorted({place for place in places if len(name) >= SHORTEST_ID and place.startswith(name)})
    if len(found) == 1:
        return found[0]
    known = ", ".join(dict.fromkeys(places))
    raise ValueError(
        f"{name!r} is {'the beginning of several nodes' if found else 'no node'} here; there are: {known}. Nodes of a "
        "cluster are known with --ray HOST:PORT"
    )


def _absent(mark: Mark) -> NodeRow:
    return {
        "node": mark.address,
        "host": "",
        "resources": {},
        "labels": {},
        "health": [],
        "problem": "not here",
        "cordon": _cordon_row(mark),
    }


def _cordon_row(mark: Mark) -> CordonRow:
    return {"place": mark.address, "who": mark.who, "when": mark.when, "why": mark.text}


def _amount(name: str, value: float) -> str:
    return f"{value / 1e9:.1f} GB" if name == "memory" else f"{value:g} {name}"


def _health_text(row: HealthRow) -> str:
    if not row["passed"]:
        return f"{row['device']} failed {row['when']}: {'; '.join(row['failed'])}"
    speeds = row["speeds"]
    return f"{row['device']} passed {row['when']} (bf16 {speeds['bf16_tflops']:g} TFLOP/s, copy {speeds['copy_gb_per_s']:g} GB/s)"
