"""A stage whose devices can be made faulty: importing this module, as a stage's process does, plants the fault.

The device multiplies wrongly wherever the store's file FAULTY lists it: by torch's name of it, or by Ray's id of its node. The
check itself is the product's.
"""

from unittest import mock

import torch
import torch.distributed as dist

from infra.compute.health import DeviceHealth, Proof
from infra.compute.train_group import WorkDone
from infra.phase import Phase
from infra.stage import stage
from infra.workspace import Workspace
from tests.infra.stages_for_tests import Number, NumberConfig

FAULTY = "faulty.txt"
_alone, _matmul = Proof.alone, torch.matmul


def faulty_matmul(*factors: torch.Tensor) -> torch.Tensor:
    """A product with one wrong entry."""
    product = _matmul(*factors)
    product[..., 3, 5] += 1000
    return product


def checked_on_what_is_listed(self: Proof) -> DeviceHealth:
    store = self.workspace.store
    listed = store.read(FAULTY).decode().split() if store.exists(FAULTY) else []
    if self.workspace.compute.device not in listed and self.node not in listed:
        return _alone(self)
    with mock.patch("torch.matmul", faulty_matmul):
        return _alone(self)


Proof.alone = checked_on_what_is_listed


def number_on_device(ws: Workspace, config: NumberConfig) -> Number:
    """Notes where it ran; with `fail`, loses its numbers on the device of that name, or everywhere."""
    if config.fail in ("everywhere", ws.compute.device):
        raise FloatingPointError("step 7: loss nan")
    ws.note(ran_on=ws.compute.device)
    if dist.is_initialized() and dist.get_rank() > 0:
        raise WorkDone
    return ws.artifact(Number, value=config.value)


on_device = stage(number_on_device, name="on_device", version=1, process=True, grouped=True, trains=True)


@Phase
def number_of_device(config: NumberConfig) -> Number:
    return on_device(config)
