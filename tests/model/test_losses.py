"""Loss and log-probabilities. Oracle: torch.nn.functional.cross_entropy on whole logits, RECIPE A.5 and F."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import model.training.losses as losses
from model.data.labels import loss_divisor, next_token_labels
from model.training.losses import ACCELERATOR, HeadSizes, head_loss, log_prob_sizes, loss_sizes, token_log_probs


def cut(monkeypatch: pytest.MonkeyPatch, sizes: HeadSizes) -> None:
    for name in ("loss_sizes", "log_prob_sizes"):
        monkeypatch.setattr(losses, name, lambda device_type, vocab_size: sizes)


class Seen(TorchDispatchMode):
    """Names of the operators that torch's dispatcher is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # Chunks of 10, 10, 10 and 3 of the 3 x 11 rows, in pieces of 4 and 2, and uneven tiles of the 50 of the head.
    cut(monkeypatch, HeadSizes(chunk=10, piece=4, tile=16))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 11, 8, generator=generator, requires_grad=True)
    head = torch.randn(50, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, 50, (3, 11), generator=generator)
    labels[1, 4:] = -100
    return hidden, head, labels


@pytest.mark.parametrize("z_weight", [0.0, 1e-4, 0.5])
def test_chunked_loss_and_gradients_equal_whole_logits(case: tuple, z_weight: float) -> None:
    hidden, head, labels = case
    divisor = torch.tensor(17.0)
    loss, metrics = head_loss(hidden, head, labels, divisor, z_weight=z_weight)
    (2.5 * loss).backward()
    got = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    logits = (hidden @ head.T).flatten(0, 1)
    ce = F.cross_entropy(logits, labels.flatten(), reduction="sum") / divisor
    z = z_weight * (logits.logsumexp(-1).square() * (labels.flatten() != -100)).sum() / divisor
    (2.5 * (ce + z)).backward()
    torch.testing.assert_close(loss, ce + z)
    torch.testing.assert_close(metrics["ce"], ce.detach())
    torch.testing.assert_close(metrics["z"], z.detach())
    torch.testing.assert_close(got[0], hidden.grad)
    torch.testing.assert_close(got[1], head.grad)


def test_no_tensor_is_as_large_as_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: every tensor that an operator makes, seen at torch's dispatcher."""
    cut(monkeypatch, HeadSizes(chunk=16, piece=8, tile=300))

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            sizes = [value.numel() for value in pytree.tree_leaves(made) if isinstance(value, torch.Tensor)]
            self.elements = max([self.elements, *sizes])
            return made

    hidden, head = (torch.randn(*shape, requires_grad=True) for shape in ((4, 32, 8), (300, 8)))
    with Largest() as largest:
        loss, _ = head_loss(hidden, head, torch.randint(0, 300, (4, 32)), torch.tensor(1.0))
        loss.backward()
    assert largest.elements == 16 * 300 < 4 * 32 * 300


def test_frozen_head_or_no_gradient(case: tuple) -> None:
    hidden, head, labels = case
    loss, _ = head_loss(hidden, head.detach(), labels, torch.tensor(1.0))
    loss.backward()
    assert hidden.grad is not None
    with torch.no_grad(), Seen() as seen:
        again, _ = head_loss(hidden, head, labels, torch.tensor(1.0))
    torch.testing.assert_close(again, loss.detach())
    # Without gradients the logits of each chunk are the only result.
    assert [name for name in seen.names if "mm" in name] == ["aten.mm.out"] * 4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize(("normalisation", "z_weight", "temperature"), [("labels", 1e-4, 0.7), ("positions", 0.0, 1.0)])
def test_an_accelerators_sizes_change_rounding_only(
    monkeypatch: pytest.MonkeyPatch,
    dtype: Any,
    tolerance: float,
    normalisation: Any,
    z_weight: float,
    temperature: float,
) -> None:
    """Oracle: the sizes of a CPU. One whole chunk and a part of one, in pieces; without the CPU's tiles."""
    generator = torch.Generator().manual_seed(0)
    rows, vocab = ACCELERATOR.chunk + 100, 5000
    start = [torch.randn(size, 16, generator=generator) for size in (rows, vocab)]
    labels = torch.randint(0, vocab, (1, rows), generator=generator)
    labels[torch.rand(1, rows, generator=generator) < 0.3] = -100
    weights = torch.randn(1, rows, generator=generator)
    divisor = torch.tensor(loss_divisor(int((labels != -100).sum()), 0, 1, rows, normalisation))

    def computed() -> list[torch.Tensor]:
        hidden, head = start[0].to(dtype).unsqueeze(0).requires_grad_(), start[1].clone().requires_grad_()
        loss, metrics = head_loss(hidden, head, labels, divisor, z_weight=z_weight)
        values = token_log_probs(hidden, head, labels, temperature)
        gradients = [torch.autograd.grad(total, (hidden, head)) for total in (loss, (values * weights).sum())]
        return [t.detach() for t in (loss, *metrics.values(), values, *gradients[0], *gradients[1])]

    expected = computed()
    cut(monkeypatch, loss_sizes("cuda", vocab))
    for got, want in zip(computed(), expected, strict=True):
        assert got.dtype == want.dtype
        assert float((got - want).float().norm()) <= tolerance * float(want.float().norm())


def test_sizes_go_by_the_type_of_device() -> None:
    """On a CPU they decide how sums round, so they stay what trained models were computed with."""
    assert loss_sizes("cpu", 100_352) == HeadSizes(chunk=512, piece=32, tile=4096)
    assert log_prob_sizes("cpu", 100_352) == HeadSizes(chunk=41, piece=41, tile=100_352)
    assert loss_sizes("cpu", 512) == HeadSizes(chunk=8192, piece=8192, tile=4096)
    assert {sizes(device, 100_352) for sizes in (loss_sizes, log_prob_sizes) for device in ("cuda", "mps")} == {
        ACCELERATOR
    }


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_gradients_equal_log_softmax(case: tuple, temperature: float) -> None:
    hidden, head, labels = case
    weights = torch.randn(3, 11, generator=torch.Generator().manual_seed(1))
    (token_log_probs(hidden, head, labels, temperature) * weights).sum().backward()
    got = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    whole = ((hidden @ head.T) / temperature).log_softmax(-1)
    picked = whole.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (labels != -100)
    torch.testing.assert_close(token_log_probs(hidden, head, labels, temperature), picked)
    (picked * weights).sum().backward()
    torch.testing.assert_close(got[0], hidden.grad)
    torch.testing.assert_close(got[1], head.grad)


def test_labels_shift_and_mask() -> None:
    ids = np.array([[5, 6, 7, 8]], dtype=np.uint32)
    assert next_token_labels(ids).tolist() == [[6, 7, 8, -100]]
    trained = np.array([[True, False, True, False]])
    assert next_token_labels(ids, trained).tolist() == [[-100, 7, -100, -100]]


def test_divisors() -> None:
    """Two windows of three positions; one is removed, the other has labels at all positions but the last."""
    assert loss_divisor(2, 1, 2, 3, "labels") == 2 + 3
    assert loss_divisor(2, 1, 2, 3, "positions") == 6
    assert loss_divisor(2, 1, 2, 3, "sum") == 1
