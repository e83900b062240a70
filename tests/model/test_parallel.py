"""Training by several processes. Oracle: the same training in one process; sums are in another order, nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from model.config import Compute, Parallel
from model.files.weights import save_hf
from model.network.sharded_tensors import rows_of_shard
from model.network.transformer import Transformer
from model.parallel.work_split import share_of
from model.training.configs import OptimConfig
from model.training.loop import new_state
from model.training.state_files import MOMENT_KINDS, save_moments
from tests.model.groups import (
    CONFIG,
    DEEP,
    KINDS,
    PARTS,
    STEPS,
    build_all,
    chat_batches,
    model_of,
    run_group,
    train_hybrid,
    train_kind,
    train_pair,
    two_workers,
)

LAYOUTS = ("ddp", "fsdp")
SEPARATE = "ddp, a matmul for each weight"
"""Copies that round where shards do, since these join no weights of a block."""
BF16 = OptimConfig(precision="bf16")


@pytest.fixture(scope="module")
def two() -> tuple[list[tuple[str, dict]], dict]:
    """Trainings by two workers, of every kind of objective in every layout, and what else is tried in their group."""
    cases = [
        (kind, {"parallel": Parallel(workers=2, data=data, activation_checkpointing=policy)})
        for data, policy in zip(LAYOUTS, ("blocks", "feed_forward"), strict=True)
        for kind in KINDS
        if kind != "bf16"
    ]
    cases += [("bf16", {"parallel": Parallel(workers=2, data=data), "optim": BF16}) for data in LAYOUTS]
    cases.append(("bf16", {"parallel": Parallel(workers=2), "optim": BF16, "separate": True}))
    return cases, run_group(2, two_workers, cases)[0]


@pytest.fixture(scope="module")
def pairs(two: tuple[list[tuple[str, dict]], dict]) -> dict[tuple[str, str], dict]:
    cases, found = two
    return {
        (kind, SEPARATE if how.get("separate") else how["parallel"].data): made
        for (kind, how), made in zip(cases, found["trained"], strict=True)
    }


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"bf16"}))
def test_two_workers_have_the_losses_and_weights_of_one(kind: str, pairs: dict[tuple[str, str], dict]) -> None:
    alone = train_kind(kind, Parallel())
    assert len(alone["lines"]) == 4
    for data in LAYOUTS:
        group = pairs[kind, data]
        for mine, ours in zip(alone["lines"], group["lines"], strict=True):
            assert mine.keys() == ours.keys()
            assert ours["tokens"] == mine["tokens"]
            assert ours["loss"] == pytest.approx(mine["loss"], rel=1e-6, abs=1e-6)
            for name, value in mine.items():
                assert ours[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
        for part in ("weights", "moments"):
            assert alone[part].keys() == group[part].keys()
            for name, value in alone[part].items():
                np.testing.assert_allclose(group[part][name], value, atol=2e-6, err_msg=f"{data} {name}")


def test_recomputed_activations_change_no_bit() -> None:
    plain = train_kind("chats", Parallel())
    for policy in ("blocks", "feed_forward"):
        again = train_kind("chats", Parallel(activation_checkpointing=policy))
        assert all(np.array_equal(again["weights"][name], value) for name, value in plain["weights"].items())


def test_recomputation_keeps_less() -> None:
    """What autograd saves of two blocks: with `blocks` their inputs, without it many times that."""
    kept = {}
    for policy in ("off", "feed_forward", "blocks"):
        from model.parallel.group import recompute

        model = Transformer(CONFIG, seed=1).train()
        recompute(model, policy)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):  # noqa: B023
            model.hidden(torch.zeros(2, 16, dtype=torch.long))
        kept[policy] = sum(sizes)
    assert kept["blocks"] < kept["feed_forward"] < kept["off"]


def test_bf16_rounds_where_one_process_rounds(pairs: dict[tuple[str, str], dict]) -> None:
    """Master weights and their sums are fp32: a group in bf16 is as near to one process as fp32 sums allow."""
    alone = train_kind("bf16", Parallel(), optim=BF16)
    for data in LAYOUTS:
        assert all(value.dtype == np.float32 for value in pairs["bf16", data]["weights"].values())
        for mine, ours in zip(alone["lines"], pairs["bf16", data]["lines"], strict=True):
            assert ours["loss"] == pytest.approx(mine["loss"], rel=2e-4)


def test_weights_that_travel_in_bf16_round_where_products_do(pairs: dict[tuple[str, str], dict]) -> None:
    """The first step of copies, with a matmul for each weight, is that of shards, but for the gradients of norms; then the norms
    are rounded, too.
    """
    copies, parts = (pairs["bf16", layout]["lines"] for layout in (SEPARATE, "fsdp"))
    assert parts[0]["loss"] == copies[0]["loss"]
    assert parts[0]["grad_norm"] == pytest.approx(copies[0]["grad_norm"], rel=1e-5)
    for mine, ours in zip(copies, parts, strict=True):
        assert ours["loss"] == pytest.approx(mine["loss"], rel=2e-4)
        assert ours["grad_norm"] == pytest.approx(mine["grad_norm"], rel=5e-3)


def test_shards_within_copies_equal_one_process() -> None:
    hybrid = Parallel(workers=4, data="hsdp", replicas=2)
    found = run_group(4, train_hybrid, hybrid)
    assert [bool(made.get("weights")) for made in found] == [True, False, False, False]
    alone = train_kind("chats", Parallel())
    for name, value in alone["weights"].items():
        np.testing.assert_allclose(found[0]["weights"][name], value, atol=2e-6, err_msg=name)
    # Of embedding, two blocks, and norm with head: once a step, even where it has several passes.
    assert [len(share_of(chat_batches(step), 0, 4)) for step in range(STEPS)] == [1, 2, 2, 2]
    assert [made["exchanged"] for made in found] == [4 * STEPS] * 4


def test_a_policy_and_its_value_model_in_parts_are_those_of_one_process(two: tuple[list, dict]) -> None:
    """Heads are read by losses and by scores, with and without gradients, before the first update and after others."""
    alone, ours = train_pair(Parallel()), two[1]["pair"]
    for mine, said in zip(alone["said"], ours["said"], strict=True):
        np.testing.assert_allclose(said, mine, atol=1e-5)
    for mine, line in zip(alone["lines"], ours["lines"], strict=True):
        assert {"grad_norm", "value_grad_norm"} < mine.keys() == line.keys()
        for name, value in mine.items():
            assert line[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    assert not np.array_equal(ours["said"][0], ours["said"][4])


def test_a_part_of_the_model_is_whole_while_it_is_held(two: tuple[list, dict]) -> None:
    model = model_of("language model")
    weights = dict(model.named_parameters())
    for name, found in zip(PARTS, two[1]["held"], strict=True):
        assert found["values"].keys() == {key for key in weights if key.startswith(f"{name}.")}
        for key, value in found["values"].items():
            travels = weights[key].bfloat16() if key.startswith("blocks") else weights[key]
            assert torch.equal(value, travels) and value.dtype == travels.dtype, key
        together = {"blocks.0.attention": "blocks.0.", "norm": ("norm.", "head."), "head": ("norm.", "head.")}
        assert found["whole"] == [key for key in weights if key.startswith(together.get(name, f"{name}."))]
        assert found["left"] == []


# --- building -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and moments of a finished run of one process."""
    folder = tmp_path_factory.mktemp("saved")
    save_hf(Transformer(DEEP, seed=1), DEEP, None, folder)
    state = new_state(Transformer(DEEP, seed=1), OptimConfig(), Compute())
    shapes = {name: value.shape for name, value in state.model.named_parameters()}
    drawn = {f"{kind}/{name}": torch.randn(shape) for name, shape in shapes.items() for kind in MOMENT_KINDS}
    state.optimizer.restore_moments(drawn | {f"step/{name}": torch.tensor(3.0) for name in shapes})
    save_moments(state.optimizer, folder / "moments.safetensors")
    return folder


