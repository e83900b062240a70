"""Runs a whole stage on a node of a Ray cluster: one detached actor per stage, placed by the resources that it needs.

The driver only waits and passes events on, so it may be a laptop. The actor does not end with the driver: a driver that comes
back finds it by its name and waits for the same result. A node that dies takes its actor along; the driver starts another,
and the stage resumes from what it saved.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

from infra.compute.device_memory import allocator_environment
from infra.compute.nodes import ID_LABEL, keep_off_cordoned, living_nodes, nodes_left_out
from infra.compute.processes import portable
from infra.compute.ray_connection import connected
from infra.compute.stage_call import Finished, StageCall
from infra.events import Events, Listener, Progress, Raised, Returned, StageMessage, Waiting, Warned
from infra.settings import Placement
from infra.stopping import Interrupted, check_stopping

NAMESPACE = "olmo2"
"""Of the actors' names in a cluster."""
RESTARTS = 3
"""How often a stage is started again in one attempt after its node or process died."""
_POLL_SECONDS = 0.5
"""How often events are taken from the actor."""
_PATIENCE_SECONDS = 10.0
"""A stage that no node has taken after so long is told to be waiting, once."""
HAND_OVER_SECONDS = 60.0
"""How long an actor keeps an error, or a result, that no driver asks for. Results are in the store as well."""
CALLS_AT_ONCE = 4
"""Drivers that may ask an actor at a time, besides its work."""
SILENCE_SECONDS = 60.0
"""How long an actor that Ray can't reach, but has not found dead, is asked again. Ray finds a dead node in about 30 seconds."""
KEPT_EVENTS = 10_000
"""Events that are kept for a driver that is away; of more, the oldest go."""


class PlacedStageDied(Exception):
    """A stage's actor died again and again: its nodes were lost, or memory is short."""


@dataclass(frozen=True)
class Claim:
    """What a stage takes of a node while it runs, besides what its shards take for themselves."""

    cpus: float
    """0 for a stage that only hands out shards, or leads a group: a core held while they wait for one could block them."""
    gpus: float
    placement: Placement

    def least(self) -> dict[str, float]:
        """Ray's names of what a node must have: a core in any case, for the shards of a stage that takes none itself."""
        memory = {"memory": self.placement.memory} if self.placement.memory else {}
        return {"CPU": self.cpus or 1, "GPU": self.gpus, **memory}

    def text(self) -> str:
        """For people: `4 CPU, 1 GPU, label market=spot`; empty for nothing."""
        parts = [f"{amount:g} {name}" for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount]
        parts += [f"{self.placement.memory / 1e9:.1f} GB"] if self.placement.memory else []
        parts += [f"{amount:g} {name}" for name, amount in self.placement.resources.items()]
        off = nodes_left_out(self.placement)
        parts += [
            f"label {name}={value}" for name, value in self.placement.labels.items() if not off or name != ID_LABEL
        ]
        parts += [f"but for {len(off)} that are cordoned (olmo2 nodes)"] if off else []
        return ", ".join(parts)


