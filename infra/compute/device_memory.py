"""How PyTorch's allocator of GPU memory is told to work, in the environment of the processes that compute on a GPU.

With expandable segments the allocator maps memory to the end of one segment instead of reserving segments of fixed sizes. Batches
whose rows differ in length then leave fewer gaps that no later tensor fits into. Values do not depend on it. No GPU was at hand,
so what it saves is not measured.
"""

from collections.abc import Mapping

ALLOCATOR = "PYTORCH_ALLOC_CONF"
"""The allocator's variable since PyTorch 2.9."""
EXPANDABLE = "expandable_segments:True"
_OLDER = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Its older names, which PyTorch 2.13 reads first."""


def allocator_environment(device: str, surroundings: Mapping[str, str]) -> dict[str, str]:
    """What the environment of a process lacks that computes on a device. A value that the user has set, under any name, stays.

    PyTorch reads the variable when it loads its CUDA library, so a process has to have it before it imports torch.
    """
    if not device.startswith("cuda") or any(name in surroundings for name in (ALLOCATOR, *_OLDER)):
        return {}
    return {ALLOCATOR: EXPANDABLE}
