"""The choice of attention's kernel. Oracle: softmax attention written out in fp64, and the names that PyTorch's profiler sees."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from model.config import AttentionBackend, Compute, Parallel
from model.network.attention_backend import (
    BACKENDS,
    KERNELS,
    AttentionShape,
    attention_by,
    measure_kernels,
    measured,
)
from model.network.transformer import Attention
from model.parallel.group import distribute
from model.training.attention_choice import agreed_choice, choose_attention
from model.training.configs import OptimConfig
from model.training.loop import Course, Listeners, TrainState, new_state, train
from tests.model.groups import CONFIG, KINDS, SCHEDULE, STEPS, model_of, run_group

OF_A_CPU = {"flash", "math"}
SHAPE = AttentionShape("cpu", torch.float32, 4, 2, 16, 128)
OPERATIONS = {"flash": "_scaled_dot_product_flash_attention_for_cpu", "math": "_scaled_dot_product_attention_math"}


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention in fp64."""
    k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1).double() for tensor in (k, v))
    scores = q.double() @ k.mT / q.shape[-1] ** 0.5
    return (scores + torch.full(scores.shape[-2:], float("-inf")).triu(1)).softmax(-1) @ v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", sorted(OF_A_CPU))
def test_each_kernel_computes_causal_attention(backend: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 40, 16, dtype=dtype, generator=generator) for heads in (4, 2, 2))
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(attention_by(backend, q, k, v).double(), exact(q, k, v), atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_quickest_of_those_that_agree_is_chosen(dtype: torch.dtype) -> None:
    found = measure_kernels(SHAPE._replace(dtype=dtype))
    assert set(found.seconds) == OF_A_CPU and min(found.seconds.values()) > 0
    assert set(found.refused) == set(BACKENDS) - OF_A_CPU
    quickest = min(found.seconds, key=lambda name: found.seconds[name])
    assert found.chosen("auto") == quickest
    assert [found.chosen(name) for name in ("flash", "math")] == ["flash", "math"]
    slower = found._replace(seconds={"flash": 2e-3, "math": 1e-3})
    assert slower.chosen("auto") == "math"
    assert slower.line("math") == (
        "attention by math (math 1 ms, flash 2 ms, no cudnn, no efficient) for 128 tokens, 4 heads of 16 with 2 for keys "
        f"and values, {str(dtype)[6:]} on cpu"
    )


def not_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Quick, and wrong."""
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class WrongGradient(torch.autograd.Function):
    """Right forward; its gradients are twice what they should be."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


@pytest.mark.parametrize(
    "wrong",
    [
        not_causal,
        lambda q, k, v: KERNELS["flash"](q, k, v) * float("nan"),
        lambda q, k, v: WrongGradient.apply(KERNELS["flash"](q, k, v)),
    ],
    ids=["not causal", "not a number", "gradient"],
)
def test_a_kernel_that_computes_wrongly_is_refused_by_name(wrong: Callable[..., Tensor]) -> None:
    found = measure_kernels(SHAPE, {"flash": wrong, "math": KERNELS["math"]})
    assert found.chosen("auto") == "math" and set(found.seconds) == {"math"}
    with pytest.raises(ValueError, match=r"execution\.attention=flash cannot .*flash: is off math in fp32 by .*limit"):
        found.chosen("flash")


def test_what_a_device_lacks_is_refused_by_name() -> None:
    found = measured(SHAPE, ("cudnn",))
    with pytest.raises(ValueError, match=r"execution\.attention=cudnn cannot .*128 tokens.*\(cudnn: No viable backend"):
        found.chosen("cudnn")
    with pytest.raises(ValueError, match=r"execution\.attention=auto cannot compute"):
        measured(SHAPE, ("cudnn", "efficient")).chosen("auto")
    assert measured(SHAPE, ("cudnn",)) is found


# --- in a training ------------------------------------------------------------------------------------


def trained(
    attention: AttentionBackend, told: Listeners, *, compiled: bool = False, precision: str = "fp32"
) -> TrainState:
    objective, batches = KINDS["language model"]
    compute = Compute(attention=attention, compile="blocks" if compiled else "off")
    state = new_state(model_of("language model"), OptimConfig.model_validate({"precision": precision}), compute)
    return train(state, Course(objective(), batches, SCHEDULE, STEPS), compute, told)


def backends(state: TrainState) -> set[str | None]:
    return {part.backend for part in state.model.modules() if isinstance(part, Attention)}


@pytest.mark.parametrize("backend", ["flash", "math"])
def test_a_training_attends_by_the_kernel_that_is_named(backend: AttentionBackend) -> None:
    lines: list[str] = []
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        state = trained(backend, Listeners(settled=lambda _, line: lines.append(line)))
    names = [event.name.removeprefix("aten::") for event in seen.events() or []]
    # The check before the first step runs the kernel too, and the reference is always math.
    assert names.count(OPERATIONS[backend]) >= STEPS * CONFIG.n_layers
    assert backends(state) == {backend}
    assert len(lines) == 1 and lines[0].startswith(f"attention by {backend} (") and "16 tokens" in lines[0]
    ordinary = trained("auto", Listeners())
    for one, two in zip(state.model.parameters(), ordinary.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4)


def test_evaluation_goes_on_as_without_a_choice() -> None:
    state = trained("math", Listeners())
    ids = torch.arange(16).view(1, 16)
    state.model.eval()
    with profile(activities=[ProfilerActivity.CPU]) as seen, torch.no_grad():
        state.model(ids)
    assert not any(OPERATIONS["math"] in event.name for event in seen.events() or [])


def test_a_cpu_keeps_its_own_kernels_unless_one_is_named() -> None:
    lines: list[str] = []
    state = trained("auto", Listeners(settled=lambda _, line: lines.append(line)))
    assert backends(state) == {None} and lines == []


def test_a_training_with_a_kernel_that_is_not_there_makes_no_step() -> None:
    seen: list[int] = []
    with pytest.raises(ValueError, match=r"execution\.attention=efficient cannot compute attention of 16 tokens"):
        trained("efficient", Listeners(record=lambda step, _: seen.append(step)))
    assert seen == []


@pytest.mark.slow
def test_compiled_code_attends_by_the_kernel_too() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        compiled = trained("flash", Listeners(), compiled=True, precision="bf16")
    names = [event.name for event in seen.events() or []]
    assert any(OPERATIONS["flash"] in name for name in names) and not any("BlockedAttention" in name for name in names)
    eager = trained("flash", Listeners(), precision="bf16")
    for one, two in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=5e-3, rtol=1e-2)


# --- in a group ---------------------------------------------------------------------------------------


def choose_in_group() -> tuple[str, str, str, set[str | None], int]:
    """What a rank of two is told: the choice among all, the line, the refusal, a model's kernels; and what it measured itself."""
    model = model_of("language model")
    compute = Compute(parallel=Parallel(workers=2), attention="math")
    group = distribute(model, compute, "fp32")
    name, line = agreed_choice(group, SHAPE, "auto")
    try:
        agreed_choice(group, SHAPE, "cudnn")
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    choose_attention(model, group, compute, "fp32", 16)
    found = {part.backend for part in model.modules() if isinstance(part, Attention)}
    return name, line, refusal, found, measured.cache_info().misses


def test_all_ranks_take_what_rank_0_has_found() -> None:
    first, second = run_group(2, choose_in_group)
    assert first[:4] == second[:4]
    assert first[0] in OF_A_CPU and "cudnn cannot compute" in first[2] and first[3] == {"math"}
    assert (first[4], second[4]) == (3, 0), "rank 0 alone measures"
