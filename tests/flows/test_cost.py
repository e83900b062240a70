"""Costs of a plan. Oracles: golden/environment_table19.json, golden/model_sizes.json, the plan's own estimates, and the trainer's
own sharing of batches. Memory: test_cost_memory.py."""

import json
import math
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows.cli.main import app
from flows.config.files import load, recipe_names
from flows.config.sizes.training_runs import Run, training_runs, with_estimates
from flows.inspection.costs.cost import (
    DEVICES,
    NODE_FACTOR,
    Device,
    Hardware,
    cost,
    environment,
    recipe_costs,
)
from flows.inspection.costs.cost_other import plan_labels
from flows.inspection.costs.cost_table import find_device, plan_costs, scaled, scientific, separated, total
from flows.running.pricing import asking
from flows.running.run import load_recipe, plan
from infra.settings import SiteSettings
from model.config import ModelConfig
from model.data.chat_batches import make_row, pair_batches
from model.parallel.work_split import share_of
from tasks.artifacts import Chats, Mix, Preferences

GOLDEN = Path(__file__).parents[1] / "golden"
TABLE_19 = json.loads((GOLDEN / "environment_table19.json").read_text())
SIZES = json.loads((GOLDEN / "model_sizes.json").read_text())["sizes"]
H100 = DEVICES["h100"]
TRAININGS = {"pretrain", "anneal", "sft", "dpo", "reward", "rlvr", "ppo"}
"""Stages that train."""
TINY = ModelConfig(d_model=64, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, mlp_hidden=96, vocab_size=256)


def row_of(model: str) -> dict[str, Any]:
    return next(row for row in TABLE_19["rows"] if row["model"] == model)


def site_of(row: dict[str, Any]) -> SiteSettings:
    return SiteSettings(pue=row["PUE"], carbon=row["carbon"], water=row["WUE_onsite"] + row["WUE_offsite"])


@pytest.mark.parametrize("row", TABLE_19["rows"], ids=lambda row: row["model"])
def test_environment_is_table_19(row: dict[str, Any]) -> None:
    site = site_of(row)
    co2, water = environment(row["P_MWh"], site)
    assert row["P_MWh"] * site.pue == pytest.approx(row["computed_MWh_with_PUE"])
    assert co2 == pytest.approx(row["computed_tCO2"], abs=0.005)
    assert water == pytest.approx(row["computed_kL"], abs=0.005)
    assert abs(co2 - row["printed_tCO2"]) < 1
    assert abs(water - row["printed_kL"]) < 1


@pytest.mark.parametrize(("size", "model"), [("7b", "OLMo 2 7B"), ("13b", "OLMo 2 13B"), ("32b", "OLMo 2 13B")])
def test_recipes_are_planned_where_table_19_says(size: str, model: str) -> None:
    """The 32B has no row: its site is the 13B's."""
    assert load(f"olmo2-{size}").execution.site.planned() == site_of(row_of(model))


def test_water_of_the_13b_is_that_of_its_site() -> None:
    arguments = ["plan", "olmo2-13b", "--gpus", "64", "--json"]
    planned, dry = (json.loads(CliRunner().invoke(app, [*arguments, *more]).output) for more in ([], ["--water", "0"]))
    first, row = planned["stages"][0], row_of("OLMo 2 13B")
    assert first["water_kilolitres"] == pytest.approx(first["kwh"] / 1000 * row["computed_kL"] / row["P_MWh"], rel=1e-4)
    assert first["co2_tonnes"] == pytest.approx(first["kwh"] / 1000 * row["computed_tCO2"] / row["P_MWh"], rel=1e-4)
    assert (dry["stages"][0]["water_kilolitres"], dry["stages"][0]["co2_tonnes"]) == (0, first["co2_tonnes"])


def test_pretraining_of_7b() -> None:
    """Steps and tokens of RECIPE D, FLOPs per token of A.7, hours and energy by hand."""
    first = recipe_costs(load("olmo2-7b"), Hardware(64, H100, mfu=0.4, price=2.5))[0]
    flops = 928_646 * 4_194_304 * SIZES["7B"]["train_flops_per_token_seq4096"]
    assert (first.label, first.steps, first.tokens) == ("pretrain", 928_646, 3_895_023_632_384)
    assert first.flops == pytest.approx(flops)
    assert first.hours == pytest.approx(flops / (64 * 989e12 * 0.4) / 3600)
    assert first.hours is not None
    assert first.kwh == pytest.approx(0.7 * NODE_FACTOR * 64 * first.hours)
    assert first.money == pytest.approx(2.5 * 64 * first.hours)
    assert (first.co2_tonnes, first.water_kilolitres) == pytest.approx(
        environment((first.kwh or 0) / 1000, SiteSettings())
    )


