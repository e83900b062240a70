"""A frozen reference on the policy's device, on the host, or on a device of its own. Oracles: the bytes of a training with all on
one device, and where the weights are while a pass reads them: the meta device stands for a GPU."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from flows.config.files import load
from flows.config.sizes.fit import HEADROOM, fit_recipe, fit_run, fitted_execution
from flows.config.sizes.training_runs import training_runs
from flows.rehearsing.rehearsal import rehearsed
from flows.running.readiness import check_device
from infra.execution.plan import PlanRow
from infra.settings import WITH_REFERENCE, ComputeSettings, Execution, ParallelSettings
from infra.storage.store import Store
from infra.workspace import WorkSettings, Workspace
from model.config import Compute, ModelConfig, Parallel
from model.network.initial_weights import initial_rows
from model.network.sharded_tensors import is_sharded, local_part
from model.network.transformer import Transformer, on_meta_device
from model.parallel.group import Group, distribute, fill_weights, on_host
from model.parallel.host_weights import HostWeights
from model.training.reference_scores import row_log_probs
from tasks.training import ppo, rlvr
from tasks.training.answers.rollouts import frozen_reference
from tests.model.groups import run_group
from tests.tasks.training import test_ppo, test_rlvr
from tests.tasks.training.conftest import TINY

# --- weights on the host ------------------------------------------------------------------------------


def test_only_what_computes_is_on_the_device_and_all_is_as_before_afterwards(monkeypatch) -> None:
    # Autocast, which is off here, refuses to be asked about the meta device.
    monkeypatch.setattr("torch.is_autocast_enabled", lambda kind: False)
    model = Transformer(TINY, seed=0).requires_grad_(False)
    before = dict(model.named_parameters())
    values = {name: weight.clone() for name, weight in before.items()}
    seen: list[set[str]] = []
    for block in model.blocks:

        def look(*given: Any, forward: Any = block.forward) -> Any:
            seen.append({name for name, weight in model.named_parameters() if weight.is_meta})
            return forward(*given)

        block.forward = look
    lender = HostWeights(model, "meta")
    ids = torch.zeros(2, 5, dtype=torch.int64, device="meta")
    with lender.at_hand():
        said = model(ids)
        ends = {name for name, weight in model.named_parameters() if weight.is_meta}
    assert (said.device.type, said.shape) == ("meta", (2, 5, TINY.vocab_size))
    outside = {name for name in before if not name.startswith("blocks.")}
    assert ends == outside == {"embedding.weight", "norm.weight", "head.weight"}
    for place, held in enumerate(seen):
        assert held == outside | {name for name in before if name.startswith(f"blocks.{place}.")}
    assert len(seen) == TINY.n_layers
    after = dict(model.named_parameters())
    assert all(after[name] is before[name] and torch.equal(after[name], values[name]) for name in values)


def test_an_error_in_a_pass_leaves_the_weights_on_the_host() -> None:
    model = Transformer(TINY, seed=0).requires_grad_(False)
    group = Group(device="meta", lender=HostWeights(model, "meta"))
    with pytest.raises(ValueError, match="exceeds max_sequence_length"):
        group.apply(lambda model, batch: model(batch["ids"]), model, {"ids": torch.zeros(1, 200, dtype=torch.int64)})
    assert not any(weight.is_meta for weight in model.parameters())


ROWS = test_rlvr.TOKENIZER.encode("The sum of two and three is five, and that of four and four is eight.")


def said_by(parallel: Parallel, *, host: bool) -> tuple[list[np.ndarray], bool, set[str]]:
    """Log-probabilities of rows under a frozen model, whether it is sharded, and where its own weights are afterwards."""
    rows = [test_rlvr.answer_row(test_rlvr.EncodedPrompt({}, ROWS[:n]), answered(ROWS[n:]), 2) for n in (3, 9, 14)]
    model, compute = on_meta_device(TINY).requires_grad_(False), Compute(parallel=parallel)
    group = on_host(model, compute, "fp32") if host else distribute(model, compute, "fp32")
    fill_weights(model, partial(initial_rows, TINY, 0), group)
    found = [
        row_log_probs(model, rows, pad_id=0, pass_tokens=64, precision="fp32", group=group) for _ in range(2)
    ]  # fmt: skip
    assert all(np.array_equal(one, two) for one, two in zip(*found, strict=True))
    weights = list(model.parameters())
    return found[0], is_sharded(weights[0]), {local_part(weight).device.type for weight in weights}


def answered(ids: list[int]) -> Any:
    return test_rlvr.answer(list(ids), True, "length")


def said_in_group(layouts: list[Parallel]) -> list[tuple[Any, Any]]:
    return [(said_by(layout, host=False), said_by(layout, host=True)) for layout in layouts]


def test_weights_on_the_host_say_what_weights_on_the_device_say() -> None:
    """In one process, in whole copies and in shards."""
    one, other = said_by(Parallel(), host=False), said_by(Parallel(), host=True)
    assert all(np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    assert np.abs(one[0][0]).sum() > 1
    layouts = [Parallel(workers=2, data="ddp"), Parallel(workers=2, data="fsdp")]
    for found in run_group(2, said_in_group, layouts):
        for layout, (device, host) in zip(layouts, found, strict=True):
            assert device[1] == host[1] == (layout.data == "fsdp")
            assert all(np.array_equal(a, b) for a, b in zip(device[0], host[0], strict=True))
            assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(host[0], one[0], strict=True))
            assert host[2] == {"cpu"}


# --- stages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["host", "cpu"])
def test_a_training_ends_with_the_same_bytes_and_id_wherever_its_reference_is(make_bench, monkeypatch, place):
    passes, at_hand = [], HostWeights.at_hand

    def counted(self: HostWeights) -> Any:
        passes.append(1)
        return at_hand(self)

    monkeypatch.setattr(HostWeights, "at_hand", counted)
    for name, run in (("a", test_rlvr.run), ("p", test_ppo.run)):
        usual = run(make_bench(name)).artifact
        assert not passes
        moved = run(make_bench(f"{name}-{place}", reference={"default": place})).artifact
        assert (moved.id, moved.digest) == (usual.id, usual.digest)
        assert bool(passes) == (place == "host")
        passes.clear()


def reference_at(place: str, tmp_path: Any) -> tuple[Transformer, Group]:
    ws = Workspace(
        Store(str(tmp_path)), stage="rlvr", id="1", payload="rlvr/1/g0001", progress_folder="_progress/rlvr/1",
        settings=WorkSettings(compute=ComputeSettings(reference=place)),
    )  # fmt: skip
    return frozen_reference(ws, on_meta_device(TINY), partial(initial_rows, TINY, 0), "fp32")


def test_a_reference_on_a_device_of_its_own_is_there_and_the_policy_is_not(tmp_path) -> None:
    reference, group = reference_at("meta", tmp_path)
    assert (reference.device.type, group.device, group.lender) == ("meta", "", None)
    reference, group = reference_at("host", tmp_path)
    assert (reference.device.type, group.device) == ("cpu", "cpu")
    assert group.lender is not None
    assert torch.equal(reference.head.weight, Transformer(TINY, seed=0).head.weight)
    assert not any(weight.requires_grad for weight in reference.parameters())


def test_the_stages_with_a_reference_are_those_that_may_place_it() -> None:
    assert {rlvr.rlvr.name, ppo.ppo.name} == set(WITH_REFERENCE)


# --- settings -----------------------------------------------------------------------------------------

SHARDED = {"rlvr": ParallelSettings(workers=2, data="fsdp")}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"reference": {"dpo": "host"}}, r"reference\.dpo=host: only rlvr and ppo hold a reference"),
        ({"reference": {"rlvr": "disk"}}, "should match pattern"),
        ({"reference": {"rlvr": "cuda:1"}, "device": "cuda"}, "another GPU that is named, and device=cuda"),
        ({"reference": {"rlvr": "cuda:1"}, "device": "cuda:1"}, "another GPU that is named, and device=cuda:1"),
        ({"reference": {"ppo": "cuda:1"}, "device": "cpu"}, r"reference\.ppo=cuda:1 needs a policy on another GPU"),
        ({"reference": {"rlvr": "cuda:1"}, "device": "cuda:0", "ray": "head:6379"}, "sees its own GPU only; use host"),
        ({"reference": {"rlvr": "cuda:1"}, "device": "cuda:0", "parallel": SHARDED}, "sees its own GPU only; use host"),
        ({"reference": {"default": "cpu"}, "device": "cuda", "parallel": SHARDED}, r"data=fsdp\); use host"),
    ],
)
def test_places_that_cannot_be_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Execution(cores=2, **settings)


def test_a_stage_has_its_own_place_or_the_default() -> None:
    execution = Execution(reference={"default": "host", "ppo": "cuda:1"}, device="cuda:0")
    assert execution.compute("rlvr").reference == "host"
    assert execution.compute("ppo").reference == "cuda:1"
    assert Execution().compute("rlvr").reference == "policy"
    Execution(cores=2, reference={"rlvr": "cpu"}, device="cpu", parallel=SHARDED)
    Execution(cores=2, reference={"rlvr": "host"}, device="cuda", parallel=SHARDED)


def test_a_device_of_the_reference_that_is_not_there_is_told_before_the_run(monkeypatch) -> None:
    execution = Execution(reference={"rlvr": "cuda:9999"}, device="cuda:0")
    # The policy's own device is looked for first, and this machine may have none.
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)

    def check(stage: str) -> None:
        check_device(execution, [PlanRow(stage, stage, "run", "", "0", (), {}, None)], {"rlvr", "ppo"})

    with pytest.raises(ValueError, match=r"execution\.reference\.rlvr='cuda:9999': this machine has 1 of that kind"):
        check("rlvr")
    check("ppo")


def test_plan_and_fit_count_a_reference_where_it_is() -> None:
    found = {}
    for place in ("policy", "host"):
        config = load("olmo2-7b", [f"execution.reference={{default: {place}}}"])
        run = next(run for run in training_runs(config) if run.label == "ppo")
        found[place] = run.memory(config.pretrain.model, 8, 4096).parameters
    weights = 4 * ModelConfig(size="7B").parameters / 8
    # Policy and value model are trained in either case.
    assert found == {"policy": pytest.approx(3 * weights), "host": pytest.approx(2 * weights)}


def test_a_device_too_small_for_the_reference_fits_where_it_is_on_the_host() -> None:
    model = ModelConfig(size="1B")
    runs = {
        place: next(
            replace(run, pass_tokens=0)
            for run in training_runs(load("olmo2-1b", [f"execution.reference.rlvr={place}"]))
            if run.label == "rlvr"
        )
        for place in ("policy", "host")
    }
    least = {place: run.memory(model, 1, run.longest).least for place, run in runs.items()}
    assert least["policy"] - least["host"] == pytest.approx(4 * model.parameters)
    between = sum(least.values()) / 2 / HEADROOM
    assert fit_run(runs["host"], model, 1, between).memory <= HEADROOM * between
    with pytest.raises(ValueError, match=r"rlvr needs .* GB on each of 1 devices"):
        fit_run(runs["policy"], model, 1, between)


def test_a_fit_that_shards_what_cannot_be_sharded_is_refused() -> None:
    config = load("olmo2-1b", ["execution.reference.rlvr=cpu", "execution.device=cuda"])
    fits = fit_recipe(config, 8, 20e9)
    assert fits["rlvr"].parallel.data == "fsdp"
    with pytest.raises(ValueError, match=r"reference\.rlvr=cpu: .*; use host"):
        fitted_execution(config.execution, fits)


def test_a_rehearsal_keeps_its_reference_with_the_policy() -> None:
    config = load("smoke", ["execution.reference.rlvr=cuda:1", "execution.device=cuda:0"])
    assert rehearsed(config, None, "nowhere").execution.reference == {}
