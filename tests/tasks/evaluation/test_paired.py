"""Oracle: the item scores from which stored artifacts are made; hand-computed paired means."""

from pathlib import Path
from typing import Any

import pytest

from infra.workspace import Workspace
from tasks.artifacts import Scores
from tasks.evaluation.comparing.comparison import compare
from tasks.evaluation.comparing.paired import comparer, error_of_mean, independent
from tasks.evaluation.reporting.gains import gain_over, stage_gains
from tasks.evaluation.reporting.report_values import Bounds, ReportedBenchmark, soup_rows, step_changes
from tests.tasks.evaluation.test_rank import Desk

BENCHMARKS = {"maths": ReportedBenchmark("maths", "exact_match", 400, False)}
BASE = [float(n % 2) for n in range(400)]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Workspace, dict[str, Scores]]:
    desk = Desk(tmp_path / "store")
    better = [1.0 if n < 60 else value for n, value in enumerate(BASE)]
    other = [0.0 if n % 40 == 1 else value for n, value in enumerate(BASE)]
    scores = {
        "base": desk.scores("base", BASE), "first": desk.scores("first", other), "second": desk.scores("second", BASE),
        "soup": desk.scores("soup", better), "sft": desk.scores("sft", better), "suite": desk.scores("suite", BASE, items=False),
    }  # fmt: skip
    return workspace(desk), scores


def workspace(desk: Desk) -> Workspace:

    return Workspace(
        desk.session.store, stage="report", id="0" * 16, payload="report/0", progress_folder="_progress/report/0"
    )


def test_steps_are_compared_on_their_items(made):
    ws, scores = made
    (change,) = step_changes(["base", "soup"], scores, BENCHMARKS, Bounds(2, 3), comparer(ws))
    expected = compare(dict(enumerate_items(BASE)), {str(n): 1.0 if n < 60 else v for n, v in enumerate(BASE)})
    assert (change.difference, change.stderr) == (expected.difference, expected.stderr)
    assert (change.n, change.discordant, change.verdict) == (400, 30, "clear gain")
    assert change.low == pytest.approx(0.075 - 1.959964 * change.stderr)


def enumerate_items(values: list[float]) -> list[tuple[str, float]]:
    return [(str(n), value) for n, value in enumerate(values)]


def test_a_soup_is_compared_with_the_base_each_ingredient_and_their_mean(made):
    ws, scores = made
    (row,) = soup_rows("soup", ["first", "second"], scores, BENCHMARKS, Bounds(2, 3), comparer(ws))
    assert row.best == "second"
    assert [one.difference for one in row.each] == pytest.approx([0.1, 0.075])
    assert row.gain.difference == pytest.approx(0.0875)
    gains: dict[str, dict[str, Any]] = stage_gains(
        ["base", "soup", "sft"], {"base": "pretrain", "soup": "soup", "sft": "sft"}, ["first", "second"], scores, BENCHMARKS,
        comparer(ws),
    )  # fmt: skip
    assert gains["soup"]["gain"] == pytest.approx(0.075)
    assert gains["soup"]["words"] == "gain"
    assert gains["soup"]["over_best"]["gain"] == pytest.approx(0.075)
    assert gains["soup"]["over_mean"]["gain"] == pytest.approx(0.0875)
    assert gains["sft"]["gain"] == 0
    assert gains["sft"]["words"].startswith("no effect shown")
    assert set(gains["sft"]) == {"gain", "stderr", "n", "discordant", "words"}


@pytest.mark.parametrize(("in_bits", "gain", "error"), [(True, 0.25, 0.03), (False, 0.02, 0.01)])
def test_shares_and_bits_are_never_averaged(in_bits: bool, gain: float, error: float):
    """Hand-made means: two points of a share more, and a quarter of a bit less."""
    benchmarks = BENCHMARKS | {"likely": ReportedBenchmark("likely", "bits_per_byte", 100, True)}
    made = {"id": "0" * 16, "stage": "evaluate", "address": "", "digest": "", "checkpoint": ""}
    errors = {"maths": 0.01, "likely": 0.03}
    one = Scores(label="base", primary={"maths": 0.02, "likely": 1.0}, stderr=errors, **made)
    two = Scores(label="soup", primary={"maths": 0.04, "likely": 0.75}, stderr=errors, **made)
    found = gain_over([one], two, benchmarks, independent, in_bits=in_bits)
    assert found is not None
    assert (found["gain"], found["stderr"]) == (pytest.approx(gain), pytest.approx(error * 2**0.5))
    assert found.get("metric") == ("bits_per_byte" if in_bits else None)


@pytest.mark.parametrize(("metric", "gain"), [("bits_per_byte", 0.25), ("exact_match", 0.02), ("", 0.02)])
def test_a_soup_is_judged_by_what_ranked_the_sweep(metric: str, gain: float):
    benchmarks = BENCHMARKS | {"likely": ReportedBenchmark("likely", "bits_per_byte", 100, True)}
    made = {"id": "0" * 16, "stage": "evaluate", "address": "", "digest": "", "checkpoint": ""}
    errors = {"maths": 0.01, "likely": 0.03}
    scores = {
        label: Scores(label=label, primary={"maths": share, "likely": bits}, stderr=errors, **made)
        for label, share, bits in (("base", 0.02, 1.0), ("soup", 0.04, 0.75), ("sft", 0.5, 2.0))
    }
    stages = {"base": "pretrain", "soup": "soup", "sft": "sft"}
    gains = stage_gains(list(scores), stages, ["base"], scores, benchmarks, independent, ranked_by=metric)
    assert gains["soup"]["gain"] == pytest.approx(gain)
    assert gains["soup"]["over_best"]["gain"] == pytest.approx(gain)
    assert gains["sft"]["gain"] == pytest.approx(0.46)


def test_stages_of_reinforcement_are_one_step_over_what_the_first_began_with(made):
    ws, scores = made
    line = {"dpo": scores["base"], "rlvr": scores["second"], "instruct": scores["soup"]}
    stages = {"dpo": "dpo", "rlvr": "ppo", "instruct": "ppo"}
    gains = stage_gains(list(line), stages, [], line, BENCHMARKS, comparer(ws))
    assert gains["rlvr"]["gain"] == pytest.approx(0.075)
    assert gains["rlvr"]["n"] == 400


def test_without_items_errors_are_independent(made):
    ws, scores = made
    found = comparer(ws)([scores["base"]], scores["suite"], "maths")
    assert (found.n, found.difference) == (0, 0)
    assert found.stderr == pytest.approx(0.05 * 2**0.5)


def test_the_error_of_a_mean_is_clustered_where_items_say_so():
    values = [1.0] * 10 + [0.0] * 10
    assert error_of_mean(values, [None] * 20) is None
    assert error_of_mean(values, ["one"] * 20) is None
    clustered = error_of_mean(values, [str(n // 5) for n in range(20)])
    assert clustered == pytest.approx((4 * 2.5**2 * 4 / 3) ** 0.5 / 20)
