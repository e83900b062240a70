"""Evaluation while training: perplexity of every source on windows held out of it, and small tasks.

Source: RECIPE D (every 1,000 steps; perplexity sets and downstream tasks). Deviation: the published runs read eleven
validation sets of their own. Here windows of the mix itself are kept out of the training (docs/decisions.md says why), and
tasks are the first items of the recipe's own benchmarks. Metrics are `perplexity/<source>` and `task/<benchmark>`.

The workers of a group share windows and requests out, then all of them know all metrics. Perplexity has the precision of the
training; tasks have it on accelerators, and fp32 on a host.
"""

from collections.abc import Iterator
from math import exp
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field

from infra.workspace import Workspace
from model.data.batches import Window, WindowedTokens
from model.data.labels import IGNORE, next_token_labels
from model.network.transformer import Transformer
from model.parallel.work_split import HostBatch
from model.tokens.tokenizer import Tokenizer
from model.training.configs import LossConfig, OptimConfig
from model.training.loop import Evaluate, TrainState, to_device
from model.training.losses import language_model_objective
from tasks.artifacts import PERPLEXITY
from tasks.training.fitting.asked_tasks import TasksInLoop, asked_tasks, language_model_of

if TYPE_CHECKING:
    from model.parallel.work_split import HostBatch


class InLoopConfig(TasksInLoop):
    """What is evaluated while a model trains on a mix; nothing by default."""

    windows: int = Field(default=0, ge=0)
    """Windows of every source that are kept out of the training and judged by their perplexity; 0 is none."""


def evaluator(
    ws: Workspace, config: InLoopConfig, data: WindowedTokens, tokenizer: Tokenizer, optim: OptimConfig
) -> Evaluate | None:
    """The loop's hook: state -> metrics, also as a table of the dashboard; None where there is nothing to evaluate.

    Raises ValueError where tasks are named without their benchmarks.
    """
    held_out = data.held_out()
    asked = asked_tasks(config, tokenizer, chat=False)
    if not held_out and not asked:
        return None

    rows: list[dict[str, float]] = []

    def evaluate(state: TrainState) -> dict[str, float]:
        metrics = {
            f"{PERPLEXITY}{source}": _perplexity(state, data, windows, optim) for source, windows in held_out.items()
        }
        for name, task in asked.items():
            values = task.scores(language_model_of(state), state.group, optim.activations)
            metrics[name] = sum(values) / len(values)
        rows.append({"step": state.step} | metrics)
        ws.table("in-loop", rows)
        return metrics

    return evaluate


def _perplexity(state: TrainState, data: WindowedTokens, windows: list[Window], optim: OptimConfig) -> float:
    """exp of the mean cross-entropy of all next tokens in the windows, in the precision of the training."""
    objective = language_model_objective(LossConfig(z_weight=0.0))
    model, group = state.model, state.group
    assert isinstance(model, Transformer)
    device = model.device.type
    total = torch.zeros((), device=device)
    count = 0
    # Rank 0 has most windows; all compute as many batches.
    batches = -(-len(windows) // (group.world * data.micro_instances))
    for batch in _validation_batches(data, windows[group.rank :: group.world], batches):
        count += int((batch["labels"] != IGNORE).sum())
        with torch.autocast(device, torch.bfloat16, enabled=optim.activations == "bf16"):
            # The objective's sum without divisor and z-loss: cross-entropy of all labels in the batch.
            loss = group.apply(lambda *given: objective(*given)[0], model, to_device(batch, device))
        total += loss.float()
    # Sums and counts are exchanged, not means: ranks may have read different numbers of windows.
    totals, counts = zip(*group.exchange((float(total), count)), strict=True)
    return exp(sum(totals) / sum(counts))


def _validation_batches(data: WindowedTokens, windows: list[Window], batches: int) -> "Iterator[HostBatch]":
    """Batches of the training's own shape, so that nothing is recompiled; what is missing are untrained rows."""
    rows = data.micro_instances
    for first in range(0, batches * rows, rows):
        found = data.read(windows[first : first + rows])
        # Rows without a window stay zeros with ignored labels, so that the shape never changes.
        ids = np.zeros((rows, data.sequence_length), dtype=np.uint32)
        for place, window in enumerate(found):
            ids[place] = window
        labels = next_token_labels(ids)
        labels[len(found) :] = IGNORE
        yield {"ids": ids, "labels": labels, "divisor": np.asarray(np.float32(1.0))}
