"""One model trained by several processes: what each holds, which examples it takes, and how they come together.

Source: RECIPE D (fp32 master weights and fp32 gradient reduction under bf16 compute); PyTorch's
DistributedDataParallel and `fully_shard`. A group computes what one process computes, up to the order of sums:
losses carry divisors or weights of the whole batch, so every worker's gradients are parts of one sum. Deviation:
sharded weights travel in fp32, not in bf16, so that a group rounds where one process does.

Knows torch.distributed only; whoever starts the processes has called `init_process_group`.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import Parallel
from model.losses import IGNORE

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

Batch = dict[str, Any]
Objective = Callable[[Any, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


class Trainee(nn.Module):
    """The model with its objective as one forward pass, around which gradients are exchanged."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, objective: Objective, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return objective(self.model, batch)


@dataclass
class Group:
    """The processes that train one model, as one of them sees them; alone by default."""

    rank: int = 0
    world: int = 1
    shard: int = 0
    """Which part of every tensor this process holds."""
    shards: int = 1
    """Into how many parts tensors are cut along their first dimension."""
    saves: bool = True
    """Whether this process writes its part to save points; copies of a part are written once."""
    trainee: nn.Module | None = None
    """The wrapped model; None for one process."""
    skeleton: nn.Module | None = None
    """The model without weights, as it was before it was cut into parts."""
    host: Any = None
    """Processes that exchange small values on the host, beside the training's own exchange."""

    def run(self, objective: Objective, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on this worker's part of a micro-batch."""
        return objective(model, batch) if self.trainee is None else self.trainee(objective, batch)

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around a micro-batch: copies of the model exchange gradients at a step's last one.

        Sharded gradients are exchanged at each, since whole ones would not fit.
        """
        if isinstance(self.trainee, nn.parallel.DistributedDataParallel) and not last:
            with self.trainee.no_sync():
                yield
        else:
            yield

    def total(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums of scalars over all workers, on the device, with one exchange."""
        if self.world == 1:
            return metrics
        values = torch.stack(list(metrics.values()))
        dist.all_reduce(values)
        return dict(zip(metrics, values.unbind(), strict=True))

    def gather(self, value: Any) -> list[Any] | None:
        """Every worker's value on the first worker, None on the others. May run beside the training."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self.host)
        return values

    def check_same(self, what: str, value: int) -> None:
        """Raise RuntimeError when workers do not have the same value: going on would mix two runs."""
        if self.world > 1:
            values: list[Any] = [None] * self.world
            dist.all_gather_object(values, value, group=self.host)
            if len(set(values)) > 1:
                raise RuntimeError(f"workers disagree about the {what}: {values}; start the group again")

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Every worker holds whole weights meanwhile, for code that uses the model without the trainee's forward."""
        modules = _sharded_modules(self.trainee)
        for module in modules:
            module.unshard()
        try:
            yield
        finally:
            for module in modules:
                module.reshard()


def spread(model: nn.Module, parallel: Parallel, device: str) -> Group:
    """Put the model on the device, or this process's part of it, and join the group.

    Raises ValueError when the process group is not there or has another size.
    """
    skeleton = _without_weights(model) if parallel.workers > 1 and parallel.data != "ddp" else None
    recompute(model, parallel.activation_checkpointing)
    if parallel.workers == 1:
        model.to(device)
        return Group()
    if not dist.is_initialized() or dist.get_world_size() != parallel.workers:
        found = dist.get_world_size() if dist.is_initialized() else 1
        raise ValueError(
            f"parallel.workers={parallel.workers}, but {found} process(es) have joined; start the stage through "
            "`execution.parallel`, or call torch.distributed.init_process_group in as many processes"
        )
    rank, host = dist.get_rank(), dist.new_group(backend="gloo")
    if parallel.data == "ddp":
        trainee = nn.parallel.DistributedDataParallel(Trainee(model.to(device)), gradient_as_bucket_view=True)
        return Group(rank, parallel.workers, saves=rank == 0, trainee=trainee, host=host)
    trainee, mesh = _shard(model, parallel, device)
    shards = mesh.size(mesh.ndim - 1)
    return Group(
        rank,
        parallel.workers,
        shard=mesh.get_local_rank(mesh.ndim - 1),
        shards=shards,
        saves=rank < shards,
        trainee=trainee,
        skeleton=skeleton,
        host=host,
    )


def _shard(model: nn.Module, parallel: Parallel, device: str) -> tuple[nn.Module, "DeviceMesh"]:
    """Cut the weights of every block, and then what is left, along the first dimension."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    kind = torch.device(device).type
    if parallel.data == "hsdp":
        shape = (parallel.replicas, parallel.workers // parallel.replicas)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("replicas", "shards"))
    else:
        mesh = init_device_mesh(kind, (parallel.workers,), mesh_dim_names=("shards",))
    # Divisors, weights and references of a batch stay fp32; autocast rounds weights where it does in one process.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in cast(Any, model).blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    trainee = Trainee(model)
    fully_shard(trainee, mesh=mesh, mp_policy=policy)
    return trainee, mesh


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy of the modules whose parameters have shapes only."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters()}
    return copy.deepcopy(model, cast(dict[int, Any], empty))


def _sharded_modules(trainee: nn.Module | None) -> "list[FSDPModule]":
    if trainee is None or isinstance(trainee, nn.parallel.DistributedDataParallel):
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in trainee.modules() if isinstance(module, FSDPModule)]


# --- recomputation ------------------------------------------------------------------------------------


def recompute(model: nn.Module, policy: str) -> None:
    """Keep only the inputs of the named parts for the backward pass and compute the rest again.

    Run eagerly, values do not change. Compiled, the recomputation is part of what the compiler fuses, so that bf16 values may
    round elsewhere than without it (seen with `blocks`).
    """
    if policy == "off":
        return
    for block in cast(Any, model).blocks:
        part = block if policy == "blocks" else block.feed_forward
        # The forward passes draw no random numbers, so no generator state needs to be kept.
        part.forward = functools.partial(
            checkpoint, type(part).forward.__get__(part), use_reentrant=False, preserve_rng_state=False
        )


# --- parts of tensors ---------------------------------------------------------------------------------


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only some rows of a tensor."""
    if not dist.is_available() or not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """The rows that this process holds, sharing memory with the tensor; a tensor that is not sharded as it is."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def local_rows(tensor: Tensor, group: Group) -> tuple[int, int]:
    """First and end row, within the whole tensor, of what this process holds."""
    if not is_sharded(tensor):
        return 0, len(tensor)
    return rows_of_shard(len(tensor), group.shard, group.shards)


def rows_of_shard(rows: int, shard: int, shards: int) -> tuple[int, int]:
    """First and end row of one shard: equal parts, rounded up, so that the last ones may be short or empty."""
    size = -(-rows // shards)
    return min(shard * size, rows), min((shard + 1) * size, rows)


def whole_tensor(part: Tensor, like: Tensor) -> Tensor:
    """A tensor cut as `like` is, put together on every worker; itself where `like` is not sharded."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    cut = cast(Any, like)
    joined = DTensor.from_local(
        part, cut.device_mesh, cut.placements, run_check=False, shape=cut.shape, stride=cut.stride()
    )
    return joined.full_tensor()


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """L2 norm of all tensors together, a scalar; of sharded ones over the rows of all workers, which all have to call this."""
    norm = nn.utils.get_total_norm(tensors)
    return cast(Any, norm).full_tensor() if is_sharded(norm) else norm


@torch.no_grad()
def whole_model(group: Group, model: nn.Module) -> nn.Module:
    """The model with whole weights: on the host of the first worker; elsewhere it has none.

    A model that is not sharded is returned as it is. All workers have to call this.
    """
    if group.skeleton is None:
        return model
    weights = {}
    for name, parameter in model.named_parameters():
        whole = whole_tensor(local_part(parameter.detach()), parameter)
        if group.rank == 0:
            weights[name] = whole.cpu()
    if group.rank == 0:
        group.skeleton.load_state_dict(weights, assign=True)
    return group.skeleton


# --- parts of batches ---------------------------------------------------------------------------------


def share_of(batches: Sequence[Batch], rank: int, world: int) -> Sequence[Batch]:
    """The part of a step's micro-batches that a worker computes; all workers get equally many.

    Whole micro-batches where they divide evenly, else some rows of each.
    """
    if world == 1:
        return batches
    if len(batches) % world == 0:
        size = len(batches) // world
        return batches[rank * size : (rank + 1) * size]
    return [rows_of(batch, rank, world) for batch in batches]


def rows_of(batch: Batch, rank: int, world: int) -> Batch:
    """A worker's rows of a micro-batch, or of its pairs where `weights` has one value for two rows of `ids`.

    A worker that gets no row takes the first one with weight 0. Raises ValueError for a micro-batch whose loss depends on
    which rows are together: it needs `divisor` or `weights`.
    """
    count = len(batch["ids"])
    if "weights" not in batch and "divisor" not in batch:
        raise ValueError(
            "a micro-batch with neither `divisor` nor `weights` cannot be split over workers, since its loss is a mean over "
            "its own tokens; add the divisor of the whole batch"
        )
    pairs = "weights" in batch and batch["weights"].ndim == 1 and 2 * len(batch["weights"]) == count
    units = count // 2 if pairs else count
    own = np.array_split(np.arange(units), world)[rank]
    members = own if len(own) else np.zeros(1, dtype=np.int64)
    rows = np.concatenate([members, units + members]) if pairs else members
    part: Batch = {}
    for name, value in batch.items():
        if value.ndim == 0:
            # Metrics are summed over workers, so a share of the micro-batch is a share of that share here.
            part[name] = value if name == "divisor" else value / np.float32(world)
        else:
            part[name] = value[rows if len(value) == count else members]
    if not len(own):
        _silence(part)
    return part


def _silence(batch: Batch) -> None:
    """Let a micro-batch count for nothing."""
    for name in ("weights", "token_share"):
        if name in batch:
            batch[name] = np.zeros_like(batch[name])
    if "weights" not in batch:
        batch["labels"] = np.full_like(batch["labels"], IGNORE)
