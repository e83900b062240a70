"""Compiled and recomputed blocks. Oracles: the compiler's own counters, and the values of blocks that keep everything."""

from collections.abc import Iterator
from functools import partialmethod
from typing import cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters

from model.config import Parallel
from model.kernels.library import COMPILED_KERNELS
from model.network.sharded_tensors import local_part
from model.network.transformer import Transformer, separate_projections
from model.parallel.group import Group, _shard, recompute
from tests.model.groups import CONFIG

MODEL = CONFIG.model_copy(update={"n_layers": 3})
IDS = torch.randint(0, 100, (2, 16), generator=torch.Generator().manual_seed(0))
POLICIES = ("off", "feed_forward", "blocks")


@pytest.fixture(autouse=True)
def traced_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiling stops at the graphs, which then run as they are: what machine code they become is not asked here.

    They hold PyTorch's operations, so those compute what is not compiled, too.
    """
    monkeypatch.setenv(COMPILED_KERNELS, "0")
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process, which holds all parts of the model."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def square(model: Transformer, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    logits = model(batch["ids"])
    return logits.square().mean(), {"logits": logits.detach()}


def passed(policy: str, compiled: bool = True, parts: bool = False, separate: bool = False) -> list[Tensor]:
    """Logits and gradients of a training pass, after a second one and references of another shape."""
    model = Transformer(MODEL, seed=1).train()
    if separate:
        separate_projections(model)
    recompute(model, policy)
    group = Group(wrapped=_shard(model, Parallel(data="fsdp"), "cpu", "fp32")[0] if parts else None)
    if compiled:
        model.compile_blocks()
    for _ in range(2):
        model.zero_grad()
        loss, metrics = group.forward(square, model)({"ids": IDS})
        loss.backward()
    for length in (7, 16):
        reference = group.apply(lambda model, batch: model(batch["ids"]), model, {"ids": IDS[:, :length]})
        torch.testing.assert_close(reference, metrics["logits"][:, :length])
    return [metrics["logits"], *(local_part(cast(Tensor, value.grad)) for value in model.parameters())]


@pytest.mark.parametrize("policy", POLICIES)
def test_all_blocks_are_compiled_as_one_under_every_policy(policy: str) -> None:
    """One graph of a block and one of the final norm; passes without gradients compile nothing."""
    plain, found = passed("off", compiled=False), passed(policy)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert len(plain) == len(found) > 3 * 9
    assert all(torch.equal(one, two) for one, two in zip(plain, found, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_blocks_in_parts_are_compiled_as_one_and_gathered(policy: str, alone: None) -> None:
    plain, found = passed("off", compiled=False, separate=True), passed(policy, parts=True)
    assert counters["stats"]["unique_graphs"] == 2
    assert all(torch.equal(one, two) for one, two in zip(plain, found, strict=True))


def test_past_torchs_own_limits_shapes_are_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of three and four stand for 8 and 256: what ran eagerly past them would round differently after a resume."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 3)
    monkeypatch.setattr(torch._dynamo.config, "accumulated_recompile_limit", 4)
    model = Transformer(MODEL, seed=1).train()
    model.compile_blocks()
    for length in range(2, 14):
        model(IDS[:, :length]).sum().backward()
    assert counters["stats"]["unique_graphs"] == 2 * 12


def test_recomputation_keeps_less_of_compiled_blocks() -> None:
    """What autograd saves: with `blocks` their inputs, without it many times that."""
    kept = {}
    for policy in POLICIES:
        model = Transformer(MODEL, seed=1).train()
        recompute(model, policy)
        model.compile_blocks()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):  # noqa: B023
            model.hidden(IDS)
        kept[policy] = sum(sizes)
    assert kept["blocks"] < kept["feed_forward"] < kept["off"]
