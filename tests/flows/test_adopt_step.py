"""Permanent save points on the command line. Oracle: the training that made them, the plan of a recipe that starts at one."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from flows.inspection.artifacts import find_record
from flows.running.run import load_recipe, plan
from infra.workspace import Workspace
from model.config import ModelConfig
from tasks.artifacts import Tokens
from tasks.data.mix import MixConfig, mix_tokens
from tasks.training.pretrain import PretrainConfig, train_base
from tests.tasks.training.conftest import Bench, Seed

RANKS = 490
SHAPE = ModelConfig(
    d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, mlp_hidden=64, max_sequence_length=256, vocab_size=512
)  # fmt: skip


def write_tokens(ws: Workspace, config: Seed) -> Tokens:
    ws.write("tokens/0.npy", np.random.default_rng(config.seed).integers(0, 400, 4096).astype("<u4").tobytes())
    return ws.artifact(Tokens, source="web", tokens=4096, documents=1, ranks=RANKS, files={"tokens/0.npy": 4096})


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A store with a pre-training of 7 steps that kept those of 2, 4 and 6."""
    bench = Bench(tmp_path_factory.mktemp("kept") / "store", save_every=1, keep_every=2)
    mix = bench.run(mix_tokens, "mix", sources=[bench.run(write_tokens, config=Seed())], config=MixConfig())
    config = PretrainConfig(model=SHAPE, sequence_length=32, batch_size=2, steps=7)
    bench.run(train_base, "pretrain", mix=mix, config=config)
    return bench


def olmo2(bench: Bench, *arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--store", bench.session.store.url])
    assert result.exception is None, result.output
    return result.output


def test_a_list_names_them_as_adopt_takes_them(bench: Bench) -> None:
    rows = json.loads(olmo2(bench, "ls", "--save-points", "--json"))
    (id,) = bench.session.store.names("_progress/pretrain")
    assert [(row["name"], row["stage"], row["step"]) for row in rows] == [
        (f"{id}@{step}", "pretrain", step) for step in (2, 4, 6)
    ]
    # Weights and two moments of every parameter in fp32, and little else.
    assert all(12 * SHAPE.parameters < row["bytes"] < 12 * SHAPE.parameters + 50_000 for row in rows)
    assert re.findall(rf"{id}@\d", olmo2(bench, "ls", "--save-points")) == [row["name"] for row in rows]
    assert "no permanent save points" in olmo2(bench, "ls", "--save-points", "--stage", "dpo")


def test_a_recipe_goes_on_from_one_with_its_moments(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (id,) = bench.session.store.names("_progress/pretrain")
    adopted = json.loads(olmo2(bench, "adopt", f"{id[:8]}@4", "--as", "base", "--into", "smoke", "--json"))
    content = yaml.safe_load(Path(adopted["recipe"]).read_text())
    # An Olmo2 folder would need fresh moments.
    assert content == {"extends": "smoke", "start": {"base": adopted["id"]}}
    assert (adopted["facts"]["steps"], adopted["facts"]["tokens"], adopted["facts"]["ranks"]) == (4, 4 * 64, RANKS)
    record = find_record(bench.session.store, adopted["id"])
    assert [record.config[name] for name in ("stage", "id", "step")] == ["pretrain", id, 4]
    rows = {row.label: row for row in plan(load_recipe(adopted["recipe"], None, bench.session.store.url))}
    assert "pretrain" not in rows
    assert rows["start:base"].id == adopted["id"]


def test_what_is_asked_wrongly_is_said(bench: Bench) -> None:
    (id,) = bench.session.store.names("_progress/pretrain")
    for arguments, said in (
        ([f"{id}@5"], "it has those of steps 2, 4, 6"),
        (["abcdef@2"], "abcdef has no permanent save point of step 2"),
        ([f"{id}@4", "--revision", "main"], "is for hub ids"),
    ):
        result = CliRunner().invoke(app, ["adopt", *arguments, "--as", "base", "--store", bench.session.store.url])
        assert isinstance(result.exception, ValueError)
        assert said in str(result.exception)
