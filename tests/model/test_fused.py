"""Fused operations on CPUs: values and gradients are those of the plain ones, in fp32 and bf16, on any number of threads."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.kernels.library import COMPILED_KERNELS, instruction_sets, kernels_for
from model.network import transformer
from model.network.fused import HeadShape, attends, fuses
from model.network.transformer import Transformer
from model.parallel.group import recompute

pytestmark = pytest.mark.compiler
HEADS = [(4, 4, 32), (4, 2, 32), (8, 1, 16), (1, 1, 128)]
ROWS = [(3, 64), (1, 7), (2, 130), (1, 300)]


@pytest.fixture(autouse=True)
def compiled() -> None:
    if not instruction_sets():
        pytest.skip("this processor has no AVX2")
    assert kernels_for(torch.float32, torch.device("cpu")) is not None, (
        "the kernels do not compile here; the log says why"
    )


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def network(heads: tuple[int, int, int] = HEADS[0], options: Mapping[str, object] | None = None) -> Transformer:
    n_heads, n_kv_heads, head_dim = heads
    sizes = {"n_layers": 2, "mlp_hidden": 72, "vocab_size": 384, "max_sequence_length": 1024}
    shape = {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim, "d_model": n_heads * head_dim}
    model = Transformer(ModelConfig.model_validate({**sizes, **shape, **(options or {})}), seed=0).train()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # Norms' weights begin at one, where a factor left out would not be seen.
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.05)
    return model


def passed(model: Transformer, rows: tuple[int, int], precision: str = "fp32") -> dict[str, Tensor]:
    """Outputs and gradients of one pass, fp32."""
    ids = torch.randint(0, model.config.vocab_size, rows, generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
        out = model(ids).float()
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {"outputs": out.detach()} | gradients


def plainly(
    model: Transformer, rows: tuple[int, int], monkeypatch: pytest.MonkeyPatch, precision: str = "fp32"
) -> dict[str, Tensor]:
    with monkeypatch.context() as patched:
        patched.setenv(COMPILED_KERNELS, "0")
        return passed(model, rows, precision)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("rows", ROWS)
def test_values_and_gradients_are_those_of_plain_operations(
    heads: tuple[int, int, int], rows: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(heads)
    found, expected = passed(model, rows), plainly(model, rows, monkeypatch)
    assert found.keys() == expected.keys() and len(found) == 3 + 11 * 2 + 1
    assert max(distance(found[name], expected[name]) for name in expected) < 5e-6


@pytest.mark.parametrize("heads", HEADS)
def test_in_bf16_they_are_as_near_to_fp32_as_plain_operations(
    heads: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = network(heads), (3, 64)
    exact, plain = plainly(model, rows, monkeypatch), plainly(model, rows, monkeypatch, "bf16")
    found = passed(model, rows, "bf16")
    away = {name: (distance(found[name], exact[name]), distance(plain[name], exact[name])) for name in exact}
    assert max(ours / theirs for ours, theirs in away.values()) < 1.5
    assert sum(ours for ours, _ in away.values()) < 1.05 * sum(theirs for _, theirs in away.values())


def test_weights_in_bf16_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """So they travel between workers (fsdp)."""
    model = network()
    for norm in model.modules():
        if isinstance(norm, transformer.RMSNorm):
            norm.weight = torch.nn.Parameter(norm.weight.detach().bfloat16())
    found, expected = passed(model, (3, 64)), plainly(model, (3, 64), monkeypatch)
    assert distance(found["outputs"], expected["outputs"]) < 5e-6
    assert max(distance(found[name].float(), expected[name].float()) for name in expected) < 5e-3


@pytest.mark.usefixtures("two_threads")
def test_two_threads_give_the_same_outputs_and_gradients_up_to_rounding() -> None:
    model = network()
    two = passed(model, (3, 70))
    torch.set_num_threads(1)
    one = passed(model, (3, 70))
    assert max(distance(two[name], one[name]) for name in one) < 5e-6


def test_the_same_pass_twice_is_the_same_bytes() -> None:
    model = network()
    first, second = passed(model, (3, 70), "bf16"), passed(model, (3, 70), "bf16")
    assert all(first[name].equal(second[name]) for name in first)


def test_what_is_computed_again_for_the_backward_pass_is_the_same() -> None:
    model = network()
    kept = passed(model, (3, 64), "bf16")
    recompute(model, "blocks")
    again = passed(model, (3, 64), "bf16")
    assert all(again[name].equal(kept[name]) for name in kept)


def test_a_pass_without_gradients_gives_the_outputs_of_one_with_them() -> None:
    model = network()
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        without = model(ids)
    assert without.equal(model(ids).detach())


def test_numbers_that_are_not_finite_stay_so() -> None:
    model = network()
    with torch.no_grad():
        model.embedding.weight[5, 3] = float("nan")
        model.embedding.weight[6, 0] = float("inf")
    with torch.no_grad():
        out = model(torch.tensor([[1, 2, 5, 3], [1, 2, 3, 4], [6, 1, 1, 1]]))
    assert not out[0, 2].isfinite().any() and out[1].isfinite().all()
    assert not out[2, 0].isfinite().any()


def test_where_a_norm_or_a_clip_is_another_the_plain_operations_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    layers: dict[str, object] = {"norm": "layer", "norm_placement": "input", "qk_norm": "none"}
    for options in (layers, {"qkv_clip": 0.1}):
        model = network(HEADS[0], options)
        found, expected = passed(model, (2, 20)), plainly(model, (2, 20), monkeypatch)
        assert max(distance(found[name], expected[name]) for name in expected) < 5e-6


def test_long_rows_and_odd_heads_are_left_to_pytorch() -> None:
    assert (
        attends(HeadShape(4, 4, 32), 512)
        and not attends(HeadShape(4, 4, 32), 513)
        and not attends(HeadShape(4, 4, 24), 8)
    )


def test_other_types_and_compiled_code_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    assert fuses(torch.ones(2, 4), weight) and fuses(torch.ones(2, 4).bfloat16(), weight)
    assert not fuses(torch.ones(2, 4), torch.nn.Parameter(torch.ones(4).double()))
    assert not fuses(torch.ones(2, 4).double(), weight) and not fuses(torch.ones(2, 4, device="meta"), weight)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fuses(torch.ones(2, 4), weight)


def test_a_block_is_fused_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(*_: object, **__: object) -> Tensor:
        raise AssertionError("plain attention was asked")

    monkeypatch.setattr(transformer, "attention", plain)
    passed(network(), (2, 20))
