"""The conformance table. Oracles: the golden files, and the recipes themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.config.errors import RecipeError
from flows.config.files import load
from flows.inspection.conformance import (
    PUBLISHED_SIZES,
    ComparedValue,
    conformance,
    of_size,
    published_values,
    reported,
)

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def rows_of(size: str, *overrides: str) -> dict[str, ComparedValue]:
    return {row.field: row for row in conformance(size, list(overrides))}


@pytest.mark.parametrize("size", PUBLISHED_SIZES)
def test_every_value_is_a_published_one_and_every_choice_has_a_reason(size: str) -> None:
    for row in conformance(size):
        assert row.verdict != "ours", row
        if row.paper != row.code:
            assert row.why or None in (row.paper, row.code), row
        if row.verdict != "not published":
            assert row.ours in (row.paper, row.code)


@pytest.mark.parametrize("size", PUBLISHED_SIZES)
def test_the_table_says_what_the_golden_files_say(size: str) -> None:
    rows, tuning, name = rows_of(size), golden("posttraining_hparams"), size.upper()
    rates = tuning["sft"]["lr"]
    paper, code = (rates["7B_paper_text_and_script"], rates["7B_table17_and_archived_lineage"]) if size == "7b" else (
        rates[name], rates[name],
    )  # fmt: skip
    sft = rows["sft.learning_rate"]
    assert (sft.paper, sft.code) == (paper, code)
    warmup = rows["sft.warmup_ratio"]
    assert (warmup.paper, warmup.code) == (tuning["sft"]["warmup_ratio_paper"], tuning["sft"]["warmup_ratio_code"])
    expected = {
        "sft.batch_size": tuning["sft"]["batch"], "sft.epochs": tuning["sft"]["epochs"],
        "sft.max_tokens": tuning["sft"]["max_seq"],
        "dpo.learning_rate": tuning["dpo"]["lr"][name], "dpo.beta": tuning["dpo"]["beta"],
        "dpo.batch_size": tuning["dpo"]["batch"],
        "dpo.max_tokens": tuning["dpo"]["max_seq"], "reward.learning_rate": tuning["rm"]["lr"],
        "reward.batch_size": tuning["rm"]["batch"],
    }  # fmt: skip
    assert {field: rows[field].paper for field in expected} == expected
    if size in ("7b", "13b"):
        ppo = tuning["ppo"]
        beta = ppo["beta_table18"][name]
        assert rows["rlvr.learning_rate"].code == ppo["lr"][name]
        assert rows["rlvr.episodes"].paper == ppo["episodes"][name]
        assert rows["rlvr.prompts_per_rollout"].paper == ppo["batch"][name]
        assert rows["rlvr.kl_coefficient"].code == (beta[0] if isinstance(beta, list) else beta)
        assert rows["rlvr.kl_coefficient"].paper == ppo["beta_text"][name]
    shape = golden("model_sizes")["sizes"]["1B_released(olmo2_1B_v2)" if size == "1b" else name]
    for field, key in (("d_model", "d_model"), ("n_layers", "n_layers"), ("n_kv_heads", "n_kv_heads")):
        assert rows[f"pretrain.model.{field}"].code == shape[key]


@pytest.mark.parametrize(("size", "column"), [("1b", "50B"), ("7b", "50B"), ("13b", "100B"), ("32b", "100B")])
def test_the_mix_is_table_13s(size: str, column: str) -> None:
    table = golden("dolmino_mix")["table13"]
    place = table["columns"].index(f"{column}_source_pct")
    names = ("filtered_web", "flan", "stackexchange", "papers", "wiki", "math")
    for name, row in zip(names, table["rows"], strict=True):
        found = rows_of(size)[f"anneal_mix.sources.{name}.passes"]
        assert found.paper == found.ours == pytest.approx(row[place] / 100), (name, row)


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_ppos_constants_are_golden(size: str) -> None:
    ppo, rows = golden("posttraining_hparams")["ppo"], rows_of(size)
    for field, key in (
        ("epochs", "epochs_K"), ("mini_batches", "minibatches"), ("correct_score", "verified_reward"),
        ("unfinished_score", "no_eos_score"), ("gamma", "gamma"), ("gae_lambda", "lambda"), ("clip", "clip"),
        ("value_clip", "value_clip"), ("value_coefficient", "value_coef"), ("temperature", "temperature"),
        ("max_prompt_tokens", "max_prompt"), ("max_new_tokens", "max_response"),
    ):  # fmt: skip
        row = rows[f"rlvr.{field}"]
        assert row.code == row.ours == ppo[key], field
    assert "rlvr.gamma" not in rows_of("1b")


def test_the_report_has_the_table_of_a_published_size_only() -> None:
    rows = reported(load("olmo2-7b", ["dpo.beta=1"]))
    assert len(rows) == len(conformance("7b"))
    (beta,) = (row for row in rows if row.topic == "preference tuning, β")
    assert (beta.paper, beta.ours, beta.verdict) == ("5", "1", "ours")
    assert reported(load("smoke")) == ()
    changes = ["rlvr={algorithm: grpo}", "evaluation.tuned={tables: []}"]
    own = reported(load("olmo2-7b", changes))
    assert {row.topic for row in rows} - {row.topic for row in own} >= {"PPO, discount", "longest answer of IFEval"}


def test_a_value_of_ones_own_is_marked() -> None:
    row = rows_of("7b", "dpo.beta=1")["dpo.beta"]
    assert (row.paper, row.code, row.ours, row.verdict) == (5.0, 5.0, 1.0, "ours")
    assert rows_of("7b", "sft.learning_rate=2e-5")["sft.learning_rate"].verdict == "as the paper"


def test_the_command_prints_the_table_and_json() -> None:
    shown = CliRunner().invoke(app, ["conformance", "7b"])
    assert shown.exit_code == 0
    (line,) = (line for line in shown.output.splitlines() if line.startswith("reinforcement, β"))
    assert [*line.split()[2:5]] == ["0.07", "0.05", "0.05"]
    rows = json.loads(CliRunner().invoke(app, ["conformance", "32b", "--json"]).output)
    assert len(rows) == len([entry for entry in published_values() if "32b" in entry.get("sizes", PUBLISHED_SIZES)])
    with pytest.raises(RecipeError, match="'8b' is not a published size; they are 1b, 7b, 13b, 32b"):
        conformance("8b")


def test_values_by_size_name_published_sizes_only() -> None:
    for entry in published_values():
        for source in ("paper", "code"):
            if isinstance(entry[source], dict):
                assert entry[source].keys() <= set(PUBLISHED_SIZES), entry
            else:
                assert of_size(entry[source], "1b") == entry[source]
