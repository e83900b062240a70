"""Trains one model data parallel on several processes: what each rank holds, and how ranks exchange it.

Source: RECIPE D (fp32 master weights and fp32 gradient reduction under bf16 compute); PyTorch's DistributedDataParallel and
`fully_shard`. A group computes what one process computes, up to the order of sums. Losses carry divisors or weights of the
whole batch, so every rank's gradients are parts of one sum.

Where a training computes in bf16, the sharded weights of blocks travel in bf16, as in the published runs. Matmuls round
their weights so anyway. The weights of norms within blocks, and their gradients, round only here: one process and whole
copies (ddp) keep them fp32. Embedding, final norm and head travel in fp32, and so do all gradients.

A model is built without memory (`transformer.on_meta_device`), sharded, and filled tensor by tensor with the rows that are held
here. Besides its shard of the model, a rank never holds more than those rows of one tensor.

Of where it runs it knows torch.distributed only; whoever starts the processes has called `init_process_group`.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool
from torch import Tensor, nn

from model.config import Compute, Parallel, Precision
from model.network.sharded_tensors import is_sharded, local_part, rows_of_shard, whole_tensor
from model.network.transformer import Transformer, separate_projections
from model.parallel.host_weights import HostWeights

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

Objective = Callable[[Any, Any], tuple[Tensor, dict[str, Tensor]]]
"""(model, batch on the device) -> scalar to minimise, metrics. Each objective names the fields of its batch in a TypedDict."""
Weights = Callable[[str, Sequence[int], int, int], Tensor]
"""Where values come from: name and whole shape of a parameter, first and end row -> those rows, on the host."""


class ObjectiveModule(nn.Module):
    """The model with its objective as one forward pass, around which gradients are exchanged."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, objective: Callable[[Any, Any], Any], batch: dict[str, Tensor]) -> Any:
        return objective(self.model, batch)


@dataclass
class Group:
    """The ranks that train one model, as one of them sees them; by default it is alone."""

    rank: int = 0
    """This process's number; rank 0 reports and writes what is written once."""
    world: int = 1
    """The world size: how many processes train together."""
    shard: int = 0
    """Which part of every tensor this process holds."""
    shards: int = 1
    """Into how many parts tensors are cut along their first dimension."""
    saves: bool = True
    """Whether this process writes its part to save points; copies of a part are written once."""
    wrapped: nn.Module | None = None
    """The wrapped model; None for one process."""
    skeleton: nn.Module | None = None
    """The model without weights, as it was before it was sharded."""
    host: Any = None
    """The same processes, exchanging small values on the host between steps."""
    beside: Any = None
    """The same for one thread that works alongside the training."""
    device: str = ""
    """Where it computes, if the weights are on the host; empty where they are."""
    lender: HostWeights | None = None
    """Brings whole weights from the host for a pass; None where they are on the device, or sharded."""

    def forward(
        self, objective: Objective, model: nn.Module
    ) -> Callable[[dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]:
        """The objective as a function of this worker's part of a micro-batch, through the wrapped model where there is one."""
        return partial(objective, model) if self.wrapped is None else partial(self.wrapped, objective)

    @torch.no_grad()
    def apply(self, function: Callable[[Any, Any], Tensor], model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Call a function of model and batch without gradients. Sharded weights are gathered block by block, so all ranks
        have to call this together; afterwards the weights are sharded again.
        """
        if self.lender is not None:
            with self.lender.at_hand():
                return function(model, batch)
        if self.wrapped is None or not is_sharded(next(model.parameters())):
            return function(model, batch)
        # The forward hooks of the wrapper gather the weights, so the function has to run inside its forward.
        output = self.wrapped(lambda _, part: function(model, part), batch)
        for module in _sharded_modules(self.wrapped):
            module.reshard()
        return output

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Gradient accumulation around a micro-batch: whole copies (ddp) all-reduce gradients at a step's `last` only.

        Sharded gradients are reduce-scattered after each micro-batch, since whole ones would not fit.
        """
        if isinstance(self.wrapped, nn.parallel.DistributedDataParallel) and not last:
            # no_sync: the all-reduce of earlier micro-batches would be repeated by the last one, which sends their
            # sum.
            with self.wrapped.no_sync():
                yield
            return
        if (root := _sharded_root(self.wrapped)) is not None:
            # In hsdp, copies of a shard all-reduce at the last micro-batch only; the reduce-scatter happens at each.
            root.set_requires_all_reduce(last)
        yield

    def total(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums of scalars over all workers, on the device, with one all-reduce."""
        if self.world == 1:
            return metrics
        values = torch.stack(list(metrics.values()))
        dist.all_reduce(values)
        return dict(zip(metrics, values.unbind(), strict=True))

    def gather(self, value: Any) -> list[Any] | None:
        """Return every rank's value on rank 0 (a gather), None on the others; for one thread alongside the training."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.rank == 0 else None
        # Gloo on the host and its own group: the saving thread must not mix its messages with the training's.
        dist.gather_object(value, values, dst=0, group=self.beside)
        return values

    def exchange(self, value: Any) -> list[Any]:
        """Return every rank's value, in order, on all ranks (an all-gather)."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.host)
        return values

    def any_of(self, flags: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Return which flags any rank has set: an all-reduce by maximum on the host."""
        if self.world == 1:
            return flags
        found = torch.from_numpy(flags.astype(np.uint8))
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.host)
        return found.numpy() > 0

    @contextlib.contextmanager
    def holding(self, module: nn.Module) -> Iterator[None]:
        """In this context every rank holds the whole weights of a module besides its own shard, in the type in which they
        travel. Modules that are gathered together with it are whole too. All ranks have to enter and leave together.
        """
        holders = _holders(self.wrapped, module)
        for holder in holders:
            holder.unshard()
        try:
            yield
        finally:
            for holder in holders:
                holder.reshard()


def host_group(stall_seconds: float) -> dist.ProcessGroup:
    """One more group of all ranks, for exchanges on the host whatever the devices use. All ranks have to make it together."""
    from torch.distributed.constants import default_pg_timeout

    # As long as a step may take, since some wait for others there, and never less than torch's own.
    patience = max(default_pg_timeout, timedelta(seconds=stall_seconds))
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=patience))