@pytest.fixture(scope="module")
def built(saved: Path) -> list[list[dict]]:
    """A model built by two workers, of whom the second holds fewer rows of the embedding; by rank."""
    parts = Parallel(workers=2, data="fsdp")
    return run_group(2, build_all, [(parts, None), (parts, saved)])


@pytest.mark.parametrize("source", ["seed", "folder"])
def test_a_model_built_in_parts_is_the_one_of_one_process(source: str, built: list[list[dict]], saved: Path) -> None:
    found = built[0][source == "folder"]
    for name, value in Transformer(DEEP, seed=1).named_parameters():
        np.testing.assert_array_equal(found["weights"][name], value.detach().numpy(), err_msg=name)
    moments = load_file(saved / "moments.safetensors")
    names = {key for key in moments if not key.startswith("step/")}
    assert found["moments"].keys() == (names if source == "folder" else set())
    for key, value in found["moments"].items():
        np.testing.assert_array_equal(value, moments[key].numpy(), err_msg=key)


@pytest.mark.parametrize("source", ["seed", "folder"])
def test_a_worker_asks_for_its_own_rows(source: str, built: list[list[dict]]) -> None:
    for name, value in Transformer(DEEP, seed=None).named_parameters():
        asked = [[(start, stop) for key, start, stop in of[source == "folder"]["asked"] if key == name] for of in built]
        assert asked == [[rows_of_shard(len(value), rank, 2)] for rank in range(2)], name


@pytest.mark.parametrize(("source", "copies"), [("seed", 4), ("folder", 1)])
def test_no_worker_ever_holds_the_whole_model(source: str, copies: int, built: list[list[dict]]) -> None:
    """Oracle: the allocator's record of every allocation and release. Drawing makes copies of one tensor at a time,
    reading none besides the padding of a shard.
    """
    largest = 4 * max(value.numel() for value in Transformer(DEEP, seed=None).parameters())
    for of in built:
        found = of[source == "folder"]
        assert found["held"] == pytest.approx(4 * DEEP.parameters / 2, rel=0.05)
        assert found["peak"] <= found["held"] + copies * largest + 1024
        assert found["peak"] < 0.75 * 4 * DEEP.parameters


# --- shards -------------------------------------------------------------------------------------------


@given(rows=st.integers(0, 40), shards=st.integers(1, 9))
def test_shards_are_what_torch_chunks(rows: int, shards: int) -> None:
    found = [rows_of_shard(rows, shard, shards) for shard in range(shards)]
    chunks = torch.arange(rows).chunk(shards) if rows else ()
    sizes = [len(chunk) for chunk in chunks] + [0] * (shards - len(chunks))
    assert [stop - start for start, stop in found] == sizes
    assert found[0][0] == 0 and found[-1][1] == rows


# --- settings -----------------------------------------------------------------------------------------


def test_a_group_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parallel\.workers=2, but 1 process\(es\) have joined"):
        train_kind("language model", Parallel(workers=2))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": "fsdp", "replicas": 2}, "replicas=2 is a setting of hsdp"),
        ({"data": "hsdp", "workers": 4, "replicas": 3}, "workers=4 is not a multiple of replicas=3"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Parallel(**options)
