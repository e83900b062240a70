"""Layouts chosen for a device. Oracle: the memory of a plan, which tests/flows/test_cost_memory.py holds to trainings."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.config.files import load
from flows.config.sizes.fit import ENOUGH_TOKENS, HEADROOM, fit_recipe, fit_run, fitted, fitted_execution
from flows.config.sizes.training_runs import Run
from flows.inspection.costs.fit_table import settings_text
from flows.running.run import load_recipe, plan
from infra.settings import Execution, FitSettings, ParallelSettings
from model.config import ModelConfig, Parallel

PRETRAIN = Run("pretrain", 100, 1024, 4096, 0, "bf16")


@pytest.mark.parametrize(
    ("size", "devices", "memory", "data", "policy"),
    [
        ("1B", 8, 80e9, "ddp", "off"),
        ("7B", 8, 80e9, "fsdp", "off"),
        ("7B", 64, 80e9, "hsdp", "off"),
        ("13B", 8, 80e9, "fsdp", "blocks"),
        ("32B", 64, 80e9, "fsdp", "blocks"),
        ("7B", 1, 200e9, "ddp", "off"),
    ],
)
def test_the_quickest_layout_that_fits_is_chosen(
    size: Any, devices: int, memory: float, data: str, policy: str
) -> None:
    model = ModelConfig(size=size)
    found = fit_run(PRETRAIN, model, devices, memory)
    assert (found.parallel.data, found.parallel.activation_checkpointing) == (data, policy)
    assert found.parallel.workers == devices
    assert found.memory <= HEADROOM * memory
    Parallel(**found.parallel.layout())
    # With twice the memory it is never slower: as many rows or more, and never more computed again.
    richer = fit_run(PRETRAIN, model, devices, 2 * memory)
    assert (richer.parallel.activation_checkpointing == "off", richer.rows) >= (policy == "off", found.rows)


def test_a_pass_has_enough_rows_and_no_more() -> None:
    small = fit_run(replace(PRETRAIN, rows=512, longest=512), ModelConfig(size="30M"), 4, 80e9)
    assert small.tokens == ENOUGH_TOKENS and small.rows == 32
    few = fit_run(replace(PRETRAIN, rows=6, longest=512), ModelConfig(size="30M"), 8, 80e9)
    assert (few.parallel.workers, few.rows) == (6, 1)
    pairs = fit_run(replace(PRETRAIN, together=2), ModelConfig(size="1B"), 8, 80e9)
    assert pairs.rows % 2 == 0


def test_what_fits_nowhere_says_how_much_it_lacks() -> None:
    with pytest.raises(ValueError, match=r"pretrain needs \d+\.\d GB on each of 2 devices .* 90% of 24\.0 GB"):
        fit_run(PRETRAIN, ModelConfig(size="7B"), 2, 24e9)


def test_what_the_recipe_says_is_kept_and_ids_are_the_same(tmp_path: Path) -> None:
    store = str(tmp_path)
    own = ["execution.micro_instances={anneal: 2}", "execution.parallel={sft: {workers: 1}}"]
    plain = load_recipe("laptop", own, store)
    found = load_recipe("laptop", [*own, "execution.fit={devices: 1, memory: 4e9}"], store)
    assert found.execution.micro_instances["anneal"] == 2
    assert found.execution.parallel["sft"] == ParallelSettings()
    assert found.execution.micro_instances["pretrain"] > 1
    assert found.execution.pass_tokens.keys() == {"default", "dpo", "reward", "rlvr"}
    assert [(row.label, row.id) for row in plan(found)] == [(row.label, row.id) for row in plan(plain)]


def test_a_machine_without_the_device_leaves_the_recipe_as_it_is() -> None:
    config = load("olmo2-7b", ["execution.fit={}"])
    assert config.execution.device == "cuda"
    assert fitted(config) is config
    given = config.model_copy(
        update={"execution": config.execution.model_copy(update={"fit": FitSettings(devices=64, memory=80e9)})}
    )
    assert fitted(given).execution.parallel["pretrain"].workers == 64


@pytest.mark.parametrize("recipe", ["olmo2-1b", "olmo2-7b", "olmo2-13b", "olmo2-32b"])
def test_published_recipes_fit_512_devices(recipe: str) -> None:
    config = load(recipe)
    found = fit_recipe(config, 512, 80e9)
    assert {"pretrain", "anneal", "sft", "dpo"} <= found.keys()
    execution = fitted_execution(config.execution, found)
    assert all(execution.compute(name).parallel.workers == fit.parallel.workers for name, fit in found.items())


def test_the_command_shows_settings_that_a_recipe_takes() -> None:
    shown = CliRunner().invoke(app, ["fit", "olmo2-7b", "--devices", "8", "--memory", "80", "--json"])
    assert shown.exit_code == 0, shown.output
    rows = json.loads(shown.stdout)
    assert rows["pretrain"]["data"] == "fsdp" and rows["pretrain"]["workers"] == 8
    found = fit_recipe(load("olmo2-7b"), 8, 80e9)
    text = settings_text(found)
    import yaml

    data = yaml.safe_load(text)["execution"] | {"ray": "head:6379"}
    assert Execution.model_validate(data).compute("pretrain").parallel == found["pretrain"].parallel
    lacking = CliRunner().invoke(app, ["fit", "olmo2-7b"])
    assert "give --devices and --memory" in str(lacking.exception) + lacking.output
