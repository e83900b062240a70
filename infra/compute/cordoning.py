"""What follows a failed health check: the device or node is cordoned, and the stage goes on with another one where there is one.

On a Ray cluster a node is cordoned, and the stage is placed on the others. On a single machine a device is cordoned, and the
stage gets another of its slots. Where nothing is left the error stands, and says what was measured and how to go on.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass

from infra.compute.health import DeviceUnfit
from infra.events import Listener, Warned
from infra.records.nodes import cordon_text, cordons, set_cordon, told_cordons
from infra.session import HeldDevice, NoDeviceLeft, Session
from infra.stage import Stage
from infra.storage.store import Store
from infra.workspace import Workspace


@dataclass(frozen=True)
class Cordoning:
    """Cordons what failed the health check of one attempt, and moves the attempt away from it."""

    workspace: Workspace
    held: HeldDevice | None
    """The slot of this machine that the stage has; None where it has none to itself."""
    on_cluster: bool
    """Whether a cluster places the stage, or the workers of its group."""
    listener: Listener

    def __call__(self, error: DeviceUnfit) -> None:
        """Returns when the stage may start again: elsewhere. Raises NoDeviceLeft where it cannot."""
        workspace, store = self.workspace, self.workspace.store
        places = cordon_unfit(store, error)
        known = workspace.notes.get("unfit_devices", [])
        workspace.note(unfit_devices=[*known, *(device.row() for device in error.devices)])
        if not self.on_cluster:
            if self.held is None:
                raise NoDeviceLeft(
                    f"{error}. Nothing else of this machine can take stage {workspace.stage}. "
                    f"{told_cordons([cordons(store)[places[0]]])} (after a repair); execution.health=false runs without the check"
                ) from error
            self.held.exchange(unfit_slots(store, self.held.kind))
            workspace.compute = workspace.compute.model_copy(update={"device": self.held.name})
        self.listener(
            Warned(f"{error}; {', '.join(places)} is cordoned (olmo2 nodes), and the stage goes on elsewhere")
        )


def cordon_unfit(store: Store, error: DeviceUnfit) -> list[str]:
    """Cordon what failed; the places. A cordon that is there already, of a person above all, stays as it is."""
    found = cordons(store)
    for device in error.devices:
        if device.place not in found:
            found[device.place] = set_cordon(store, device.place, device.why())
    return list(dict.fromkeys(device.place for device in error.devices))


def unfit_slots(store: Store, kind: str) -> dict[int, str]:
    """Number of each cordoned device of this machine and kind, and why it is."""
    beginning = f"{socket.gethostname()}/{kind}:"
    found = cordons(store).items()
    return {
        int(place.removeprefix(beginning)): cordon_text(mark) for place, mark in found if place.startswith(beginning)
    }


def check_not_cordoned(stage: Stage, session: Session) -> None:
    """Raise NoDeviceLeft where this machine is cordoned, or the device that the recipe names, and the stage would run there."""
    execution, host = session.execution, socket.gethostname()
    if execution.cluster:
        return
    found = cordons(session.store)
    places = [host, f"{host}/{execution.device}"] if stage.process else [host]
    if marks := [found[place] for place in places if place in found]:
        raise NoDeviceLeft(f"stage {stage.label} would run on this machine, and {told_cordons(marks)}")


Elsewhere = Callable[[DeviceUnfit], None]

__all__ = ["Cordoning", "Elsewhere", "check_not_cordoned", "cordon_unfit", "unfit_slots"]
