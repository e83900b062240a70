"""Bytes that a sharded training sends. Oracle: the collectives of groups of two and four workers, counted as they are made."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist

from model.config import ModelConfig, Parallel
from model.parallel.traffic import bytes_sent, collectives
from model.parallel.work_split import share_of
from model.training.configs import OptimConfig
from tests.model.groups import CONFIG, STEPS, language_batches, run_group, train_kind

EVEN = {"vocab_size": 128}
"""Rows that divide by the shards: otherwise the tensors that travel are padded."""
NAMES = {"all_gather_single": "gather", "reduce_scatter_single": "scatter", "all_reduce": "reduce"}


def counted(parallel: Parallel, precision: Any) -> Counter[tuple[str, int]]:
    """Kinds and bytes of all exchanges of weights and gradients in a training of language-model windows."""
    seen: Counter[tuple[str, int]] = Counter()
    originals = {name: getattr(dist, name) for name in NAMES}

    def watched(name: str) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            tensors = [value for value in (*given, *options.values()) if isinstance(value, torch.Tensor)]
            seen[NAMES[name], max(tensor.numel() * tensor.element_size() for tensor in tensors)] += 1
            return originals[name](*given, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setattr(dist, name, watched(name))
        patch.setattr("tests.model.groups.CONFIG", CONFIG.model_copy(update=EVEN))
        # An evaluation gathers weights as well.
        patch.setattr("tests.model.groups.mean_logit", None)
        train_kind("language model", parallel, optim=OptimConfig(precision=precision))
    return seen


@pytest.mark.parametrize(("workers", "replicas", "precision"), [(2, 1, "bf16"), (2, 1, "fp32"), (4, 2, "bf16")])
def test_a_group_sends_what_the_model_says(workers: int, replicas: int, precision: Any) -> None:
    parallel = Parallel(workers=workers, data="hsdp" if replicas > 1 else "fsdp", replicas=replicas)
    found = run_group(workers, counted, parallel, precision)[0]
    wanted: Counter[tuple[str, int]] = Counter()
    model = CONFIG.model_copy(update=EVEN)
    for step in range(STEPS):
        passes = len(share_of(language_batches(step), 0, workers))
        for item in collectives(model, precision, shards=workers // replicas, replicas=replicas, passes=passes):
            wanted[item.kind, round(item.size)] += item.times
    assert {key: found[key] for key in wanted} == wanted


def test_a_ring_sends_nearly_twice_the_gradients_of_whole_copies() -> None:
    """Known case: an all-reduce of G bytes among n workers makes each send 2 G (n - 1) / n."""
    model = ModelConfig(size="7B")
    found = collectives(model, "bf16", shards=1, replicas=8)
    assert bytes_sent(found) == pytest.approx(2 * 4 * model.parameters * 7 / 8, rel=1e-9)
