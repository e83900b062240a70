"""Profiles of a training step. Oracle: FLOPs of RECIPE A.7, and that all parts together are the whole step."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from model.config import Compute
from model.training.configs import LossConfig, OptimConfig
from model.training.measuring.profile import PARTS, StepShape, profile_steps
from tests.model.groups import CONFIG


def test_parts_are_the_whole_step_and_the_trace_is_one(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    found = profile_steps(
        CONFIG, OptimConfig(), LossConfig(), StepShape(4, 32, 2), compute=Compute(), steps=2, trace=trace
    )
    assert tuple(found.shares) == PARTS
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert all(share >= 0 for share in found.shares.values())
    assert min(found.shares["matmuls"], found.shares["attention"], found.shares["optimizer"]) > 0
    assert found.tokens == 128
    assert found.flops == 128 * CONFIG.flops_per_token(32)
    assert found.tokens_per_second == pytest.approx(128 / found.seconds)
    events = json.loads(trace.read_text())["traceEvents"]
    assert any("Optimizer.step" in event.get("name", "") for event in events)
    assert any(event.get("name") == "aten::mm" for event in events)


@pytest.mark.parametrize(("rows", "length", "steps"), [(0, 8, 3), (1, 65, 3), (1, 8, 0)])
def test_sizes_that_cannot_be_are_refused(rows: int, length: int, steps: int) -> None:
    with pytest.raises(ValueError, match="at least 1, and the length at most 64"):
        profile_steps(CONFIG, OptimConfig(), LossConfig(), StepShape(rows, length), compute=Compute(), steps=steps)


def test_the_command_profiles_a_recipes_stage() -> None:
    run = CliRunner().invoke
    found = run(app, ["profile", "smoke", "anneal", "--steps", "1", "--json"])
    assert found.exit_code == 0, found.output
    row = json.loads(found.stdout[found.stdout.index("{") :])
    assert row["of_roofline"] > 0 and row["processor"]
    refused = run(app, ["profile", "smoke", "sft"])
    assert "choose one of pretrain, anneal" in str(refused.exception) + refused.output
    lost = run(app, ["profile", "smoke", "--trace", "/nowhere/at/all.json"])
    assert "does not exist" in str(lost.exception) + lost.output