class PlacedStage:
    """The actor: runs the stage in a thread and keeps what it tells until a driver takes it."""

    def __init__(self, address: str, device: str):
        self._address = address
        # Here and not in `begin`, whose arguments are of modules that import torch. The node's own value stays.
        os.environ.update(allocator_environment(device, os.environ))
        # Bounded, for a driver may be away for days; the numbers show it what it has missed.
        self._events: deque[tuple[int, StageMessage]] = deque(maxlen=KEPT_EVENTS)
        self._told = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, function: Callable[[StageCall], Finished], call: StageCall) -> None:
        """Start the stage, unless an earlier driver has."""
        with self._lock:
            if self._thread is None:
                # A daemon, so that the actor's process can end although the stage is stuck.
                self._thread = threading.Thread(target=self._run, args=(function, call), daemon=True)
                self._thread.start()

    def take(self, seen: int) -> list[tuple[int, StageMessage]]:
        """Events after number `seen`, each with its own number; the last of all is Returned or Raised.

        What a driver has seen is forgotten. So an answer that is lost on its way is given again.
        """
        with self._lock:
            while self._events and self._events[0][0] <= seen:
                self._events.popleft()
            return list(self._events)

    def _run(self, function: Callable[[StageCall], Finished], call: StageCall) -> None:
        # Ray's worker is a driver of its own for shards and groups; its connection stays as long as the stage needs it.
        with connected(self._address) as ray:
            call.workspace.report_to(Events(self._tell))
            call.workspace.note(node=ray.get_runtime_context().get_node_id())
            try:
                self._tell(Returned(function(call)))
            except BaseException as error:  # every error must reach the driver, once, here
                self._tell(Raised(portable(error)))
            # What the stage held is given back even if no driver ever comes.
            time.sleep(HAND_OVER_SECONDS)
            ray.kill(ray.get_runtime_context().current_actor)

    def _tell(self, message: StageMessage) -> None:
        with self._lock:
            # A driver that is away misses nothing by seeing the newest state of a bar only.
            last = self._events[-1][1] if self._events else None
            if isinstance(message, Progress) and isinstance(last, Progress) and last.description == message.description:
                self._events.pop()
            self._told += 1
            self._events.append((self._told, message))


def run_placed(
    function: Callable[[StageCall], Finished],
    call: StageCall,
    listener: Listener,
    *,
    address: str,
    name: str,
    code: str,
    claim: Claim,
    settled: Callable[[], Finished | None],
) -> Finished:
    """Call `function(call)` on a node of the cluster at `address` and return its result.

    `name` is the stage's, `code` a hash of its code: an actor of the same name and code, which an earlier driver started, is
    joined, one of other code is ended. `settled` reads the result that a stage left in the store which ended while no driver
    watched. Raises what the function raised, PlacedStageDied, or Interrupted; only the latter ends the actor.
    """
    with connected(address) as ray:
        for restart in range(RESTARTS + 1):
            # Asked again after each death: the stage may have ended just before its node did.
            if (result := settled()) is not None:
                return result
            # An old actor would hold the cores that the new one waits for.
            _end_other_code(ray, name, code)
            actor = _running(ray, f"{name}-{code}")
            # One that runs goes on although its node has been cordoned since.
            if actor is None:
                keep_off_cordoned(ray, call.workspace, address, claim.least())
                claim = replace(claim, placement=call.workspace.compute.placement)
                actor = _actor(ray, f"{name}-{code}", address, call.workspace.compute.device, claim)
            try:
                last_message = _ending(ray, actor, function, call, listener, claim)
            except Interrupted:
                _end(ray, actor)
                raise
            except (ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError) as error:
                last = error
                _end(ray, actor)  # it may still run where Ray can't reach it
                cause = str(error).partition("\n")[0]
                listener(Warned(f"lost the node or process of this stage ({restart + 1}): {cause}"))
                continue
            _end(ray, actor)
            if isinstance(last_message, Raised):
                raise last_message.error
            return last_message.value
    raise PlacedStageDied(
        f"stage {name} lost its node or process {RESTARTS + 1} times; the last error: {last}. Most often memory is short: give "
        "it more with execution.placement. Run the same command again: it resumes."
    )


def _running(ray: ModuleType, name: str) -> Any:
    """The actor of that name which an earlier driver started; None if there is none."""
    with suppress(ValueError):
        return ray.get_actor(name, namespace=NAMESPACE)
    return None


