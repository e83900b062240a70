"""Matmuls of bf16 through fp32. Oracle: fp64 products of the same factors, rounded once."""

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.network import matmul
from model.network.matmul import linear, multiplies_bf16, product, through_fp32
from model.network.transformer import Transformer
from model.training.objectives import sft_objective


def factors(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def off_by(found: Tensor, exact: Tensor) -> float:
    """The largest difference from the exact result, relative to the result's size."""
    return float((found.double() - exact).abs().max() / exact.abs().max())


@pytest.fixture
def widened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "NATIVE_BF16", False)


@pytest.mark.usefixtures("widened")
def test_products_are_exact_ones_rounded_once() -> None:
    left, right, out = factors(30, 70), factors(70, 20), torch.empty(30, 20, dtype=torch.bfloat16)
    exact = left.double() @ right.double()
    assert product(left, right).dtype is torch.bfloat16 and off_by(product(left, right), exact) < 2**-8
    assert product(left, right, out=out) is out and out.equal(product(left, right))


@pytest.mark.usefixtures("widened")
@pytest.mark.parametrize("autocast", [False, True])
def test_linear_and_its_gradients_are_exact_ones_rounded_once(autocast: bool) -> None:
    x, weight = factors(4, 9, 70).requires_grad_(), factors(20, 70).requires_grad_()
    given = factors(4, 9, 20)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = linear(x, weight)
        out.backward(given)
    assert x.grad is not None and weight.grad is not None
    assert {out.dtype, x.grad.dtype, weight.grad.dtype} == {torch.bfloat16}
    assert off_by(out.detach(), x.detach().double() @ weight.detach().double().T) < 2**-8
    assert off_by(x.grad, given.double() @ weight.detach().double()) < 2**-8
    assert off_by(weight.grad, given.double().flatten(0, 1).T @ x.detach().double().flatten(0, 1)) < 2**-8


def test_a_network_trains_alike_in_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "head_dim": 16,
        "mlp_hidden": 96,
        "vocab_size": 384,
    }
    ids = torch.randint(0, 384, (3, 20), generator=torch.Generator().manual_seed(0))
    share = torch.full((3, 20), 1 / 60)
    found: dict[tuple[bool, str], list[Tensor]] = {}
    for native, precision in ((True, "fp32"), (True, "bf16"), (False, "bf16")):
        monkeypatch.setattr(matmul, "NATIVE_BF16", native)
        model = Transformer(ModelConfig.model_validate(shape), seed=0).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            batch = {"ids": ids, "labels": ids.roll(-1, 1), "weights": share, "token_share": share}
            loss, _ = sft_objective()(model, batch)
        loss.backward()
        found[native, precision] = [loss.detach()] + [p.grad for p in model.parameters() if p.grad is not None]
    exact = found[True, "fp32"]
    assert len(exact) == 1 + 2 * 11 + 3

    def away(one: list[Tensor]) -> float:
        return sum(float((a - b).norm() / b.norm()) for a, b in zip(one, exact, strict=True))

    assert away(found[False, "bf16"]) < 1.2 * away(found[True, "bf16"])


def test_only_bf16_on_a_cpu_without_instructions_goes_through_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "NATIVE_BF16", False)
    assert (
        through_fp32(factors(2, 2)) and not through_fp32(torch.ones(2)) and not through_fp32(factors(2, 2).to("meta"))
    )
    monkeypatch.setattr(matmul, "NATIVE_BF16", True)
    assert not through_fp32(factors(2, 2))


@pytest.mark.parametrize(
    ("machine", "capability", "has", "limit", "expected"),
    [
        ("x86_64", "AVX512", True, "", True),
        ("x86_64", "AVX512", True, "AVX512_CORE_AMX", True),
        ("x86_64", "AVX512", True, "avx2", False),
        ("x86_64", "AVX512", True, "AVX512_CORE", False),
        ("x86_64", "AVX512", False, "", False),
        ("x86_64", "AVX2", True, "", False),
        ("arm64", "DEFAULT", False, "", True),
    ],
)
def test_instructions_are_those_that_the_libraries_may_use(
    monkeypatch: pytest.MonkeyPatch, machine: str, capability: str, has: bool, limit: str, expected: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert multiplies_bf16() is expected
