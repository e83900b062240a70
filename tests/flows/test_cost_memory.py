"""Memory of a plan. Oracles: the bytes of all tensors that live while the trainer makes updates (tests/flows/live_bytes.py), in
one process, in a group of two, and for published widths in a group that is only imagined; and autograd on real tensors."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import model.training.losses as losses
import model.training.measuring.memory as measuring
from flows.config.files import load
from flows.inspection.costs.cost import DEVICES, Hardware, recipe_costs
from model.config import ModelConfig, Parallel
from model.kernels.library import COMPILED_KERNELS
from model.network.fused import has_tiles
from model.network.transformer import Transformer
from model.training.losses import HeadSizes, loss_sizes
from model.training.measuring.memory import Memory, memory_of, saved_for_backward
from tests.flows.live_bytes import imagined, trained
from tests.model.groups import run_group

H100 = DEVICES["h100"]
TINY = ModelConfig(d_model=64, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, mlp_hidden=96, vocab_size=256)
SMALL = ModelConfig(
    d_model=256, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=64, mlp_hidden=704, vocab_size=4096, max_sequence_length=256
)  # fmt: skip
CASES = (("bf16", "off"), ("fp32", "blocks"))


@pytest.fixture(autouse=True)
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan counts what PyTorch's operations keep. The compiled ones of a CPU keep less."""
    monkeypatch.setenv(COMPILED_KERNELS, "0")


def planned(memory: Memory, policy: str) -> float:
    return memory.least if policy == "blocks" else memory.most


def train_small(workers: int) -> list[tuple[float, float]]:
    """Most bytes and bytes between updates, of one window of 256 tokens a process, per case."""
    return [trained(SMALL, precision, layout(workers, policy), rows=1, length=256) for precision, policy in CASES]


def layout(workers: int, policy: Any) -> Parallel:
    return Parallel(workers=workers, data="fsdp" if workers > 1 else "ddp", activation_checkpointing=policy)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_plan_is_what_training_takes(workers: int) -> None:
    found = train_small(1) if workers == 1 else run_group(workers, train_small, workers)[0]
    for (precision, policy), (most, between) in zip(CASES, found, strict=True):
        memory = memory_of(SMALL, precision, workers, 256, device="cpu")  # type: ignore[arg-type]
        # Between updates there are no gradients; the rest are counters.
        assert between == pytest.approx(memory.parameters + memory.moments, rel=1e-3)
        assert planned(memory, policy) == pytest.approx(most, rel=0.02), (precision, policy)


@pytest.mark.parametrize(
    ("size", "workers", "rows", "length", "precision", "policy", "device"),
    [
        ("7B", 8, 1, 4096, "bf16", "off", "cpu"),
        ("32B", 16, 1, 4096, "bf16", "blocks", "cpu"),
        ("1B", 4, 1, 256, "bf16", "blocks", "cpu"),
        # An accelerator whose matmuls of bf16 factors are bf16, as a CPU's are.
        ("1B", 8, 2, 4096, "bf16", "blocks", "mps"),
    ],
)
def test_the_plan_of_published_widths_is_what_a_worker_takes(
    monkeypatch: pytest.MonkeyPatch,
    size: Any,
    workers: int,
    rows: int,
    length: int,
    precision: Any,
    policy: Any,
    device: str,
) -> None:
    """Three blocks: all that more of them add is state and what is kept of each."""
    monkeypatch.setattr(losses, "loss_sizes", lambda _, vocab_size: loss_sizes(device, vocab_size))
    model = ModelConfig(size=size, n_layers=3)
    most, between = imagined(model, precision, layout(workers, policy), rows, length)
    memory = memory_of(model, precision, workers, rows * length, device=device)
    assert between == pytest.approx(memory.parameters + memory.moments, rel=1e-3)
    assert planned(memory, policy) == pytest.approx(most, rel=0.03)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_activations_are_what_autograd_keeps_of_real_tensors(precision: Any) -> None:
    model, batch, length = Transformer(TINY, seed=0), 3, 40
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        output = model.hidden(torch.zeros(batch, length, dtype=torch.int64))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    measured = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights)
    assert output.shape == (batch, length, TINY.d_model)
    saved = saved_for_backward(TINY, precision)
    tokens = batch * length
    predicted = (
        TINY.n_layers * (saved.block_weights + saved.block_per_token * tokens) + saved.outside_per_token * tokens
    )
    # Positions and rotary tables are shared by all blocks and rows: at most a few numbers per position.
    assert 0 <= measured - predicted <= 16 * length * TINY.head_dim