def _actor(ray: ModuleType, name: str, address: str, device: str, claim: Claim) -> Any:
    placement = claim.placement
    computes = claim.cpus or claim.gpus
    # An actor without a claim on cores fits every node, often the driver's, so its node is chosen here.
    where = {"label_selector": placement.labels} if computes else _some_worker(ray, placement.labels)
    options = {
        "name": name,
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "max_concurrency": CALLS_AT_ONCE,
        "num_cpus": claim.cpus,
        "num_gpus": claim.gpus,
        "resources": placement.resources,
        **({"memory": placement.memory} if placement.memory else {}),
        **where,
    }
    return ray.remote(PlacedStage).options(**options).remote(address, device)


def _some_worker(ray: ModuleType, labels: dict[str, str]) -> dict[str, object]:
    """The option that puts an actor which takes no core on a node that has cores, rather not the driver's."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    # Some nodes only lead: the head of a cluster often has no CPU to give.
    nodes = [node for node in living_nodes(ray) if node.room_for({"CPU": 1}, labels)]
    if not nodes:
        return {"label_selector": labels}  # a cluster that grows on demand may have none yet
    away = [node for node in nodes if node.id != here] or nodes
    # At random, so that many drivers that start at once spread over the nodes.
    chosen = away[int.from_bytes(os.urandom(4)) % len(away)]
    # With this strategy Ray takes no label selector besides.
    # Not soft: where the node has just died, Ray would take the driver's. It says so instead, and another one is drawn.
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(chosen.id, soft=False)}


def _end_other_code(ray: ModuleType, name: str, code: str) -> None:
    """End actors of the same stage whose code is not ours: they would write what nobody asks for any more."""
    listed = ray.util.list_named_actors(all_namespaces=True)
    ours = [actor["name"] for actor in listed if actor["namespace"] == NAMESPACE]
    for other in ours:
        # The same stage with other code differs in the end of its name only.
        if other.startswith(f"{name}-") and other != f"{name}-{code}":
            # It may have ended since it was listed.
            with suppress(ValueError):
                ray.kill(ray.get_actor(other, namespace=NAMESPACE))


def _end(ray: ModuleType, actor: Any) -> None:
    # It may have gone by itself.
    with suppress(ray.exceptions.RayError):
        ray.kill(actor)


def _ending(
    ray: ModuleType,
    actor: Any,
    function: Callable[[StageCall], Finished],
    call: StageCall,
    listener: Listener,
    claim: Claim,
) -> Returned | Raised:
    """Start the stage in its actor, or join it, and pass its events on until the last."""
    _asked(ray, lambda: actor.begin.remote(function, call), _waiting(listener, claim))
    seen = 0
    while True:
        for number, message in _asked(ray, partial(actor.take.remote, seen), lambda: None):
            # The next question begins after this event, so an answer that got lost is given again.
            seen = number
            if isinstance(message, Returned | Raised):
                return message
            listener(message)
        time.sleep(_POLL_SECONDS)


def _waiting(listener: Listener, claim: Claim) -> Callable[[], None]:
    """Tells once, when no node has taken the stage for a while."""
    asked, told = time.monotonic(), False

    def tell() -> None:
        nonlocal told
        if not told and time.monotonic() - asked > _PATIENCE_SECONDS:
            told = True
            listener(Waiting(f"waiting for a node of the cluster{' with ' if claim.text() else ''}{claim.text()}"))

    return tell


def _asked(ray: ModuleType, ask: Callable[[], Any], meanwhile: Callable[[], None]) -> Any:
    """An actor's answer. It is asked again while Ray can't reach it and does not know yet whether it has died."""
    silent_since: float | None = None
    while True:
        answer = ask()
        # A wait with an end, so that Ctrl-C is noticed although the actor works for hours.
        while not ray.wait([answer], timeout=_POLL_SECONDS)[0]:
            check_stopping()
            meanwhile()
        check_stopping()
        try:
            return ray.get(answer)
        except ray.exceptions.ActorUnavailableError:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > SILENCE_SECONDS:
                raise
            time.sleep(_POLL_SECONDS)


__all__ = ["Claim", "PlacedStageDied", "run_placed"]
