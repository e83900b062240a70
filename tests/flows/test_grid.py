"""Grids of a training stage: combinations, the rule that chooses, the plan, and a run that goes on with what was chosen. Oracles:
the product by hand, the stage's own validation, the records of a run.
"""

import shutil
from pathlib import Path

import pytest

from flows.config.errors import RecipeError
from flows.config.files import load, recipe_folder
from flows.config.phases.grid_config import GridConfig
from flows.config.sizes.training_runs import training_runs
from flows.running.run import load_recipe, plan, run
from infra.records.record import all_records
from infra.storage.store import Store
from tasks.data.synthesis.synthesize import SynthesizeConfig
from tasks.synthetic import generate_mixed
from tasks.training.dpo import DPOConfig

GRID = "grid.dpo={values: {learning_rate: [1.0e-5, 1.5e-5], beta: [1, 5]}, by: arithmetic}"
NAMES = [
    "learning_rate=1e-05-beta=1",
    "learning_rate=1e-05-beta=5",
    "learning_rate=1.5e-05-beta=1",
    "learning_rate=1.5e-05-beta=5",
]


def test_every_combination_is_a_config_of_the_stage():
    grid = GridConfig(values={"learning_rate": (1e-5, 1.5e-5), "beta": (1, 5)}, seeds=(1, 2), by="dev")
    points = grid.points(DPOConfig(epochs=3))
    assert grid.names == NAMES == list(points)
    assert points[NAMES[2]] == DPOConfig(epochs=3, learning_rate=1.5e-5, beta=1)
    assert [one.seed for one in grid.seeded(points[NAMES[0]])] == [1, 2]
    assert grid.labels(NAMES[0]) == [f"{NAMES[0]}-seed=1", f"{NAMES[0]}-seed=2"]


def test_the_rule_chooses():
    grid = GridConfig(values={"beta": (1, 5, 9)}, by="dev")
    assert grid.choice(["beta=9", "beta=5", "beta=1"], ["beta=1"]) == "beta=5", "the first that is not worse"
    best = GridConfig(values={"beta": (1, 5, 9)}, by="dev", rule="best")
    assert best.choice(["beta=9", "beta=5", "beta=1"], ["beta=1"]) == "beta=9"


@pytest.mark.parametrize(("value", "said"), [
    ("grid.dpo={values: {bta: [1, 2]}, by: arithmetic}", r"grid.dpo.values: bta: Extra inputs"),
    ("grid.dpo={values: {beta: [1, -2]}, by: arithmetic}", r"grid.dpo.values: beta: Input should be greater"),
    ("grid.dpo={values: {beta: [1]}, by: arithmetic}", "a single combination"),
    ("grid.dpo={values: {beta: [1, 2]}, by: physics}", r"grid.dpo.by='physics' is not a benchmark or suite"),
    ("grid.dpo={values: {a.b: [1, 2]}, by: arithmetic}", r"there is no field 'a.b' in DPOConfig"),
    ("grid.reward={values: {epochs: [1, 2]}, by: arithmetic}", "pretrain"),
])  # fmt: skip
def test_what_cannot_be_tried_is_told_before_a_run(value: str, said: str):
    with pytest.raises(RecipeError, match=said):
        load("smoke", [value])


def test_a_plan_has_every_trial_and_knows_its_size(tmp_path: Path):
    grids = [GRID, "grid.pretrain={values: {schedule.learning_rate: [1.0e-3, 3.0e-3]}, by: arithmetic}"]
    config = load_recipe("smoke", grids, str(tmp_path))
    rows = {row.label for row in plan(config)}
    trials = {f"dpo:{name}" for name in NAMES} | {"pretrain:learning_rate=0.001", "pretrain:learning_rate=0.003"}
    assert rows >= trials | {f"evaluate:dpo-{name}" for name in NAMES} | {"rank:grid-dpo", "rank:grid-pretrain", "dpo"}
    assert {one.label for one in training_runs(config)} >= trials


def test_a_stage_that_is_asked_for_alone_brings_its_grid(tmp_path: Path):
    config = load_recipe("smoke", [GRID], str(tmp_path))
    needed = {row.label for row in plan(config, until="dpo") if row.action != "left out"}
    assert needed >= {f"dpo:{name}" for name in NAMES} | {"rank:grid-dpo", "dpo"}
    assert "rlvr" not in needed
    assert not {f"dpo:{name}" for name in NAMES} & {
        row.label for row in plan(config, until="sft") if row.action != "left out"
    }


@pytest.mark.slow
def test_the_chosen_setting_goes_on(finished_smoke: Path, tmp_path: Path):
    store = tmp_path / "store"
    shutil.copytree(finished_smoke, store)
    config = load_recipe("smoke", [GRID], str(store))
    run(config, until="dpo")
    made = [record for record in all_records(Store(str(store))) if record.stage == "dpo"]
    assert len(made) == 4, "four trials, one with the finished run's own settings; the chosen one is a trial"
    (ranking,) = [record for record in all_records(Store(str(store))) if record.label == "rank:grid-dpo"]
    assert "ranking.svg" in ranking.files


STUDIES = sorted(path.stem for path in (recipe_folder() / "studies").glob("*.yaml"))


@pytest.mark.parametrize("name", STUDIES)
def test_studies_know_the_size_of_every_trial(name: str):
    """Those at paper size read hub data sets, which a plan would pin."""
    config = load(str(recipe_folder() / "studies" / f"{name}.yaml"))
    tried = {
        f"{stage}:{label}" for stage, grid in config.grid.items() for name in grid.names for label in grid.labels(name)
    }
    sizes = {one.label: one.steps for one in training_runs(config)}
    assert sizes.keys() >= tried
    # Each has several trainings of a kind, so that chance can be told from a difference.
    assert tried or len(config.microanneal.seeds) == 3 or len(config.anneal_seeds) == 6


def test_repeated_problems_fill_their_mixes_within_the_passes_allowed():
    """Oracle: the tokens of the problems that the study makes, encoded here."""
    config = load(str(recipe_folder() / "studies" / "duplication.yaml"))
    tokenizer = config.encode.vocabulary
    wanted = 0.35 * config.microanneal.tokens
    passes = []
    for candidate in config.candidates:
        made = candidate.synthesize
        assert isinstance(made, SynthesizeConfig)
        problems = generate_mixed(made.problems, "train", made.count, made.seed)
        held = sum(len(tokenizer.encode(f"{problem.question}\n{problem.response}\n")) for problem in problems)
        passes.append(wanted / held)
    assert passes == pytest.approx([1, 2, 4], rel=0.2)
    assert max(passes) < config.microanneal.max_repetition


def test_a_study_at_toy_size_is_planned(tmp_path: Path):
    rows = {
        row.label for row in plan(load_recipe(str(recipe_folder() / "studies/preferences.yaml"), None, str(tmp_path)))
    }
    assert len([label for label in rows if label.startswith("dpo:")]) == 12
    assert {"rank:grid-dpo", "rank:grid-rlvr", "dpo", "rlvr"} <= rows
