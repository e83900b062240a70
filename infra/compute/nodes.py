"""The nodes of a Ray cluster, and how stages are kept off those that are cordoned.

Ray gives each node its id as a label. So one label selector, `!in(...)`, keeps a stage's actor, the workers of its group and
its shards off cordoned nodes; what runs there already goes on.
"""

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from infra.compute.health import DeviceHealth, known_device
from infra.records.marks import Mark
from infra.records.nodes import cordons, told_cordons
from infra.settings import Placement
from infra.storage.store import Store
from infra.workspace import Workspace

ID_LABEL = "ray.io/node-id"
"""Ray's own label of a node's id."""
CHECK_SECONDS = 120.0
"""How long nodes may take to check their devices on demand; a process that imports torch has to start first."""


class NoNodeLeft(Exception):
    """The nodes that could take a stage are cordoned."""


@dataclass(frozen=True)
class ClusterNode:
    """A node that lives."""

    id: str
    host: str
    resources: dict[str, float]
    """Ray's names and all there is of each, whoever uses it now."""
    labels: dict[str, str]

    def room_for(self, each: Mapping[str, float], labels: Mapping[str, str]) -> int:
        """How many workers that take so much fit onto it if nothing else runs there."""
        if not fits(labels, self.labels):
            return 0
        return int(min((self.resources.get(name, 0.0) // amount for name, amount in each.items() if amount), default=1))


def living_nodes(ray: ModuleType) -> list[ClusterNode]:
    """The nodes of the cluster that this process is connected to, heads without cores too."""
    return [
        ClusterNode(node["NodeID"], node["NodeManagerHostname"], node["Resources"], node.get("Labels", {}))
        # Ray lists dead nodes too.
        for node in ray.nodes()
        if node["Alive"]
    ]


def cordon_of(node: ClusterNode, found: Mapping[str, Mark]) -> Mark | None:
    """What keeps stages off a node: a cordon of it, of its host, or of a device of its host, since Ray gives out nodes."""
    named = [
        mark for place, mark in found.items() if place in (node.id, node.host) or place.startswith(f"{node.host}/")
    ]
    return named[0] if named else None


def fits(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels may be chosen: each label is equal, or, as `!in(a, b)` says, none of some."""
    for name, wanted in selector.items():
        if wanted.startswith("!in("):
            if labels.get(name) in re.split(", ?", wanted[len("!in(") : -1]):
                return False
        elif labels.get(name) != wanted:
            return False
    return True


def keep_off(placement: Placement, ids: Iterable[str]) -> Placement:
    """The same placement, but on none of these nodes. One that the recipe itself puts on a node by its id stays."""
    labels = {name: value for name, value in placement.labels.items() if name != ID_LABEL or not value.startswith("!")}
    if named := sorted(ids):
        # No space after the commas: Ray 2.60 takes one, and then as a part of the id.
        labels = {ID_LABEL: f"!in({','.join(named)})", **labels}
    return placement.model_copy(update={"labels": labels})


def nodes_left_out(placement: Placement) -> list[str]:
    """The ids of the nodes that `keep_off` has left out."""
    value = placement.labels.get(ID_LABEL, "")
    return value.removeprefix("!in(").removesuffix(")").split(",") if value.startswith("!in(") else []


def allowed_placement(
    ray: ModuleType, store: Store, placement: Placement, each: Mapping[str, float], workers: int = 1
) -> Placement:
    """A placement off the nodes that are cordoned now.

    Raises NoNodeLeft where `workers`, of which each takes so much, would fit onto the cluster's nodes but for the cordons. Where
    they would not fit anyhow they wait, since a cluster may grow.
    """
    found = cordons(store)
    nodes = living_nodes(ray)
    marks = {node.id: mark for node in nodes if (mark := cordon_of(node, found))}
    off = keep_off(placement, marks)
    every = keep_off(placement, [])
    needed = {**each, **placement.resources}
    # Counted without them, for a recipe may put the stage on a cordoned node by its id.
    sound = [node for node in nodes if node.id not in marks]
    if marks and _room(sound, needed, off) < workers <= _room(nodes, needed, every):
        what = ", ".join(f"{amount:g} {name}" for name, amount in needed.items() if amount)
        raise NoNodeLeft(
            f"no node of the cluster is left for a stage with {workers} worker(s) of {what}: "
            f"{told_cordons(dict.fromkeys(marks.values()))}; or add nodes"
        )
    return off


@dataclass(frozen=True)
class NodeCheck:
    """What came of checking one device of a node on demand."""

    node: str
    health: DeviceHealth | None
    problem: str = ""
    """Why there is no result: the device is in use, or the node cannot run the check."""


class DeviceChecker:
    """An actor that checks the device that Ray has given it."""

    def check(self, store: Store, node: str) -> DeviceHealth:
        gpus = importlib.import_module("ray").get_gpu_ids()
        return known_device(store, "cuda" if gpus else "cpu", node=node, label=f"cuda:{gpus[0]}" if gpus else "")


def check_nodes(ray: ModuleType, store: Store, nodes: Sequence[ClusterNode]) -> list[NodeCheck]:
    """Check each GPU of these nodes, or the CPU of those without, all at once. A GPU that a stage has is not waited for."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked: dict[Any, ClusterNode] = {}
    actors: list[Any] = []
    try:
        for node in nodes:
            where = NodeAffinitySchedulingStrategy(node.id, soft=False)
            gpus = int(node.resources.get("GPU", 0))
            for _ in range(gpus or 1):
                actor = ray.remote(num_cpus=0, num_gpus=min(gpus, 1), scheduling_strategy=where)(DeviceChecker).remote()
                # Kept until the end: Ray would give another actor the GPU of one that has gone.
                actors.append(actor)
                asked[actor.check.remote(store, node.id)] = node
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=CHECK_SECONDS)
        return [_checked(ray, reference, node, reference in done) for reference, node in asked.items()]
    finally:
        for actor in actors:
            ray.kill(actor)


def _checked(ray: ModuleType, reference: Any, node: ClusterNode, done: bool) -> NodeCheck:
    if not done:
        return NodeCheck(node.id, None, f"no result within {CHECK_SECONDS:.0f} s: a GPU is in use, or the node is busy")
    try:
        return NodeCheck(node.id, ray.get(reference))
    except ray.exceptions.RayError as error:
        return NodeCheck(node.id, None, str(error).strip().splitlines()[-1])


def _room(nodes: Sequence[ClusterNode], each: Mapping[str, float], placement: Placement) -> int:
    return sum(node.room_for(each, placement.labels) for node in nodes)


def keep_off_cordoned(
    ray: ModuleType, workspace: Workspace, address: str, each: Mapping[str, float], workers: int = 1
) -> None:
    """Keep what the workspace's stage starts from now on off cordoned nodes; see `allowed_placement`."""
    # A Ray of this machine has this one node, and whether the machine is cordoned is asked before its stages.
    if address in ("local", "off"):
        return
    compute = workspace.compute
    placement = allowed_placement(ray, workspace.store, compute.placement, each, workers)
    workspace.compute = compute.model_copy(update={"placement": placement})