def on_host(model: Transformer, compute: Compute, precision: Precision) -> Group:
    """Put a frozen model, or this rank's shard of it, into the host's memory, and join the group. Passes by `Group.apply` compute
    on the device. Raises ValueError as `distribute` does.
    """
    sharded = compute.parallel.workers > 1 and compute.parallel.data != "ddp"
    if sharded:
        return distribute(model, compute, precision, offload=True)
    group = distribute(model, compute.model_copy(update={"device": "cpu"}), precision)
    return replace(group, device=compute.device, lender=HostWeights(model, compute.device))


def distribute(model: nn.Module, compute: Compute, precision: Precision, *, offload: bool = False) -> Group:
    """Put the model, or this rank's shard of it, on the device and join the group. `precision` is that of the matmuls.

    A model without memory (on the meta device) gets what its part needs, to be filled by `fill_weights`. One of which nothing
    requires gradients is held in the same way; its copies exchange nothing. With `offload`, shards stay on the host and are
    gathered from there. Raises ValueError when the process group is not there or has another size.
    """
    parallel, device = compute.parallel, compute.device
    # Copied before sharding, since `fully_shard` changes the modules in place.
    skeleton = _without_weights(model) if parallel.workers > 1 and parallel.data != "ddp" else None
    recompute(model, parallel.activation_checkpointing)
    if parallel.workers == 1:
        _put(model, device)
        return Group()
    if not dist.is_initialized() or dist.get_world_size() != parallel.workers:
        found = dist.get_world_size() if dist.is_initialized() else 1
        raise ValueError(
            f"parallel.workers={parallel.workers}, but {found} process(es) have joined; start the stage through "
            "`execution.parallel`, or call torch.distributed.init_process_group in as many processes"
        )
    # Two groups, because two threads that use one group at once may pair each other's messages.
    host, beside = (host_group(compute.stall_seconds) for _ in range(2))
    rank = dist.get_rank()
    if parallel.data == "ddp":
        _put(model, device)
        # DDP refuses a module without trainable parameters, such as a reference model.
        trained = any(parameter.requires_grad for parameter in model.parameters())
        wrapped = (
            nn.parallel.DistributedDataParallel(ObjectiveModule(model), gradient_as_bucket_view=True)
            if trained
            else None
        )
        return Group(rank, parallel.workers, saves=rank == 0, wrapped=wrapped, host=host, beside=beside)
    wrapped, mesh = _shard(model, parallel, device, precision, offload=offload)
    _put(wrapped, "cpu" if offload else device)
    shards = mesh.size(mesh.ndim - 1)
    return Group(
        rank,
        parallel.workers,
        shard=mesh.get_local_rank(mesh.ndim - 1),
        shards=shards,
        # In hsdp ranks 0 .. shards - 1 are the first copy; the others hold the same rows and need not write them.
        saves=rank < shards,
        wrapped=wrapped,
        skeleton=skeleton,
        host=host,
        beside=beside,
        device=device if offload else "",
    )


def _put(model: nn.Module, device: str) -> None:
    """Move a model, or give one without memory its memory."""
    if next(model.parameters()).is_meta:
        model.to_empty(device=device)
    else:
        model.to(device)


@torch.no_grad()
def fill_weights(model: nn.Module, weights: Weights, group: Group) -> None:
    """Give every parameter its values, one at a time; a sharded parameter gets the rows that this rank holds."""
    for name, parameter in model.named_parameters():
        local_part(parameter).copy_(weights(name, parameter.shape, *local_rows(parameter, group)))


