"""Costs of a plan. Oracles: golden/environment_table19.json, golden/model_sizes.json, the plan's own estimates, and autograd on
real tensors."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows.cli import app
from flows.config import RecipeConfig
from flows.cost import DEVICES, Device, Hardware, Run, Site, cost, environment, recipe_costs, training_runs
from flows.cost_memory import memory_of, saved_for_backward
from flows.cost_table import find_device, plain, scaled, scientific, total
from flows.loading import load
from flows.run import plan
from model.config import ModelConfig
from model.transformer import Transformer

GOLDEN = Path(__file__).parents[1] / "golden"
TABLE_19 = json.loads((GOLDEN / "environment_table19.json").read_text())
SIZES = json.loads((GOLDEN / "model_sizes.json").read_text())["sizes"]
H100 = DEVICES["h100"]
TINY = ModelConfig(d_model=64, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, mlp_hidden=96, vocab_size=256)


@pytest.mark.parametrize("row", TABLE_19["rows"], ids=lambda row: row["model"])
def test_environment_is_table_19(row: dict[str, Any]) -> None:
    site = Site(row["PUE"], row["carbon"], row["WUE_onsite"] + row["WUE_offsite"])
    co2, water = environment(row["P_MWh"], site)
    assert row["P_MWh"] * site.pue == pytest.approx(row["computed_MWh_with_PUE"])
    assert co2 == pytest.approx(row["computed_tCO2"], abs=0.005)
    assert water == pytest.approx(row["computed_kL"], abs=0.005)
    assert abs(co2 - row["printed_tCO2"]) < 1
    assert abs(water - row["printed_kL"]) < 1


def test_the_site_of_the_7b_is_the_default() -> None:
    row = TABLE_19["rows"][0]
    assert Site() == Site(row["PUE"], row["carbon"], row["WUE_offsite"])


def test_pretraining_of_7b() -> None:
    """Steps and tokens of RECIPE D, FLOPs per token of A.7, hours and energy by hand."""
    first = recipe_costs(load(RecipeConfig, "olmo2-7b"), Hardware(64, H100, mfu=0.4, price=2.5))[0]
    flops = 928_646 * 4_194_304 * SIZES["7B"]["train_flops_per_token_seq4096"]
    assert (first.label, first.steps, first.tokens) == ("pretrain", 928_646, 3_895_023_632_384)
    assert first.flops == pytest.approx(flops)
    assert first.hours == pytest.approx(flops / (64 * 989e12 * 0.4) / 3600)
    assert first.hours is not None
    assert first.kwh == pytest.approx(0.7 * 64 * first.hours)
    assert first.money == pytest.approx(2.5 * 64 * first.hours)
    assert (first.co2_tonnes, first.water_kilolitres) == pytest.approx(environment((first.kwh or 0) / 1000, Site()))


def test_costs_are_the_estimates_of_the_plan(tmp_path: Path) -> None:
    config = load(RecipeConfig, "laptop")
    config = config.model_copy(update={"execution": config.execution.model_copy(update={"store": str(tmp_path)})})
    estimates = {row.label: row.estimate for row in plan(config)}
    for item in recipe_costs(config, Hardware(1, H100)):
        estimate = estimates[item.label]
        if "flops" in estimate:
            assert (item.tokens, item.flops) == (estimate["tokens"], pytest.approx(estimate["flops"]))
        if "steps" in estimate:
            assert item.steps == estimate["steps"]


@settings(deadline=None)
@given(st.integers(1, 4096), st.floats(0.01, 1), st.floats(0, 100))
def test_work_does_not_depend_on_how_it_is_spread(gpus: int, mfu: float, price: float) -> None:
    run = Run("pretrain", steps=100, rows=1024, longest=128, pass_tokens=0, precision="bf16")
    item = cost(run, TINY, Hardware(gpus, H100, mfu, price=price))
    one = cost(run, TINY, Hardware(1, H100, mfu, price=price))
    assert item.gpus == min(gpus, 1024)
    assert (item.flops, item.kwh, item.money) == pytest.approx((one.flops, one.kwh, one.money))
    assert item.hours == pytest.approx((one.hours or 0) / item.gpus)


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
def test_cast_weights_of_a_block_are_two_bytes_each(name: str) -> None:
    model = ModelConfig.named(name)
    norms = 2 * model.d_model + (model.n_heads + model.n_kv_heads) * model.head_dim
    assert saved_for_backward(model, "bf16").block_weights == 2 * (model.block_parameters - norms)


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 4096))
def test_memory_falls_with_gpus_and_grows_with_tokens(gpus: int, tokens: int) -> None:
    memory = memory_of(TINY, "bf16", gpus, tokens)
    assert memory.state == pytest.approx(16 * TINY.parameters / gpus)
    assert memory_of(TINY, "bf16", gpus + 1, tokens).most < memory.most
    assert memory_of(TINY, "bf16", gpus, tokens + 1).least > memory.least
    assert memory_of(TINY, "bf16", gpus, tokens, frozen_models=1).state == pytest.approx(20 * TINY.parameters / gpus)


def test_recomputing_saves_memory_in_every_published_pretraining() -> None:
    for name in ("1b", "7b", "13b", "32b"):
        memory = recipe_costs(load(RecipeConfig, f"olmo2-{name}"), Hardware(64, H100))[0].memory
        assert memory.least < memory.most
        assert memory.least < (H100.memory or 0)


def test_a_pass_is_the_micro_batch_or_the_share() -> None:
    run = Run("sft", steps=1, rows=128, longest=4096, pass_tokens=16_384, precision="bf16")
    assert [run.tokens_at_once(gpus) for gpus in (1, 64, 128)] == [16_384, 8192, 4096]


def test_steps_that_depend_on_data_are_not_guessed() -> None:
    config = load(RecipeConfig, "olmo2-7b", ["anneal.steps=null"])
    costs = recipe_costs(config, Hardware(8, H100, price=1.0))
    unknown = [item for item in costs if item.steps is None]
    assert [item.label for item in unknown] == ["anneal:42", "anneal:42069", "anneal:666"]
    assert all(item.flops is None and item.money is None for item in unknown)
    assert total(costs)["flops"] == sum(item.flops for item in costs if item.flops is not None)


def test_a_recipe_that_starts_later_costs_less() -> None:
    config = load(RecipeConfig, "olmo2-7b", ["start.soup=abc"])
    assert [run.label for run in training_runs(config)] == ["sft", "dpo", "reward", "rlvr"]


def test_device_overrides_and_unknown_devices() -> None:
    assert find_device("H100", None, None) == H100
    assert find_device("a100", None, 300) == Device(312e12, 300, 80e9)
    assert find_device("b200", 2.25e15, 1000) == Device(2.25e15, 1000)
    with pytest.raises(ValueError, match="'b200' is not in the table"):
        find_device("b200", 2.25e15, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpus": 0}, "at least one"),
        ({"mfu": 1.2}, "share of the peak"),
        ({"price": -1.0}, "negative"),
        ({"site": Site(pue=0.9)}, "below 1"),
        ({"device": Device(0.0, 700.0)}, "above 0"),
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hardware(**{"gpus": 8, "device": H100} | values)


def test_the_command_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a cost plan must not ask the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    arguments = ["plan", "olmo2-7b", "--gpus", "64", "--gpu", "h100", "--price", "2.5"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "928,646" in shown.output
    assert "1.86e+23" in shown.output
    answer = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert answer["hardware"]["gpus"] == 64
    assert answer["stages"][0]["tokens"] == 3_895_023_632_384
    assert answer["total"]["money"] > answer["stages"][0]["money"] > 0


@pytest.mark.parametrize(
    "arguments", [["--price", "2"], ["--gpus", "8", "--until", "sft"], ["--gpus", "8", "--mfu", "2"]]
)
def test_options_that_do_not_fit_are_refused(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["plan", "olmo2-1b", *arguments])
    assert isinstance(result.exception, ValueError)


def test_numbers_for_people() -> None:
    assert [scaled(value) for value in (None, 999, 3_895_023_632_384)] == ["?", "999", "3.9T"]
    assert [plain(value) for value in (None, 0.0, 0.001, 2.5, 91_447.4)] == ["?", "0", "<0.01", "2.5", "91,447"]
    assert [scientific(value) for value in (None, 1.86e23)] == ["?", "1.86e+23"]
