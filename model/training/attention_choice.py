"""Gives a training's attention its kernel, before the first step and so before anything is compiled.

All ranks of a group take what rank 0 has found, since kernels round differently and times differ from one process to the next.
"""

from collections.abc import Iterator

import torch
from torch import nn

from model.config import AttentionBackend, Compute, Precision
from model.network.attention_backend import BACKENDS, AttentionShape, measured
from model.network.transformer import Attention, Transformer
from model.parallel.group import Group


def choose_attention(model: nn.Module, group: Group, compute: Compute, precision: Precision, length: int) -> list[str]:
    """Set the kernel of every attention in a model, or in several, for rows of `length` tokens; a line for each choice.

    Does nothing for `auto` on a device that is no GPU: there this package has kernels of its own. All ranks have to call it
    together. Raises ValueError on all of them where the kernel that `compute.attention` names cannot compute the shape, or none
    can.
    """
    if compute.attention == "auto" and torch.device(compute.device).type != "cuda":
        return []
    lines = []
    for part in (part for part in model.modules() if isinstance(part, Transformer)):
        config = part.config
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        shape = AttentionShape(compute.device, dtype, config.n_heads, config.n_kv_heads, config.head_dim, length)
        name, line = agreed_choice(group, shape, compute.attention)
        for attention in _attentions(part):
            attention.backend = name
        lines.append(line)
    return lines


def agreed_choice(group: Group, shape: AttentionShape, wanted: AttentionBackend) -> tuple[str, str]:
    """The kernel that rank 0 has measured or checked, and the line that says so, on all ranks, which have to call this together.

    Raises ValueError on all of them where there is none.
    """
    # Rank 0's refusal travels like a choice: raised on that rank alone, it would leave the others waiting.
    name, line = group.exchange(None if group.rank else _choice(shape, wanted))[0]
    if name is None:
        raise ValueError(line)
    return name, line


def _choice(shape: AttentionShape, wanted: AttentionBackend) -> tuple[str | None, str]:
    """The kernel and the line that says so; None and the reason where there is none."""
    found = measured(shape, tuple(BACKENDS) if wanted == "auto" else (wanted,))
    try:
        name = found.chosen(wanted)
    except ValueError as error:
        return None, str(error)
    return name, found.line(name)


def _attentions(model: Transformer) -> Iterator[Attention]:
    return (part for part in model.modules() if isinstance(part, Attention))
