"""Diagnosis of runs and initialisations. Oracles: planted spikes in made metrics; model/diagnostics called directly."""

import json
from pathlib import Path

import numpy as np
import pytest

from flows.inspection import stability as diagnose
from flows.inspection.stability import (
    _below,
    diagnose_initialisation,
    diagnose_runs,
    draw_curves,
    judged,
    series_of,
    thinned,
)
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Checkpoint
from tests.tasks.training.conftest import Bench

STEPS = 400
SPIKES = (250, 300)


class Bare(Config):
    logged: bool = True
    detailed: bool = False


def make_run(ws: Workspace, config: Bare) -> Checkpoint:
    noise = np.random.default_rng(0).normal(size=(2, STEPS))
    noise[1][list(SPIKES)] = 50.0
    rows = [{"step": i + 1, "loss": 3 + 0.01 * noise[0][i], "grad_norm": 60 + noise[1][i]} for i in range(STEPS)]
    if config.detailed:
        for row in rows[::100]:
            row |= {f"{kind}_norm/blocks.{n}": 1.0 + n for kind in ("param", "grad", "update") for n in (10, 2)}
            row |= {"param_norm/embedding": 5.0, "perplexity/web": 20.0, "task/sums": 0.5}
    if config.logged:
        ws.write_jsonl("metrics.jsonl", rows)
    return ws.artifact(Checkpoint, steps=STEPS, tokens=1, parameters=1, loss=3.0, ranks=300, parent="")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "store")


def test_planted_spikes_are_found_and_drawn(bench: Bench, tmp_path: Path):
    made = bench.run(make_run, "pretrain", config=Bare())
    found = diagnose_runs(bench.session.store, [made.id, made.id[:8]], tmp_path / "out", window=200)
    first = found["runs"][0]
    assert first["spikes"] == {"loss": 0.0, "grad_norm": pytest.approx(100 * len(SPIKES) / 200)}
    assert first["monitor_spikes"] == first["monitor_recent_spikes"] == pytest.approx(100 * len(SPIKES) / STEPS)
    assert (first["judged"], first["monitor_judged"]) == (200, STEPS - 128)
    assert json.loads((tmp_path / "out/curves.json").read_text())["runs"][0]["series"]["loss"][0] == list(
        range(1, STEPS + 1)
    )
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")
    picture = (tmp_path / "out/curves.svg").read_bytes()
    diagnose_runs(bench.session.store, [made.id, made.id], tmp_path / "again", window=200)
    assert (tmp_path / "again/curves.svg").read_bytes() == picture


def test_names_with_dollars_and_markup_are_drawn_as_they_are(tmp_path: Path):
    name = r"a $\frac{$ <script>alert(1)</script> b"
    curves = judged(series_of([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]), window=2)
    draw_curves([{"label": name, "id": "0123456789abcdef", **curves}], tmp_path)
    picture = (tmp_path / "curves.svg").read_text()
    assert "<script" not in picture


def test_a_short_run_is_not_judged(bench: Bench, tmp_path: Path):
    made = bench.run(make_run, "pretrain", config=Bare())
    assert diagnose_runs(bench.session.store, [made.id], tmp_path, window=1000)["runs"][0]["judged"] == 0


def test_an_artifact_without_metrics_is_refused(bench: Bench, tmp_path: Path):
    made = bench.run(make_run, "adopt", config=Bare(logged=False))
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl"):
        diagnose_runs(bench.session.store, [made.id], tmp_path, window=1000)


def test_norms_and_evaluations_are_drawn_where_they_were_logged(bench: Bench, tmp_path: Path):
    plain = bench.run(make_run, "pretrain", config=Bare())
    detailed = bench.run(make_run, "pretrain", config=Bare(detailed=True))
    found = diagnose_runs(bench.session.store, [plain.id, detailed.id], tmp_path, window=200)
    names = {f"{kind}-{detailed.id[:8]}.{end}" for kind in ("norms", "in-loop") for end in ("json", "png", "svg")}
    assert {Path(path).name for path in found["norms_files"] + found["in_loop_files"]} == names
    assert names <= {path.name for path in tmp_path.iterdir()}
    norms = json.loads((tmp_path / f"norms-{detailed.id[:8]}.json").read_text())["series"]
    assert norms["norm of updates"]["blocks.10"] == [[1, 101, 201, 301], [11.0] * 4]
    evaluated = json.loads((tmp_path / f"in-loop-{detailed.id[:8]}.json").read_text())["series"]
    assert evaluated["perplexity of held-out windows"]["web"][1] == [20.0] * 4
    assert evaluated["score on a task"]["sums"][0] == [1, 101, 201, 301]


