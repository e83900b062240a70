"""Training in float8, emulated. Oracle: factors rounded by hand and multiplied in fp32, and the same training in bf16."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import Compute, ModelConfig, Parallel
from model.data.labels import next_token_labels
from model.network.float8 import check_float8, multiply_in_float8, multiplying_in_bf16
from model.network.transformer import Linear, Transformer
from model.training.configs import LossConfig, OptimConfig
from model.training.float8_check import CHECKED_STEPS
from model.training.loop import Course, Listeners, Logging, TrainState, new_state, train, train_step
from model.training.losses import language_model_objective
from model.training.schedule import ScheduleConfig
from model.training.state_files import load_state, save_state
from tests.model.groups import SCHEDULE, STEPS, language_batches, run_group, whole_state

CONFIG = ModelConfig(
    d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, mlp_hidden=96, vocab_size=128, max_sequence_length=32
)
FLOAT8, BF16 = OptimConfig(precision="float8"), OptimConfig(precision="bf16")
COMPUTE = Compute(emulate_float8=True)
OBJECTIVE = language_model_objective(LossConfig())


def batches(step: int) -> list[dict[str, np.ndarray]]:
    """Every token comes twice, which is soon learned."""
    ids = np.random.default_rng(step).integers(0, 40, (8, 32)).astype(np.uint32)
    ids[:, 1::2] = ids[:, ::2]
    return [{"ids": part, "labels": next_token_labels(part)} for part in np.split(ids, 2)]


def course(steps: int) -> Course:
    schedule = ScheduleConfig(learning_rate=3e-3, unit="steps", warmup=4, length=0)
    return Course(OBJECTIVE, batches, schedule, steps, logging=Logging(every=1))


def begun(optim: OptimConfig, compute: Compute = COMPUTE) -> TrainState:
    return new_state(Transformer(CONFIG, seed=1), optim, compute)


def run(steps: int, optim: OptimConfig, state: TrainState | None = None, **told: Any) -> TrainState:
    return train(state or begun(optim), course(steps), COMPUTE, Listeners(**told))


# --- the matmul ---------------------------------------------------------------------------------------


def rounded(x: Tensor, kind: torch.dtype) -> Tensor:
    """The values of a tensor that float8 has, with the scale that makes its largest one the type's largest."""
    scale = torch.finfo(kind).max / x.abs().max().double()
    return (x.float() * scale.float()).to(kind).float() / scale.float()


def test_factors_are_rounded_to_float8_forward_and_backward() -> None:
    model = Transformer(CONFIG, seed=1)
    multiply_in_float8(model, emulated=True)
    layer = next(part for part in model.blocks.modules() if isinstance(part, Linear))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 64, generator=generator).bfloat16().requires_grad_()
    outer = torch.randn(2, 7, 64, generator=generator).bfloat16()
    output = layer(x)
    output.backward(outer)
    weight = rounded(layer.weight.detach().bfloat16(), torch.float8_e4m3fn)
    flat, gradient = (
        rounded(x.detach(), torch.float8_e4m3fn).flatten(0, 1),
        rounded(outer, torch.float8_e5m2).flatten(0, 1),
    )
    assert output.dtype is torch.bfloat16 and x.grad is not None and layer.weight.grad is not None
    for found, wanted in (
        (output.flatten(0, 1), flat @ weight.T),
        (x.grad.flatten(0, 1), gradient @ weight),
        (layer.weight.grad, gradient.T @ flat),
    ):
        # One rounding of the result to bf16.
        torch.testing.assert_close(found.float(), wanted, rtol=2**-8, atol=1e-5)
    assert not torch.equal(flat, x.detach().float().flatten(0, 1))


def in_float8(model: Transformer) -> set[str]:
    return {name for name, part in model.named_modules() if isinstance(part, Linear) and part.float8 is not None}


def test_only_blocks_multiply_in_float8_and_only_widths_of_16() -> None:
    names = {f"attention.{name}" for name in ("q", "k", "v", "out")}
    uneven = Transformer(CONFIG.model_copy(update={"mlp_hidden": 100}))
    multiply_in_float8(uneven, emulated=True)
    assert in_float8(uneven) == {f"blocks.{block}.{name}" for block in range(2) for name in names}
    even = Transformer(CONFIG)
    multiply_in_float8(even, emulated=True)
    assert len(in_float8(even)) == 2 * 7 and not {"head", "embedding"} & in_float8(even)
    with multiplying_in_bf16(even):
        assert in_float8(even) == set()
    assert len(in_float8(even)) == 2 * 7
    narrow = ModelConfig(
        d_model=24,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        head_dim=12,
        mlp_hidden=40,
        vocab_size=128,
        max_sequence_length=8,
    )
    with pytest.raises(ValueError, match="no linear layer of a block has widths that are multiples of 16"):
        multiply_in_float8(Transformer(narrow), emulated=True)


def test_evaluation_is_that_of_bf16() -> None:
    ids = torch.arange(32).view(2, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = [begun(optim).model.eval()(ids) for optim in (FLOAT8, BF16)]
    torch.testing.assert_close(*logits, rtol=2e-2, atol=2e-2)
    trained = begun(FLOAT8).model.train()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert (trained(ids) - logits[0]).abs().max() > (logits[1] - logits[0]).abs().max()


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_device_without_float8_is_refused(device: str) -> None:
    if device == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9):
        check_float8(device, emulated=False)
        return
    with pytest.raises(
        ValueError, match=rf"precision=float8 on execution\.device={device}.*8\.9.*emulate_float8.*bf16"
    ):
        check_float8(device, emulated=False)
    check_float8(device, emulated=True)
    with pytest.raises(ValueError, match="precision=float8 on"):
        new_state(Transformer(CONFIG), FLOAT8, Compute(device=device))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)  # what Python itself notes of a package that is not there
    with pytest.raises(
        ValueError, match=r"needs torchao, which is not installed: pip install 'olmo2-recipe\[float8\]'"
    ):
        check_float8("cpu", emulated=True)


