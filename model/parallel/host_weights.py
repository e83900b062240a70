"""Weights of a frozen model that stay in the host's memory and are on the device only while a pass reads them (off-loading).

What is outside the blocks is there for the whole pass, a block while it computes. A pass moves every weight once, 4 bytes a
parameter: at 7B 27 GB, about a second over PCIe 5.0, so passes should be large. Values do not change: a pass gives what it gives
with all weights on the device. Sharded weights are off-loaded by `fully_shard` itself (`group.py`).
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from model.network.transformer import Transformer


class HostWeights:
    """Lends a frozen model's weights, which are on the host, to a device."""

    def __init__(self, model: Transformer, device: str) -> None:
        self.device = torch.device(device)
        self._model = model
        for block in model.blocks:
            # Not by a hook: code that is not to be compiled calls `forward` itself, which has none.
            block.forward = partial(self._lent, block, block.forward)
        if self.device.type == "cuda":
            # Only from pinned memory does a copy to a GPU overlap with the host.
            for module, name, weight in _weights(model):
                setattr(module, name, nn.Parameter(weight.data.pin_memory(), requires_grad=False))

    def at_hand(self) -> contextlib.AbstractContextManager[None]:
        """In this context the model can be called with what is on the device."""
        return self._on_device([part for name, part in self._model.named_children() if name != "blocks"])

    def _lent(self, block: nn.Module, forward: Callable[..., Tensor], *given: Tensor) -> Tensor:
        with self._on_device([block]):
            return forward(*given)

    @contextlib.contextmanager
    def _on_device(self, parts: list[nn.Module]) -> Iterator[None]:
        kept = [item for part in parts for item in _weights(part)]
        for module, name, weight in kept:
            setattr(module, name, nn.Parameter(weight.to(self.device, non_blocking=True), requires_grad=False))
        try:
            yield
        finally:
            # The copies go: nothing writes to frozen weights, so the host's are as they were.
            for module, name, weight in kept:
                setattr(module, name, weight)


def _weights(part: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    return [
        (module, name, weight) for module in part.modules() for name, weight in module.named_parameters(recurse=False)
    ]