@pytest.mark.parametrize("name", ["1B", "7B", "13B", "32B"])
def test_cast_weights_of_a_block_are_two_bytes_each(name: Any) -> None:
    model = ModelConfig(size=name)
    norms = 2 * model.d_model + (model.n_heads + model.n_kv_heads) * model.head_dim
    assert saved_for_backward(model, "bf16").block_weights == 2 * (model.block_parameters - norms)
    # Weights that are gathered for a block are multiplied with as they came, so nothing of them lives until backward.
    assert saved_for_backward(model, "bf16", in_parts=True).block_weights == 0


def test_compiled_operations_of_a_cpu_keep_at_most_what_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a tenth of it; in bf16 of a plan without copies of logits, and with matrix tiles without logits."""
    monkeypatch.setenv(COMPILED_KERNELS, "1")
    found = dict(zip(CASES, train_small(1), strict=True))
    plans = {case: memory_of(SMALL, case[0], 1, 256, device="cpu") for case in CASES}  # type: ignore[arg-type]
    kept = replace(loss_sizes("cpu", SMALL.vocab_size), piece=1)
    if has_tiles(torch.zeros(1, dtype=torch.bfloat16)):
        kept = HeadSizes(chunk=1, piece=1, tile=1)
    monkeypatch.setattr(measuring, "loss_sizes", lambda device, vocab_size: kept)
    lean = plans | {CASES[0]: memory_of(SMALL, "bf16", 1, 256, device="cpu")}
    for case, (most, _) in found.items():
        assert 0.9 * planned(lean[case], case[1]) <= most <= 1.02 * planned(plans[case], case[1]), case


@given(st.integers(2, 64), st.integers(1, 4096))
def test_memory_falls_with_gpus_and_grows_with_tokens(gpus: int, tokens: int) -> None:
    memory, size = memory_of(TINY, "bf16", gpus, tokens), TINY.parameters / gpus
    assert (memory.parameters, memory.gradients, memory.moments) == pytest.approx((4 * size, 4 * size, 8 * size))
    assert memory_of(TINY, "bf16", gpus + 1, tokens).most < memory.most
    assert memory_of(TINY, "bf16", gpus, tokens + 1).least > memory.least
    frozen = memory_of(TINY, "bf16", gpus, tokens, frozen_models=1)
    assert frozen.parameters == pytest.approx(2 * memory.parameters)
    assert frozen.recomputed == memory.recomputed


def test_sampling_needs_a_copy_of_the_weights() -> None:
    """In bf16 15 GB at 7B; besides it a block as it came and in its place (tasks/training/answers/rollouts.py)."""
    model = ModelConfig(size="7B")
    alone, shared = (memory_of(model, "bf16", gpus, 1, samples=True).recomputed.working for gpus in (1, 64))
    assert (alone, shared - alone) == (2 * model.parameters, 4 * model.block_parameters)
    assert 14.5e9 < alone < 15e9


def test_recomputing_saves_memory_in_every_published_pretraining() -> None:
    for name in ("1b", "7b", "13b", "32b"):
        memory = recipe_costs(load(f"olmo2-{name}"), Hardware(64, H100))[0].memory
        assert memory.least < memory.most
        assert memory.least < (H100.memory or 0)
