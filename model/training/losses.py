"""Computes cross-entropy with z-loss, and token log-probabilities, chunk by chunk, so that the full logits never exist.

A chunk's logits are held once, in the type of the matmuls, and overwritten with their gradient. Maxima, sums and
exponentials are fp32, and so is the sum of the head's gradient over chunks. How large a chunk is goes by the type of device:
`loss_sizes` and `log_prob_sizes`.

Source: RECIPE A.5 (loss, both normalisations), F ("sum"), 0.1 (z-loss weight); paper section 3.3.3.
Convention: `labels[b, t]` is the id that position t has to predict, i.e. already shifted; -100 is not
trained. Deviation: cross-entropy and z-loss are always reported apart (the fused kernel of the old trainer
mixed them).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.data.labels import IGNORE
from model.network.fused import fused_head_loss, fused_outer, fused_softmax, fuses, has_tiles
from model.network.matmul import product
from model.network.transformer import Transformer
from model.training.configs import LossConfig

CHUNK_ELEMENTS = 1 << 22
"""Logits worked on at a time on a CPU: 4M, 8 MB in bf16, so that they stay within a processor's last cache level."""
CHUNK_ROWS = 512
"""Least rows of logits held at a time on a CPU: with fewer, the matmuls with a large vocabulary wait for memory."""
TILE_ROWS = 4096
"""Rows of the head whose gradient is summed at a time on a CPU."""
FUSED_ROWS = 2048
"""Rows whose loss a CPU with matrix tiles computes at a time: each of its threads sums their gradient in fp32."""
WIDE_PRODUCTS = ("cuda", "xpu")
"""Types of device whose matmuls of bf16 factors can be fp32 (`out_dtype` of torch.mm)."""


@dataclass(frozen=True)
class HeadSizes:
    """How the work on a head is cut, in rows."""

    chunk: int
    """Rows of logits held at a time, in the type of the matmuls."""
    piece: int
    """Of those, rows worked on at a time in fp32."""
    tile: int
    """Rows of the head whose gradient is summed at a time."""


ACCELERATOR = HeadSizes(chunk=4096, piece=1024, tile=1 << 15)
"""On all devices but a CPU. Every chunk reads the head and adds to its fp32 gradient. With 4,096 rows that is about a tenth
of the time of their matmuls on an H100 (bytes and operations over what it can do, not measured). Their logits are 0.8 GB in
bf16 at a vocabulary of 100k. Larger pieces and tiles would not be faster. They bound what is made in fp32 at a time to 0.4
GB of logits and 0.5 GB of gradient at d_model 4096.
"""