def local_rows(tensor: Tensor, group: Group) -> tuple[int, int]:
    """First and end row, within the whole tensor, of what this process holds."""
    return rows_of_shard(len(tensor), group.shard, group.shards) if is_sharded(tensor) else (0, len(tensor))


def _shard(
    model: nn.Module, parallel: Parallel, device: str, precision: Precision, *, offload: bool = False
) -> tuple[nn.Module, "DeviceMesh"]:
    """Shard the weights along the first dimension, and say which of them are gathered together: the embedding, each block,
    and final norm with head. The last two stay gathered from the end of the forward pass to the beginning of backward.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    kind = torch.device(device).type
    if parallel.data == "hsdp":
        shape = (parallel.replicas, parallel.workers // parallel.replicas)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("replicas", "shards"))
    else:
        mesh = init_device_mesh(kind, (parallel.workers,), mesh_dim_names=("shards",))
    # Divisors, weights and references of a batch, and rotary tables, stay fp32.
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    rounded = replace(exact, param_dtype=torch.bfloat16) if precision == "bf16" else exact
    # Only copies to a GPU gain from pinned memory.
    kept = CPUOffloadPolicy(pin_memory=kind == "cuda") if offload else OffloadPolicy()
    separate_projections(model)
    # An actor-critic pair holds two Transformers; each is sharded by itself.
    for part in (part for part in model.modules() if isinstance(part, Transformer)):
        embedding = fully_shard(part.embedding, mesh=mesh, mp_policy=exact, offload_policy=kept)
        # The gradient of a table does not depend on its values.
        embedding.set_unshard_in_backward(False)
        for block in part.blocks:
            fully_shard(block, mesh=mesh, mp_policy=rounded, offload_policy=kept)
        # Not resharded: backward begins with the head, so freeing it would mean gathering it again at once.
        fully_shard(
            [part.norm, part.head], mesh=mesh, mp_policy=exact, offload_policy=kept, reshard_after_forward=False
        )
    wrapped = ObjectiveModule(model)
    fully_shard(wrapped, mesh=mesh, mp_policy=exact, offload_policy=kept)
    return wrapped, mesh


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy of the modules whose parameters have shapes only."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters()}
    return copy.deepcopy(model, cast(dict[int, Any], empty))


@torch.no_grad()
def whole_model(group: Group, model: nn.Module) -> nn.Module:
    """The model with whole weights: on the host of rank 0; elsewhere it has none.

    A model that is not sharded is returned as it is. All workers have to call this.
    """
    if group.skeleton is None:
        return model
    weights = {}
    for name, parameter in model.named_parameters():
        # A collective call on every rank, though only rank 0 keeps the outcome: others would otherwise wait forever.
        whole = whole_tensor(local_part(parameter.detach()), parameter)
        if group.rank == 0:
            weights[name] = whole.cpu()
    if group.rank == 0:
        group.skeleton.load_state_dict(weights, assign=True)
    return group.skeleton


def _sharded_root(wrapped: nn.Module | None) -> "FSDPModule | None":
    """The wrapped model where it is sharded."""
    if wrapped is None or isinstance(wrapped, nn.parallel.DistributedDataParallel):
        return None
    return cast("FSDPModule", wrapped)


def _sharded_modules(wrapped: nn.Module | None) -> "list[FSDPModule]":
    if (root := _sharded_root(wrapped)) is None:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in cast(nn.Module, root).modules() if isinstance(module, FSDPModule)]


def _holders(wrapped: nn.Module | None, module: nn.Module) -> "list[FSDPModule]":
    """The sharded modules that gather the parameters of a module: for each parameter the nearest one around it."""
    if (root := _sharded_root(wrapped)) is None:
        return []
    from torch.distributed.fsdp import FSDPModule

    members = {part for part in module.modules() if next(part.parameters(recurse=False), None) is not None}
    nearest: dict[str, FSDPModule] = {}
    found: dict[FSDPModule, None] = {}
    for name, part in cast(nn.Module, root).named_modules():
        # named_modules lists parents first, so the nearest sharded parent of a child is known already.
        nearest[name] = part if isinstance(part, FSDPModule) else nearest[name.rpartition(".")[0]]
        if part in members:
            found[nearest[name]] = None
    return list(found)


# --- recomputation ------------------------------------------------------------------------------------


def recompute(model: nn.Module, policy: str) -> None:
    """Keep only the inputs of the named parts for the backward pass and compute the rest again.

    Run eagerly, values do not change. Compiled, all blocks share one code under every policy. The recomputation is part of
    what the compiler fuses, so bf16 values may round elsewhere than without it.
    """
    if policy == "off":
        return
    for block in cast(Any, model).blocks:
        block.recomputed = policy == "blocks"
        block.feed_forward.recomputed = policy == "feed_forward"
