"""Log-likelihoods of given continuations, for ranked classification (RECIPE I.1).

Requests of similar length share a batch, padded on the right; attention is causal, so padding changes
nothing.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from model.transformer import Transformer

Request = tuple[Sequence[int], Sequence[int]]
"""(context ids, continuation ids)"""

_HEAD_ELEMENTS = 1 << 26  # logits held at once, in numbers: 256 MB of fp32


def log_likelihoods(
    model: Transformer,
    requests: Sequence[Request],
    *,
    batch_tokens: int = 16_384,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Sum of log p (natural) of each continuation after its context, in request order.

    A context that does not fit the model's window with its continuation loses tokens on the left.
    `batch_tokens` bounds rows x padded length of one forward; `progress` is told how many requests each batch
    finished. Precision is autocast's if it is enabled, the weights' own otherwise; the softmax is always
    fp32. Raises ValueError for an empty context or continuation (pass EOS as the context of a free-standing
    text), and for a continuation that does not fit the window beside one token of context.
    """
    window = model.config.max_sequence_length
    sequences = [_fit(index, request, window) for index, request in enumerate(requests)]
    scores = [0.0] * len(requests)
    for batch in _batches([len(ids) - 1 for ids, _ in sequences], batch_tokens):
        for index, score in zip(batch, _score(model, [sequences[index] for index in batch]), strict=True):
            scores[index] = score
        if progress is not None:
            progress(len(batch))
    return scores


def _fit(index: int, request: Request, window: int) -> tuple[list[int], int]:
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


@torch.inference_mode()
def _score(model: Transformer, sequences: list[tuple[list[int], int]]) -> list[float]:
    """Scores of one batch. The head is applied to scored positions only, in pieces of bounded size."""
    longest = max(len(ids) for ids, _ in sequences) - 1
    padded = np.zeros((len(sequences), longest), dtype=np.int64)
    rows, columns, targets = [], [], []
    for row, (ids, scored) in enumerate(sequences):
        padded[row, : len(ids) - 1] = ids[:-1]
        rows += [row] * scored
        columns += range(len(ids) - 1 - scored, len(ids) - 1)
        targets += ids[-scored:]
    hidden = model.hidden(torch.from_numpy(padded).to(model.device))
    hidden = hidden[torch.tensor(rows, device=model.device), torch.tensor(columns, device=model.device)]
    target = torch.tensor(targets, device=model.device)
    size = max(1, _HEAD_ELEMENTS // model.config.vocab_size)
    pieces = zip(hidden.split(size), target.split(size), strict=True)
    losses = torch.cat([F.cross_entropy(model.head(x).float(), y, reduction="none") for x, y in pieces])
    sums = torch.zeros(len(sequences), dtype=torch.float64)
    sums.index_add_(0, torch.tensor(rows), -losses.double().cpu())
    return sums.tolist()