def cached_rows(vocab_size: int) -> int:
    """Return how many rows of logits a CPU works on at a time: a power of two, so that batches of many sizes split
    evenly."""
    return 1 << (max(1, CHUNK_ELEMENTS // vocab_size).bit_length() - 1)


def loss_sizes(device_type: str, vocab_size: int) -> HeadSizes:
    """Sizes of the language-model loss on a type of device, "cpu" or other."""
    if device_type != "cpu":
        return ACCELERATOR
    piece = cached_rows(vocab_size)
    return HeadSizes(chunk=max(CHUNK_ROWS, piece), piece=piece, tile=TILE_ROWS)


def log_prob_sizes(device_type: str, vocab_size: int) -> HeadSizes:
    """The same of token log-probabilities."""
    if device_type != "cpu":
        return ACCELERATOR
    rows = max(1, CHUNK_ELEMENTS // vocab_size)
    return HeadSizes(chunk=rows, piece=rows, tile=vocab_size)


def _softmax_in_place(
    logits: Float[Tensor, "rows vocab"], scale: Float[Tensor, "rows 1"], z_weight: float
) -> tuple[Float[Tensor, "rows 1"], Float[Tensor, "rows 1"]]:
    """Row-wise maximum and sum of exp(logit - maximum), in fp32. Overwrites the logits with the gradient of
    scale * (logsumexp + z_weight * logsumexp^2), in which the labels' own part is still missing.
    """
    wide = logits.float()
    # The maximum is taken out before exp, which would overflow beyond logits of 88 in fp32.
    top = wide.amax(-1, keepdim=True)
    total = (wide - top).exp().sum(-1, keepdim=True)
    grow = scale * (1 + 2 * z_weight * (total.log() + top)) / total
    logits.copy_((wide - top).exp() * grow)
    return top, total


def _softmax_gradient(
    kernel: Callable[..., Any],
    logits: Float[Tensor, "rows vocab"],
    targets: Int[Tensor, " rows"],
    scale: Float[Tensor, " rows"],
    z_weight: float,
    piece: int,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """`fused_softmax` by PyTorch's operations, so many rows at a time; `kernel` is `_softmax_in_place`, compiled or not."""
    targets, scale = targets.unsqueeze(-1), scale.unsqueeze(-1)
    picked = logits.gather(-1, targets).float()
    sums = [kernel(*pair, z_weight) for pair in zip(logits.split(piece), scale.split(piece), strict=True)]
    log_total = torch.cat([top + total.log() for top, total in sums])
    grow = scale * (1 + 2 * z_weight * log_total)
    # The label's own gradient is a small difference of large numbers, so it is computed in fp32 and rounded once.
    exact = ((picked - log_total).exp() * grow - scale).to(logits.dtype)
    logits.scatter_(-1, targets, exact)
    return log_total.squeeze(-1), picked.squeeze(-1)


@functools.cache
def _compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(kernel, dynamic=False)


class _HeadGradients(NamedTuple):
    """What a head's loss has found of its rows, and where it puts its gradients; None where one is not asked for."""

    log_total: Float[Tensor, " rows"]
    picked: Float[Tensor, " rows"]
    """The targets' logits."""
    rows: Float[Tensor, "rows d_model"] | None
    weight: Float[Tensor, "vocab d_model"] | None


class _HeadLoss(torch.autograd.Function):
    """Loss of hidden rows under a head. Gradients are made in the forward pass, chunk by chunk. Nothing of size vocab but the
    head's gradient is kept for backward, which may therefore be called once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        labels: Tensor,
        divisor: Tensor,
        z_weight: float,
        compiled: bool,
        sizes: HeadSizes,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kernel = _compiled(_softmax_in_place) if compiled else _softmax_in_place
        # Cast once for all chunks: the head is the largest matrix of the model.
        cast_weight = weight.to(rows.dtype)
        trained = labels != IGNORE
        # An ignored label is no row of the head; any id will do, since its scale is 0.
        targets, scale = torch.where(trained, labels, 0), trained / divisor
        needs = ctx.needs_input_grad
        found = _HeadGradients(
            torch.empty(len(rows), device=rows.device),
            torch.empty(len(rows), device=rows.device),
            torch.empty_like(rows) if needs[0] else None,
            torch.empty_like(weight) if needs[1] else None,
        )
        if has_tiles(rows) and weight.dtype is torch.float32:
            _fill_by_tiles(found, rows, cast_weight, targets, scale, z_weight)
        else:
            _fill_by_chunks(found, rows, cast_weight, targets, scale, z_weight, kernel, sizes)
        ctx.gradients = found.rows, found.weight
        ce = ((found.log_total - found.picked) * scale).sum()
        z = z_weight * (found.log_total.square() * scale).sum()
        # Only the sum carries a gradient, which was made above; the two parts are metrics.
        ctx.mark_non_differentiable(ce, z)
        return ce + z, ce, z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # In place and handed over: the head's gradient is as large as the head.
        assert ctx.gradients is not None, "a head loss can be differentiated once"
        rows, weight = (None if kept is None else kept.mul_(gradients[0]) for kept in ctx.gradients)
        ctx.gradients = None
        return rows, weight, None, None, None, None, None


def _fill_by_tiles(
    found: _HeadGradients, rows: Tensor, head: Tensor, targets: Tensor, scale: Tensor, z_weight: float
) -> None:
    """Fill in a head's gradients on a processor with matrix tiles, which writes no logits."""
    for place in range(0, len(rows), FUSED_ROWS):
        some = slice(place, place + FUSED_ROWS)
        to_rows = None if found.rows is None else found.rows[some]
        found.log_total[some], found.picked[some] = fused_head_loss(
            rows[some], head, targets[some], scale[some], z_weight, to_rows, found.weight, adds=place > 0
        )


def _fill_by_chunks(
    found: _HeadGradients,
    rows: Tensor,
    head: Tensor,
    targets: Tensor,
    scale: Tensor,
    z_weight: float,
    kernel: Callable[..., Any],
    sizes: HeadSizes,
) -> None:
    """Fill in a head's gradients by the libraries' matmuls; `kernel` is that of `_softmax_gradient`."""
    # One buffer of [chunk, vocab] for all chunks: the full logits of 16,384 tokens would be 3.3 GB in bf16.
    size = min(sizes.chunk, len(rows))
    buffer = torch.empty(size, len(head), dtype=rows.dtype, device=rows.device)
    for place in range(0, len(rows), size):
        some = slice(place, place + size)
        part = rows[some]
        # [chunk, d_model] @ [d_model, vocab] -> [chunk, vocab]; what follows overwrites it with its gradient.
        logits = product(part, head.T, out=buffer[: len(part)])
        if fuses(logits):
            sums = fused_softmax(logits, targets[some], scale[some], z_weight=z_weight)
        else:
            sums = _softmax_gradient(kernel, logits, targets[some], scale[some], z_weight, sizes.piece)
        found.log_total[some], found.picked[some] = sums
        if found.rows is not None:
            product(logits, head, out=found.rows[some])
        if found.weight is not None:
            _add_outer_product(found.weight, logits, part, sizes.tile, first=place == 0)


def _wide_product(left: Float[Tensor, "m k"], right: Float[Tensor, "k n"]) -> Float[Tensor, "m n"]:
    """Return left @ right in fp32 where the device makes such matmuls, else in the type of the factors."""
    if left.dtype is torch.bfloat16 and left.device.type in WIDE_PRODUCTS:
        return torch.mm(left, right, out_dtype=torch.float32)
    return product(left, right)


def _add_outer_product(
    total: Float[Tensor, "vocab d_model"],
    left: Float[Tensor, "rows vocab"],
    right: Float[Tensor, "rows d_model"],
    tile_rows: int,
    *,
    first: bool,
) -> None:
    """total += left.T @ right, summed in fp32 tile by tile, which on a CPU are still in cache then; the `first` replaces what
    is there.
    """
    if has_tiles(left) and total.dtype is torch.float32:
        fused_outer(left, right, out=total, adds=not first)
        return
    for place in range(0, len(total), tile_rows):
        tile = slice(place, place + tile_rows)
        outer = _wide_product(left[:, tile].T, right)
        if first:
            total[tile] = outer
        else:
            total[tile] += outer


def head_loss(
    hidden: Float[Tensor, "batch seq d_model"],
    head: Float[Tensor, "vocab d_model"],
    labels: Int[Tensor, "batch seq"],
    divisor: Float[Tensor, ""],
    *,
    z_weight: float = 1e-5,
    compiled: bool = False,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """(cross-entropy + weighted z-loss) / divisor, natural log, fp32; metrics `ce` and `z` have the same
    divisor.
    """
    if not torch.is_grad_enabled():
        # The forward pass makes the gradients of what requires them, whether or not they are asked for.
        hidden, head = hidden.detach(), head.detach()
    sizes = loss_sizes(hidden.device.type, len(head))
    # The matmuls choose their own type (that of `hidden`); autocast would cast the fp32 sums as well.
    with torch.autocast(hidden.device.type, enabled=False):
        loss, ce, z = cast(
            tuple[Tensor, Tensor, Tensor],
            _HeadLoss.apply(hidden.flatten(0, 1), head, labels.flatten(), divisor, z_weight, compiled, sizes),
        )
    return loss, {"ce": ce, "z": z}


class _HeadLogProbs(torch.autograd.Function):
    """Log-probability of one target per row; the backward pass computes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor, temperature: float, sizes: HeadSizes
    ) -> Tensor:
        cast_weight = weight.to(rows.dtype)
        picked = []
        for part, part_targets in zip(rows.split(sizes.chunk), targets.split(sizes.chunk), strict=True):
            logits = product(part, cast_weight.T)
            if fuses(logits):
                log_total, chosen = fused_softmax(logits, part_targets.contiguous(), temperature=temperature)
                picked.append(chosen - log_total)
                continue
            for piece, target in zip(logits.split(sizes.piece), part_targets.split(sizes.piece), strict=True):
                wide = piece.float().div_(temperature)
                picked.append(wide.gather(-1, target.unsqueeze(-1)).squeeze(-1) - wide.logsumexp(-1))
        ctx.save_for_backward(rows, weight, targets)
        ctx.temperature, ctx.sizes = temperature, sizes
        return torch.cat(picked)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, targets = ctx.saved_tensors
        sizes, temperature = ctx.sizes, ctx.temperature
        cast_weight = weight.to(rows.dtype)
        row_gradients = []
        weight_gradient = torch.zeros_like(weight)
        for part, *ends in zip(*(t.split(sizes.chunk) for t in (rows, targets, gradients[0])), strict=True):
            logits = product(part, cast_weight.T)
            # d log p / d logits = (onehot - softmax) / temperature; written over the logits to save a buffer.
            if fuses(logits):
                fused_softmax(logits, ends[0].contiguous(), -ends[1], temperature)
            else:
                for piece, target, outer in zip(*(t.split(sizes.piece) for t in (logits, *ends)), strict=True):
                    inner = piece.float().div_(temperature).softmax(-1).mul_(-outer.unsqueeze(-1))
                    inner.scatter_add_(-1, target.unsqueeze(-1), outer.unsqueeze(-1))
                    piece.copy_(inner.div_(temperature))
            row_gradients.append(product(logits, cast_weight))
            _add_outer_product(weight_gradient, logits, part, sizes.tile, first=False)
        return torch.cat(row_gradients), weight_gradient, None, None, None


def token_log_probs(
    hidden: Float[Tensor, "batch seq d_model"],
    head: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, "batch seq"],
    temperature: float = 1.0,
) -> Float[Tensor, "batch seq"]:
    """log p(target) at every position in fp32, logits divided by `temperature`; 0 where the target is
    -100.
    """
    known = targets != IGNORE
    # An ignored target is no row of the head; any id will do, since its value is set to 0 below.
    safe = torch.where(known, targets, 0).flatten()
    sizes = log_prob_sizes(hidden.device.type, len(head))
    with torch.autocast(hidden.device.type, enabled=False):
        values = cast(Tensor, _HeadLogProbs.apply(hidden.flatten(0, 1), head, safe, temperature, sizes))
    # Times the mask instead of an index, so that ignored positions get a gradient of exactly 0.
    return values.view(targets.shape) * known


class LanguageModelBatch(TypedDict):
    """A micro-batch of windows, as `model.data.batches.WindowBatch` is on the host."""

    ids: Int[Tensor, "rows seq"]
    labels: Int[Tensor, "rows seq"]
    """What each position predicts; −100 where nothing is learned."""
    divisor: NotRequired[Float[Tensor, ""]]
    """The micro-batch's share of the whole batch's divisor."""
    masked_instances: NotRequired[Float[Tensor, ""]]
    """Share of windows that the repetition filter took out."""
    masked_labels: NotRequired[Float[Tensor, ""]]
    """Share of positions that are not trained."""


def language_model_objective(
    config: LossConfig,
) -> Callable[[Transformer, LanguageModelBatch], tuple[Tensor, dict[str, Tensor]]]:
    """Objective of pre-training and mid-training.

    Without a divisor in the batch the micro-batch's own trained labels, positions or 1 are used, as `config.normalisation`
    says. Metrics: `ce`, `z`, and where the batch has them `masked_instances` and `masked_labels`.
    """

    def objective(model: Transformer, batch: LanguageModelBatch) -> tuple[Tensor, dict[str, Tensor]]:
        labels = batch["labels"]
        if "divisor" in batch:
            divisor = batch["divisor"]
        elif config.normalisation == "labels":
            # At least 1: a micro-batch without a trained label has loss 0, not NaN.
            divisor = (labels != IGNORE).sum().clamp(min=1).float()
        else:
            size = labels.numel() if config.normalisation == "positions" else 1
            divisor = torch.full((), float(size), device=labels.device)
        hidden = model.hidden(batch["ids"])
        loss, metrics = head_loss(
            hidden, model.head.weight, labels, divisor, z_weight=config.z_weight, compiled=model.compiled
        )
        if "masked_instances" in batch:
            metrics["masked_instances"] = batch["masked_instances"]
        if "masked_labels" in batch:
            metrics["masked_labels"] = batch["masked_labels"]
        return loss, metrics

    return objective
