"""Of a sharded tensor each rank holds some rows; this module says which, and gathers the whole.

Source: PyTorch's DTensor, as `fully_shard` makes them. A tensor is sharded along its first dimension into equal runs of
rows. So where a row lies follows from the shape and the number of shards alone. Knows torch.distributed only.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only some rows of a tensor."""
    if not dist.is_available() or not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """The rows that this process holds, sharing memory with the tensor; a tensor that is not sharded as it is."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


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
    # The norm of sharded gradients is a DTensor with a partial sum; full_tensor() adds the shards up.
    return cast(Any, norm).full_tensor() if is_sharded(norm) else norm