@pytest.mark.parametrize("recipe", recipe_names())
def test_costs_are_the_estimates_of_the_plan(recipe: str) -> None:
    """Every training stage of every recipe has one size, in `plan` and in `plan --gpus`."""
    config = load(recipe)
    planned = {row.label: row.estimate for row in with_estimates(plan_labels(config), config)}
    costs = recipe_costs(config, Hardware(1, H100))
    assert len(costs) >= 9
    trainings = {label for label in planned if label.partition(":")[0] in TRAININGS}
    assert trainings == {item.label for item in costs}
    for item in costs:
        told = planned[item.label]
        known = told.get("tokens_at_most" if item.at_most else "tokens")
        assert (item.steps, item.tokens, item.flops) == (told.get("steps"), known, told.get("flops")), item.label
        assert item.steps is not None or item.label.startswith("sft"), f"{item.label} has no size"


def test_a_finished_runs_trainings_made_as_many_updates_as_its_plan_says(finished_smoke: Path) -> None:
    rows = plan(load_recipe("smoke", store=str(finished_smoke)))
    trained = {row.label: row for row in rows if row.label.partition(":")[0] in TRAININGS}
    assert len(trained) >= 12
    for label, row in trained.items():
        assert row.artifact is not None and row.action == "reused", (label, row.reason)
        assert row.artifact.facts()["steps"] == row.estimate["steps"], label


@pytest.mark.parametrize(("place", "shards"), [("host", 8), ("cuda:1", 1)])
def test_a_reference_that_is_elsewhere_is_counted_there(place: str, shards: int) -> None:
    """fp32 weights: a shard of them on the host for each GPU, or all of them on a device of their own."""
    arguments = [
        "plan",
        "olmo2-1b",
        "--gpus",
        "8",
        "--set",
        f"execution.reference={{rlvr: '{place}'}}",
        "--set",
        "execution.device=cuda:0",
    ]
    (row,) = (
        row
        for row in json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)["stages"]
        if row["label"] == "rlvr"
    )
    weights = 4 * SIZES["1B_released(olmo2_1B_v2)"]["total_params"]
    assert (row["reference"], row["reference_bytes"]) == (place, weights / shards)
    assert row["memory"]["parameters"] == weights / 8, "the policy alone"
    told = " ".join(CliRunner().invoke(app, arguments).output.split())
    assert f"rlvr: its frozen reference takes {weights / shards / 1e9:.3g} GB of" in told


def test_the_plan_on_a_terminal_shows_the_tokens_of_its_costs(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["plan", "laptop", "--store", str(tmp_path)]).output
    costs = json.loads(CliRunner().invoke(app, ["plan", "laptop", "--gpus", "1", "--json"]).output)["stages"]
    (rlvr,) = [row for row in costs if row["label"] == "rlvr"]
    assert f"≤ {rlvr['tokens']:,}" in shown
    assert rlvr["tokens"] == 16_384 * 256, "an answer with its prompt fits the window"


def test_what_is_made_is_counted_instead_of_what_was_expected() -> None:
    """The count of a stage's input is its artifact's, once there is one."""
    config = load("laptop")
    facts: dict[str, Any] = {"id": "i", "address": "a", "digest": "d"}
    made = {
        "decontaminate_chats": Chats(stage="decontaminate_chats", chats=96, sources={}, **facts),
        "preferences": Preferences(stage="preferences", pairs=64, ties=0, mean_chosen=1.0, mean_rejected=0.0, **facts),
        "mix:pretrain": Mix(stage="mix", tokens=64 * 32 * 9, ranks=490, shares={"web": 1.0}, **facts),
    }
    runs = {run.label: run for run in training_runs(config, made)}
    assert (runs["sft"].steps, runs["dpo"].steps) == (4, 2)
    # Nine batches less the windows that are held out of the one source; of 64 pairs, 13 are held out.
    assert runs["pretrain"].steps == (9 * 32 - 16) // 32
    assert runs["reward"].steps == 51 // 32