# --- trainings ----------------------------------------------------------------------------------------


def test_the_loss_follows_that_of_bf16() -> None:
    losses: dict[str, list[float]] = {"float8": [], "bf16": []}
    said: list[str] = []
    for optim in (FLOAT8, BF16):
        kept = losses[optim.precision]
        run(
            120,
            optim,
            record=lambda _, line, kept=kept: kept.append(line["loss"]),
            settled=lambda what, line: said.append(f"{what}: {line}"),
        )
    float8, bf16 = np.array(losses["float8"]), np.array(losses["bf16"])
    assert bf16[-20:].mean() < bf16[0] - 0.5
    np.testing.assert_allclose(float8, bf16, rtol=0.05)
    np.testing.assert_allclose(float8[-20:].mean(), bf16[-20:].mean(), rtol=0.02)
    assert not np.array_equal(float8, bf16)
    (line,) = said
    assert (
        line.startswith("float8: float8 is apart from bf16 in the first steps by at most: loss 0.")
        and "limit 10%" in line
    )


def test_resumed_equals_undisturbed_byte_for_byte(tmp_path: Path) -> None:
    """The check is made again after a save point, and leaves no trace."""
    whole = run(12, FLOAT8, checkpoint_every=6, checkpoint=lambda state: save_state(state, tmp_path / "half"))
    fresh = load_state(new_state(Transformer(CONFIG, seed=9), FLOAT8, COMPUTE), tmp_path / "half")
    again = run(12, FLOAT8, state=fresh)
    save_state(whole, tmp_path / "whole")
    save_state(again, tmp_path / "resumed")
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "resumed")]
    assert files[0] == files[1] and files[0]


def test_the_check_changes_nothing() -> None:
    checked, plain = run(CHECKED_STEPS + 1, FLOAT8), begun(FLOAT8)
    plain.model.train()
    for step in range(CHECKED_STEPS + 1):
        train_step(plain, batches(step), course(CHECKED_STEPS + 1), "cpu")
    for (name, one), two in zip(checked.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert checked.tokens == plain.tokens and checked.optimizer.seen == plain.optimizer.seen


class WrongGradient(torch.autograd.Function):
    """x as it is; its gradient is half of what it should be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] / 2


@pytest.mark.parametrize("kind", ["grad_norm", "loss"])
def test_a_device_that_multiplies_wrongly_is_refused(kind: str) -> None:
    state = begun(FLOAT8)
    for part in state.model.modules():
        if isinstance(part, Linear) and part.float8 is not None:
            right = part.float8
            part.float8 = (
                (lambda x, weight, right=right: WrongGradient.apply(right(x, weight)))
                if kind == "grad_norm"
                else (lambda x, weight, right=right: right(x, weight) * float("nan"))
            )
    saved: list[int] = []
    said = (
        r"precision=float8 at step 1: "
        + kind
        + r" is .* in bf16, with the same weights and batch, .*allowed are .*bf16"
    )
    with pytest.raises(ValueError, match=said):
        run(4, FLOAT8, state=state, checkpoint_every=1, checkpoint=lambda state: saved.append(state.step))
    assert saved == []


@pytest.mark.slow
def test_recomputed_blocks_and_compiled_ones_follow_too() -> None:
    ends = {}
    for name, compute in {
        "plain": COMPUTE,
        "recomputed": COMPUTE.model_copy(update={"parallel": Parallel(activation_checkpointing="blocks")}),
        "compiled": COMPUTE.model_copy(update={"compile": "blocks"}),
    }.items():
        losses: list[float] = []
        told = Listeners(record=lambda _, line, losses=losses: losses.append(line["loss"]))
        train(begun(FLOAT8, compute), course(4), compute, told)
        ends[name] = losses
    assert ends["recomputed"] == ends["plain"]
    np.testing.assert_allclose(ends["compiled"], ends["plain"], rtol=0.01)


# --- groups -------------------------------------------------------------------------------------------


def train_in_group(layout: Parallel) -> dict[str, Any]:
    """Losses, what was said, and whole weights of a training by this rank's group."""
    compute = Compute(parallel=layout, emulate_float8=True)
    state = new_state(Transformer(CONFIG, seed=1), FLOAT8, compute)
    losses: list[float] = []
    said: list[str] = []
    train(
        state,
        Course(OBJECTIVE, language_batches, SCHEDULE, STEPS, logging=Logging(every=1)),
        compute,
        Listeners(record=lambda _, line: losses.append(line["loss"]), settled=lambda _, line: said.append(line)),
    )
    return {"losses": losses, "said": said} | whole_state(state)


def train_layouts(layouts: list[Parallel]) -> list[dict[str, Any]]:
    return [train_in_group(layout) for layout in layouts]


def test_groups_train_as_one_process_up_to_rounding() -> None:
    layouts = [Parallel(workers=2), Parallel(workers=2, data="fsdp")]
    ranks = run_group(2, train_layouts, layouts)
    alone = train_in_group(Parallel())
    assert [made["said"] for made in ranks[0]] == [made["said"] for made in ranks[1]], "all ranks compare the same"
    for made in ranks[0]:
        assert len(made["said"]) == 1
        # Each rank scales by the largest value of its own rows, so rounding differs by more than the order of sums.
        np.testing.assert_allclose(made["losses"], alone["losses"], rtol=5e-3)
        for name, value in alone["weights"].items():
            np.testing.assert_allclose(made["weights"][name], value, atol=5e-3, err_msg=name)