def test_layers_are_in_their_order():
    rows = [{"step": 1.0} | {f"param_norm/{name}": 1.0 for name in ("blocks.10", "head", "blocks.2", "embedding")}]
    assert list(_below(series_of(rows), "param_norm/")) == ["embedding", "head", "blocks.2", "blocks.10"]


def test_the_monitor_reads_the_cross_entropy_where_there_is_one():
    noise = np.random.default_rng(0).normal(size=(3, 200))
    noise[0][150] = noise[2][160] = 50.0
    rows = [{"step": n + 1, "loss": noise[0][n], "grad_norm": noise[1][n], "ce": noise[2][n]} for n in range(200)]
    assert judged(series_of(rows), 100)["monitor_spikes"] == 0.5
    del rows[0]["ce"]
    assert judged(series_of(rows), 100)["monitor_spikes"] is None, "not of every step"
    without = [{name: value for name, value in row.items() if name != "ce"} for row in rows]
    assert judged(series_of(without), 100)["monitor_spikes"] == 0.5


def test_a_long_curve_is_drawn_with_all_its_extremes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(diagnose, "DRAWN", 20)
    values = np.random.default_rng(0).normal(size=1003)
    values[[0, 500, 1002]] = 9.0, -9.0, 8.0
    rows = [{"step": n + 1, "loss": value} for n, value in enumerate(values.tolist())]
    steps, drawn = thinned(series_of(rows)["loss"])
    assert len(steps) <= 20 and steps == sorted(set(steps))
    assert {1, 501, 1003} <= set(steps)
    assert drawn == [values[step - 1] for step in steps]
    short = series_of(rows[:20])["loss"]
    assert thinned(short) == (list(range(1, 21)), values[:20].tolist())


@pytest.mark.parametrize("window", [-5, 0, 1])
def test_a_window_that_judges_nothing_is_refused(window: int, bench: Bench, tmp_path: Path):
    made = bench.run(make_run, "pretrain", config=Bare())
    with pytest.raises(ValueError, match=f"--window {window}: .* at least 2"):
        diagnose_runs(bench.session.store, [made.id], tmp_path, window)


def test_a_single_layer_does_not_grow(tmp_path: Path):
    with pytest.raises(ValueError, match=r"--layers 1: .* at least 2"):
        diagnose_initialisation("olmo2", "64", 1, tmp_path)


def test_growth_has_a_value_per_variant_and_width(tmp_path: Path):
    found = diagnose_initialisation("olmo2, olmo-0424", "64,32", 2, tmp_path)
    assert [(row["variant"], row["width"]) for row in found["growth"]] == [
        ("olmo2", 32), ("olmo2", 64), ("olmo-0424", 32), ("olmo-0424", 64),
    ]  # fmt: skip
    measured = ("activations", "contributions", "gradients")
    assert all(np.isfinite([row[what] for what in measured]).all() for row in found["growth"])
    again = diagnose_initialisation("olmo2,olmo-0424", "32,64", 2, tmp_path / "again")
    assert again["growth"] == found["growth"]
    assert {path.name for path in tmp_path.glob("growth.*")} == {"growth.json", "growth.png", "growth.svg"}


@pytest.mark.parametrize(("variants", "widths", "said"), [
    ("olmo3", "64", "did you mean 'olmo2'"),
    (",", "64", "',' names no variant; there are olmo2, olmo-0424"),
    ("olmo2", "50", "50 is not a multiple of 32"),
    ("olmo2", "", "nothing is not a multiple"),
])  # fmt: skip
def test_unknown_variants_and_widths_are_refused(tmp_path: Path, variants: str, widths: str, said: str):
    with pytest.raises(ValueError, match=said):
        diagnose_initialisation(variants, widths, 2, tmp_path)