@given(st.integers(1, 4096), st.floats(0.01, 1), st.floats(0, 100))
def test_work_does_not_depend_on_how_it_is_spread(gpus: int, mfu: float, price: float) -> None:
    run = Run("pretrain", steps=100, rows=1024, longest=128, pass_tokens=0, precision="bf16")
    item = cost(run, TINY, Hardware(gpus, H100, mfu, price=price))
    one = cost(run, TINY, Hardware(1, H100, mfu, price=price))
    assert item.gpus == min(gpus, 1024)
    assert (item.flops, item.kwh, item.money) == pytest.approx((one.flops, one.kwh, one.money))
    assert item.hours == pytest.approx((one.hours or 0) / item.gpus)


def test_a_pass_is_the_micro_batch_or_the_share() -> None:
    run = Run("sft", steps=1, rows=128, longest=4096, pass_tokens=16_384, precision="bf16")
    assert [run.tokens_at_once(gpus) for gpus in (1, 64, 128)] == [16_384, 8192, 4096]


def test_a_pair_stays_on_one_gpu() -> None:
    """As the trainer shares them: no worker gets a half, and one GPU for each is the most that helps."""
    run = Run("dpo", steps=1, rows=8, longest=64, pass_tokens=256, precision="bf16", together=2)
    row = make_row(np.arange(64, dtype=np.uint32), np.arange(64) > 32)
    for gpus in (1, 2, 4):
        shares = [
            share_of(pair_batches([(row, row)] * 4, pad_id=0, pass_tokens=256), rank, gpus) for rank in range(gpus)
        ]
        largest = max(batch["ids"].size for share in shares for batch in share)
        assert run.tokens_at_once(gpus) >= largest >= 128
    assert run.tokens_at_once(4) == 128, "a pair is whole even where a pass has room for one row"
    assert [cost(run, TINY, Hardware(gpus, H100)).gpus for gpus in (2, 4, 8)] == [2, 4, 4]
    most = {item.label: item.gpus for item in recipe_costs(load("olmo2-7b"), Hardware(512, H100))}
    assert (most["dpo"], most["reward"], most["pretrain"]) == (128, 256, 512)


def test_steps_that_depend_on_data_are_not_guessed() -> None:
    config = load("olmo2-7b", ["anneal.steps=null"])
    costs = recipe_costs(config, Hardware(8, H100, price=1.0))
    unknown = [item for item in costs if item.steps is None]
    assert [item.label for item in unknown] == ["anneal:42", "anneal:42069", "anneal:666"]
    assert all(item.flops is None and item.money is None for item in unknown)
    assert total(costs)["flops"] == sum(item.flops for item in costs if item.flops is not None)


def test_a_recipe_that_starts_later_costs_less() -> None:
    config = load("olmo2-7b", ["start.soup=abc"])
    assert [run.label for run in training_runs(config)] == ["sft", "dpo", "reward", "ppo"]


