"""Bytes of all tensors that live while the trainer makes updates: what the plan's memory is compared with."""

import weakref
from typing import Any, Self, cast

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.config import Compute, ModelConfig, Parallel
from model.network.transformer import Transformer, on_meta_device
from model.parallel.group import Group, _shard, recompute
from model.training.configs import LossConfig, OptimConfig
from model.training.loop import Course, TrainState, new_state, train_step
from model.training.losses import language_model_objective
from model.training.optim import Optimizer
from model.training.schedule import ScheduleConfig

SCHEDULE = ScheduleConfig(learning_rate=1e-3, unit="steps", warmup=2, length=10)


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still there, now and at most.

    Operations show new storages, weak references those that are gone, and `resize_` what `fully_shard` empties and fills.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.most = 0
        self.resize = torch.UntypedStorage.resize_

    def __enter__(self) -> Self:
        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            done = self.resize(storage, size)
            if storage._cdata in self.sizes:
                self._set(storage._cdata, size)
            return done

        cast(Any, torch.UntypedStorage).resize_ = resize
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        cast(Any, torch.UntypedStorage).resize_ = self.resize
        super().__exit__(*raised)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.to_local() if isinstance(tensor, DTensor) else tensor)
        return made

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device.type != "meta" and storage._cdata not in self.sizes:
            weakref.finalize(storage, self._set, storage._cdata, None)
            self._set(storage._cdata, storage.nbytes())

    def _set(self, key: int, size: int | None) -> None:
        self.now += (size or 0) - self.sizes.pop(key, 0)
        if size is not None:
            self.sizes[key] = size
        self.most = max(self.most, self.now)


def trained(config: ModelConfig, precision: Any, parallel: Parallel, rows: int, length: int) -> tuple[float, float]:
    """Most bytes at once in the second of two updates, and bytes after it, with `rows` rows a pass for each process."""
    with LiveBytes() as live:
        model = Transformer(config, seed=0) if parallel.workers == 1 else on_meta_device(config)
        state = new_state(model, OptimConfig(precision=precision), Compute(parallel=parallel))
        return _second_update(state, live, rows, length, 2 * parallel.workers)


def imagined(config: ModelConfig, precision: Any, parallel: Parallel, rows: int, length: int) -> tuple[float, float]:
    """The same for one worker of a sharded group of more than two, on tensors without data: published widths fit here.

    Exchanges with the group do nothing; all else is what a worker does.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=parallel.workers)
    try:
        model = on_meta_device(config)
        recompute(model, parallel.activation_checkpointing)
        wrapped, _ = _shard(model, parallel, "cpu", precision)
        with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
            wrapped.to_empty(device="cpu")
            optimizer = Optimizer(model.named_parameters(), OptimConfig(precision=precision))
            group = Group(world=parallel.workers, shards=parallel.workers, wrapped=wrapped)
            return _second_update(TrainState(model, optimizer, group=group), live, rows, length, 2 * parallel.workers)
    finally:
        dist.destroy_process_group()


def _second_update(state: TrainState, live: LiveBytes, rows: int, length: int, passes: int) -> tuple[float, float]:
    objective = language_model_objective(LossConfig())
    batch = {name: np.zeros((rows, length), dtype=np.int64) for name in ("ids", "labels")}
    batch |= {"divisor": np.asarray(np.float32(rows * length))}
    for _ in range(2):
        live.most = live.now
        train_step(
            state,
            [batch] * passes,
            Course(objective=objective, batches=lambda _: [batch] * passes, schedule=SCHEDULE, steps=10),
            "cpu",
        )
    return live.most, live.now
