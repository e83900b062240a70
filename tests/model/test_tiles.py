"""Training by matrix tiles (AMX): the loops around them, with the instructions written out, so that any x86 processor tests them.

Oracle: fp64.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.library import Kernels, compiled, instruction_sets
from model.network import fused
from model.network.fused import fused_attention, fused_outer, has_tiles
from model.training.losses import FUSED_ROWS, head_loss, token_log_probs

pytestmark = pytest.mark.compiler


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    sets = instruction_sets()
    if not sets:
        pytest.skip("this processor has no AVX2")
    folder: Path = tmp_path_factory.mktemp("kernels")
    return Kernels(compiled(["g++"], (*sets[0], "-DOLMO2_EMULATE_AMX"), folder))


@pytest.fixture(autouse=True)
def by_tiles(emulated: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    assert emulated.tiles
    monkeypatch.setattr(fused, "kernels_for", lambda dtype, device: emulated)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def distance(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize(("rows", "m", "n"), [(37, 50, 20), (5, 3, 7), (600, 72, 64), (64, 20, 333), (1100, 33, 130)])
def test_outer_products_are_summed_in_fp32(rows: int, m: int, n: int) -> None:
    left, right = drawn(rows, m + 3)[:, :m], drawn(rows, n, seed=1)
    assert has_tiles(left)
    expected = left.double().T @ right.double()
    assert distance(fused_outer(left, right), expected) < 1e-6
    total = drawn(m, n, seed=2).float()
    before = total.double()
    assert distance(fused_outer(left, right, out=total, adds=True), before + expected) < 1e-6


@pytest.mark.parametrize(("batch", "seq", "width", "vocab"), [(3, 11, 48, 700), (2, 300, 20, 50), (1, 1, 64, 513)])
@pytest.mark.parametrize("z_weight", [0.0, 1e-2])
def test_a_heads_loss_and_gradients(batch: int, seq: int, width: int, vocab: int, z_weight: float) -> None:
    hidden, head = drawn(batch, seq, width), (0.3 * drawn(vocab, width, seed=1)).float()
    labels = torch.randint(0, vocab, (batch, seq), generator=torch.Generator().manual_seed(2))
    labels[0, 1:4] = -100
    given = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    loss, metrics = head_loss(*given, labels, torch.tensor(17.0), z_weight=z_weight)
    (2.5 * loss).backward()
    exact = hidden.double().requires_grad_(), head.bfloat16().double().requires_grad_()
    logits = (exact[0] @ exact[1].T).flatten(0, 1)
    ce = F.cross_entropy(logits, labels.flatten(), reduction="sum") / 17
    z = z_weight * (logits.logsumexp(-1).square() * (labels.flatten() != -100)).sum() / 17
    (2.5 * (ce + z)).backward()
    assert float(metrics["ce"]) == pytest.approx(float(ce.detach()), rel=1e-5)
    assert float(metrics["z"]) == pytest.approx(float(z.detach()), rel=1e-5)
    for found, wanted in zip(given, exact, strict=True):
        assert found.grad is not None and wanted.grad is not None
        assert distance(found.grad, wanted.grad) < 4e-3  # a bf16 has 8 bits


def test_a_head_in_bf16_has_a_gradient_in_bf16() -> None:
    """Weights travel so between workers (fsdp)."""
    hidden, labels = drawn(2, 9, 32).requires_grad_(), torch.arange(18).view(2, 9)
    heads = [drawn(600, 32, seed=1).to(dtype).requires_grad_() for dtype in (torch.bfloat16, torch.float32)]
    for head in heads:
        head_loss(hidden, head, labels, torch.tensor(1.0))[0].backward()
        (3 * token_log_probs(hidden, head, labels)).sum().backward()  # the other way: they would cancel out
    half, whole = (head.grad for head in heads)
    assert half is not None and whole is not None
    assert half.dtype is torch.bfloat16 and distance(half, whole.double()) < 1e-2


def test_a_loss_without_gradients_is_the_same() -> None:
    hidden, head, labels = drawn(2, 9, 32), drawn(600, 32, seed=1).float().requires_grad_(), torch.arange(18).view(2, 9)
    with torch.no_grad():
        without, _ = head_loss(hidden, head, labels, torch.tensor(1.0))
    assert without.equal(head_loss(hidden, head, labels, torch.tensor(1.0))[0].detach())


def test_more_rows_than_are_computed_at_a_time_add_up() -> None:
    rows = FUSED_ROWS + 40
    hidden, labels = drawn(1, rows, 16), torch.randint(0, 90, (1, rows), generator=torch.Generator().manual_seed(2))
    given, exact = drawn(90, 16, seed=1).float().requires_grad_(), drawn(90, 16, seed=1).double().requires_grad_()
    head_loss(hidden, given, labels, torch.tensor(1.0), z_weight=0)[0].backward()
    F.cross_entropy((hidden.double() @ exact.T)[0], labels[0], reduction="sum").backward()
    assert given.grad is not None and exact.grad is not None and distance(given.grad, exact.grad) < 4e-3


@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "seq", "dim"), [(2, 4, 4, 70, 32), (1, 4, 2, 200, 16), (2, 2, 1, 7, 48)]
)
def test_attention(batch: int, heads: int, kv_heads: int, seq: int, dim: int) -> None:
    shapes = ((batch, heads, seq, dim), (batch, kv_heads, seq, dim), (batch, kv_heads, seq, dim))
    given = [drawn(*shape, seed=at).requires_grad_() for at, shape in enumerate(shapes)]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    outer = drawn(batch, seq, heads * dim, seed=5)
    found = fused_attention(*given)
    found.backward(outer)
    wanted = F.scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)
    wanted.backward(outer.double())
    assert distance(found, wanted) < 4e-3
    for mine, right in zip(given, exact, strict=True):
        assert mine.grad is not None and right.grad is not None and distance(mine.grad, right.grad) < 6e-3
