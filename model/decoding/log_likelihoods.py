"""Computes log-likelihoods of given continuations, for ranked classification (RECIPE I.1).

Where weights are whole, the requests form one tree and each distinct token is read once
(`model/decoding/prefix_scoring.py`). Where they are sharded, every matmul gathers them, so all workers go together through
batches of similar length, padded on the right. Attention is causal, so padding changes nothing. The workers of a group
divide the requests and exchange results.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.decoding.prefix_scoring import KeptWeights, tree_log_likelihoods
from model.network.sharded_tensors import is_sharded
from model.network.transformer import Transformer
from model.parallel.group import Group

_Request = tuple[Sequence[int], Sequence[int]]
"""(context ids, continuation ids)"""

_HEAD_ELEMENTS = 1 << 26  # logits held at once, in numbers: 256 MB of fp32
BATCH_TOKENS = {"cpu": 1_024}
"""Tokens of one forward pass on a device: what stays in a CPU's caches."""
BATCH_TOKENS_ELSEWHERE = 16_384


class NonFiniteOutput(FloatingPointError):
    """A model's output is NaN or infinite; `index` is the request or prompt that met it."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def log_likelihoods(
    model: Transformer,
    requests: Sequence[_Request],
    *,
    batch_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
    group: Group | None = None,
    kept: KeptWeights | None = None,
) -> list[float]:
    """Sum of log p (natural) of each continuation after its context, in request order.

    A context that does not fit the model's window with its continuation loses tokens on the left. `batch_tokens` bounds rows
    x padded length of one forward pass (None: what suits the device); `progress` is told how many requests just finished.
    Precision is autocast's if it is enabled, the weights' own otherwise; the softmax is always fp32. All workers of a
    `group` have to call this with the same requests. Raises ValueError for an empty context or continuation; pass EOS as the
    context of a free-standing text. Raises ValueError also for a continuation that does not fit the window with one token of
    context. Raises NonFiniteOutput for the first request whose log-likelihood is not finite. `kept` keeps the weights of a
    model that does not change laid out for the next call.
    """
    window = model.config.max_sequence_length
    sequences = [_fit(index, request, window) for index, request in enumerate(requests)]
    batch_tokens = batch_tokens or BATCH_TOKENS.get(model.device.type, BATCH_TOKENS_ELSEWHERE)
    group = group or Group()
    score = _sharded_scores if is_sharded(model.head.weight) else partial(_tree_scores, kept=kept)
    found = score(model, sequences, batch_tokens, progress or (lambda finished: None), group)
    for index, value in enumerate(found):
        if not math.isfinite(value):
            # A NaN reaches what is read together with it: the product with a masked value of NaN is NaN. Alone, it tells.
            value = found[index] = score(model, [sequences[index]], batch_tokens, lambda finished: None, group)[0]
        if not math.isfinite(value):
            raise NonFiniteOutput(
                index,
                f"the log-likelihood of request {index} is {value}: the model's weights hold values that are not finite, or "
                "leave the range of its precision; score another checkpoint, or in fp32",
            )
    return found


def _tree_scores(
    model: Transformer,
    sequences: list[tuple[list[int], int]],
    batch_tokens: int,
    progress: Callable[[int], None],
    group: Group,
    kept: KeptWeights | None,
) -> list[float]:
    """Each worker reads a stretch of the sorted sequences, so that prefixes are read by few of them."""
    order = sorted(range(len(sequences)), key=lambda index: sequences[index][0])
    # Stretches of the sorted order, so that requests with one prefix mostly fall to one worker.
    first, end = (len(order) * rank // group.world for rank in (group.rank, group.rank + 1))
    own = order[first:end]
    values = tree_log_likelihoods(
        model, [sequences[i] for i in own], batch_tokens=batch_tokens, progress=progress, kept=kept
    )
    found: dict[int, float] = {}
    for scores in group.exchange(dict(zip(own, values, strict=True))):
        found |= scores
    if len(own) < len(order):
        progress(len(order) - len(own))
    return [found[index] for index in range(len(sequences))]


def _sharded_scores(
    model: Transformer,
    sequences: list[tuple[list[int], int]],
    batch_tokens: int,
    progress: Callable[[int], None],
    group: Group,
) -> list[float]:
    """Sharded weights are gathered by all workers at once: whoever is left without a batch repeats the last one."""
    batches = list(_batches([len(ids) - 1 for ids, _ in sequences], batch_tokens))
    own: dict[int, float] = {}
    for first in range(0, len(batches), group.world):
        batch = batches[min(first + group.rank, len(batches) - 1)]
        own |= zip(batch, _score(model, [sequences[index] for index in batch], group), strict=True)
        progress(sum(map(len, batches[first : first + group.world])))
    found: dict[int, float] = {}
    for scores in group.exchange(own):
        found |= scores
    return [found[index] for index in range(len(sequences))]


def _fit(index: int, request: _Request, window: int) -> tuple[list[int], int]:
    """Context and continuation joined, the context cut on the left; and the number of scored tokens."""
    context, continuation = (list(part) for part in request)
    if not context or not continuation:
        empty = "continuation" if context else "context"
        raise ValueError(
            f"request {index} has an empty {empty}; give at least one token of each (EOS serves as a context)"
        )
    if len(continuation) > window:
        raise ValueError(
            f"request {index} has a continuation of {len(continuation):,} tokens, the model's window is {window:,}; "
            "score a shorter one"
        )
    # The last token is predicted, never fed: window + 1 tokens fit.
    return (context + continuation)[-(window + 1) :], len(continuation)


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices grouped longest first, so that the largest batch is met first and padding stays small."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _score(model: Transformer, sequences: list[tuple[list[int], int]], group: Group) -> list[float]:
    """Scores of one batch. The head is applied to scored positions only, in pieces of bounded size."""
    longest = max(len(ids) for ids, _ in sequences) - 1
    padded = np.zeros((len(sequences), longest), dtype=np.int64)
    rows, columns, targets = [], [], []
    for row, (ids, scored) in enumerate(sequences):
        padded[row, : len(ids) - 1] = ids[:-1]
        rows += [row] * scored
        # Position t predicts token t + 1: the last `scored` places of what was fed.
        columns += range(len(ids) - 1 - scored, len(ids) - 1)
        targets += ids[-scored:]
    places = {"rows": rows, "columns": columns, "targets": targets}
    batch = {"ids": torch.from_numpy(padded)} | {name: torch.tensor(values) for name, values in places.items()}
    losses = group.apply(_losses, model, {name: value.to(model.device) for name, value in batch.items()})
    sums = torch.zeros(len(sequences), dtype=torch.float64)
    # Summed in fp64: a long continuation adds thousands of numbers of one sign.
    sums.index_add_(0, torch.tensor(rows), -losses.double().cpu())
    return sums.tolist()


def _losses(model: Transformer, batch: dict[str, Tensor]) -> Tensor:
    """-log p of every target, nats."""
    hidden = model.hidden(batch["ids"])[batch["rows"], batch["columns"]]
    # Logits of so many places are held at once; the vocabulary decides how many that is.
    size = max(1, _HEAD_ELEMENTS // model.config.vocab_size)
    pieces = zip(hidden.split(size), batch["targets"].split(size), strict=True)
    return torch.cat([F.cross_entropy(model.outputs(x).float(), y, reduction="none") for x, y in pieces])