def test_device_overrides_and_unknown_devices() -> None:
    assert find_device("H100", None, None) == H100
    assert find_device("a100", None, 300) == Device(312e12, 300, 80e9)
    assert find_device("a100", 0, None).peak_flops == 0, "refused by Hardware, not replaced"
    assert find_device("b200", 2.25e15, 1000) == Device(2.25e15, 1000)
    with pytest.raises(ValueError, match="'b200' is not in the table"):
        find_device("b200", 2.25e15, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpus": 0}, "at least one"),
        ({"mfu": 1.2}, "share of the peak"),
        ({"price": -1.0}, "price=-1: give a number of 0 or more"),
        ({"price": math.nan}, "price=nan"),
        ({"site": SiteSettings().model_copy(update={"pue": 0.9})}, "pue=0.9: give a number of 1 or more"),
        ({"site": SiteSettings().model_copy(update={"pue": math.inf})}, "pue=inf"),
        ({"site": SiteSettings().model_copy(update={"carbon": math.nan})}, "carbon=nan"),
        ({"device": Device(0.0, 700.0)}, "peak_flops=0: give a number above 0"),
        ({"device": Device(1e15, math.nan)}, "watts=nan"),
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
    for column in ("parameters", "gradients", "moments", "activations", "working"):
        assert column in shown.output
    answer = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert answer["hardware"]["gpus"] == 64
    assert answer["stages"][0]["tokens"] == 3_895_023_632_384
    memory = answer["stages"][0]["memory"]
    assert memory["most"] == sum(memory[name] for name in ("parameters", "gradients", "moments")) + sum(
        memory["kept"][name] for name in ("activations", "working")
    )
    assert answer["total"]["money"] > answer["stages"][0]["money"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--price", "2"], "--price: only a plan of costs"),
        (["--gpu", "h100"], "--gpu: only a plan of costs"),
        (["--mfu", "0.4", "--pue", "1.1"], "--mfu, --pue: only a plan of costs"),
        (["--gpus", "8", "--until", "sft"], "leave out --until"),
        (["--gpus", "8", "--mfu", "2"], "share of the peak"),
        (["--gpus", "8", "--watts", "0"], "watts=0"),
        (["--gpus", "8", "--peak-flops", "0"], "peak_flops=0"),
        (["--gpus", "8", "--water", "nan"], "water=nan"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["plan", "olmo2-1b", *arguments])
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_numbers_for_people() -> None:
    assert [scaled(value) for value in (None, 999, 3_895_023_632_384)] == ["?", "999", "3.9T"]
    assert [separated(value) for value in (None, 0.0, 0.001, 2.5, 91_447.4)] == ["?", "0", "<0.01", "2.5", "91,447"]
    assert [scientific(value) for value in (None, 1.86e23)] == ["?", "1.86e+23"]


def planned_costs(recipe: str, *overrides: str, price: float | None = None) -> dict[str, Any]:
    return plan_costs(None, recipe, list(overrides), 64, gpu="h100", price=price)


def test_the_7b_draws_what_table_19_measured() -> None:
    """131 MWh before PUE, within a tenth for the whole recipe; the factor is that of pre-training and mid-training."""
    measured = row_of("OLMo 2 7B")["P_MWh"]
    costs = planned_costs("olmo2-7b")
    assert costs["total"]["kwh"] / 1000 == pytest.approx(measured, rel=0.1)
    trained = [
        row["kwh"] for row in costs["stages"] if row["label"] in ("pretrain", "anneal:42", "anneal:42069", "anneal:666")
    ]
    assert sum(trained) / 1000 == pytest.approx(measured, rel=0.005)
    plain_gpus = plan_costs(None, "olmo2-7b", [], 64, gpu="h100", node_factor=1.0)
    assert plain_gpus["total"]["kwh"] == pytest.approx(costs["total"]["kwh"] / NODE_FACTOR, rel=0.001)


@pytest.mark.parametrize("recipe", ["olmo2-1b", "olmo2-7b", "olmo2-13b", "olmo2-32b", "olmo2-7b-synthesis", "laptop"])
def test_every_stage_of_the_plan_has_a_row_with_its_assumption(recipe: str, tmp_path: Path) -> None:
    costs = planned_costs(recipe)
    config = load(recipe)
    config = config.model_copy(update={"execution": config.execution.model_copy(update={"store": str(tmp_path)})})
    labels = [row.label for row in plan(config)]
    assert sorted([row["label"] for row in costs["stages"]] + [row["label"] for row in costs["others"]]) == sorted(
        labels
    )
    assert all(row["assumption"] for row in costs["others"])
    shown = CliRunner().invoke(app, ["plan", recipe, "--gpus", "64"]).output
    assert [line.split()[0] for line in shown.splitlines()[1 : len(labels) + 1]] == labels


def test_language_models_are_costed_by_call_and_token() -> None:
    """Oracle: the counts of the recipe and the prices of the endpoint, by hand."""
    endpoint = "execution.endpoints={gpt-4o-2024-08-06: {url: http://x/v1, prompt_price: 2, completion_price: 10}}"
    rows = {row["label"]: row for row in planned_costs("olmo2-7b-synthesis", endpoint)["others"]}
    personas = rows["personas:persona_grade_school"]
    assert personas["calls"] == 2 * 50_000
    assert personas["money"] == pytest.approx(50_000 * (500 * 2 + 900 * 10) / 1e6)
    students = rows["rewrite:tinygsm_students"]
    assert students["money"] is None
    assert "no endpoint" in students["assumption"]
    assert students["calls"] == pytest.approx(3.41e9 / 550, rel=0.001)
    judged = planned_costs("olmo2-7b", endpoint, "preferences={kind: sampled, judge: {kind: language_model}}")["others"]
    (row,) = (row for row in judged if row["label"] == "preferences")
    assert row["calls"] == 4 * 29_946
    assert row["money"] == pytest.approx(4 * 29_946 * (900 * 2 + 250 * 10) / 1e6)


def test_a_pool_is_planned_with_what_its_servers_are_asked() -> None:
    """3 of 4 answers are the members', a third of those each one's; both orders of each of four aspects are judged."""
    members = ", ".join(f"{{kind: served, name: {name}, model: {{model: {name}}}}}" for name in ("qwen", "yi", "gemma"))
    pool = f"pool: {{on_policy: 0.25, members: [{members}]}}"
    judge = "kind: sampled, judge: {kind: language_model, positions: both}"
    endpoints = "execution.endpoints={default: {url: http://x/v1, completion_price: 10}}"
    alone, pooled = (
        next(
            row
            for row in planned_costs("olmo2-7b", endpoints, f"preferences={{{how}}}")["others"]
            if row["label"] == "preferences"
        )
        for how in (judge, f"{judge}, {pool}")
    )
    assert alone["calls"] == 8 * 29_946
    assert pooled["calls"] == 8 * 29_946 + 3 * 29_946
    assert pooled["money"] == pytest.approx(29_946 * (8 * 250 + 3 * 400) * 10 / 1e6)
    assert pooled["flops"] == pytest.approx(alone["flops"] / 4)
    assert "89,838 of them by qwen" in pooled["assumption"]


def test_a_price_that_is_known_in_part_asks_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    """Of four answers to a prompt each member gives one, and one member has a price. Unknown, the stage would ask nobody."""
    members = ", ".join(f"{{kind: served, name: {name}, model: {{model: {name}}}}}" for name in ("qwen", "yi"))
    pool = f"preferences={{kind: sampled, pool: {{on_policy: 0.5, members: [{members}]}}}}"
    endpoints = "execution.endpoints={qwen: {url: http://x/v1, completion_price: 10}, yi: {url: http://y/v1}}"
    (row,) = (row for row in planned_costs("olmo2-7b", endpoints, pool)["others"] if row["label"] == "preferences")
    assert row["money"] == pytest.approx(29_946 * 400 * 10 / 1e6)
    assert row["assumption"].endswith("the price is a lower bound, for none is named of yi")
    asked = [
        f"execution.store={tmp_path}",
        "execution.approve_above=1",
        "execution.pricing={price: 0.000001, gpus: 64}",
    ]
    config = load("olmo2-7b", [endpoints, pool, *asked])
    assert asking(config, plan(config))["preferences"].money > row["money"]
    both = planned_costs("olmo2-7b", endpoints.replace("//y/v1", "//y/v1, completion_price: 10"), pool)["others"]
    (row,) = (row for row in both if row["label"] == "preferences")
    assert row["money"] == pytest.approx(2 * 29_946 * 400 * 10 / 1e6)
    assert "lower bound" not in row["assumption"]


def test_storage_counts_texts_tokens_and_checkpoints() -> None:
    costs = planned_costs("olmo2-7b")
    rows = {row["label"]: row for row in [*costs["stages"], *costs["others"]]}
    assert rows["encode:web"]["stored_bytes"] == pytest.approx(4 * 3.71e12)
    assert rows["anneal:42"]["stored_bytes"] == 4 * SIZES["7B"]["total_params"]
    # The last checkpoint and one at every thousandth step, with moments.
    assert rows["pretrain"]["stored_bytes"] == 929 * 12 * SIZES["7B"]["total_params"]
    assert costs["total"]["stored_bytes"] == pytest.approx(sum(row["stored_bytes"] for row in rows.values()))


def test_sampling_and_evaluation_cost_gpu_hours_and_unknown_sizes_say_so() -> None:
    costs = planned_costs("olmo2-7b", "preferences={kind: sampled}", price=2.0)
    rows = {row["label"]: row for row in costs["others"]}
    for label in ("preferences", "evaluate:base", "evaluate:try-flan"):
        assert rows[label]["money"] == pytest.approx(2.0 * 64 * rows[label]["hours"])
    assert costs["total"]["money"] > sum(row["money"] for row in costs["stages"])
    own = "{kind: local, name: web, paths: [/nowhere]}"
    unknown = {row["label"]: row for row in planned_costs("olmo2-7b", f"collect.web={own}")["others"]}
    assert unknown["encode:web"]["hours"] is None
    assert "not known" in unknown["encode:web"]["assumption"]


@pytest.mark.parametrize(("recipe", "pairs"), [("olmo2-7b", 366_949), ("olmo2-13b", 377_743)])
def test_preference_tuning_plans_the_released_pairs(recipe: str, pairs: int) -> None:
    """Oracle: the prompts of Table 27 in whole batches of 128."""
    rows = {row["label"]: row for row in planned_costs(recipe)["stages"]}
    assert rows["dpo"]["steps"] == pairs // 128 == {"olmo2-7b": 2_866, "olmo2-13b": 2_951}[recipe]
