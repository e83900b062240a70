"""Sweeps as decisions: candidates that are added later, budgets and seeds as axes, promotion. Oracle: the plan of a finished run,
and the promoted file read back as a recipe.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.config.errors import RecipeError
from flows.config.files import checked_recipe, load
from flows.config.sizes.training_runs import training_runs
from flows.phases.microanneal import sweep
from flows.running.promotion import promoted_path, write_promoted
from flows.running.run import load_recipe, run_sweep
from flows.running.sessions import new_session, plan_rows
from infra.records.record import payload_at
from infra.storage.store import Store
from tasks.artifacts import Ranking

FOURTH = {"name": "fourth", "synthesize": {"count": 300, "seed": 9, "problems": [{"kind": "word_problems"}]}}
THIRD = {"name": "third", "synthesize": {"count": 300, "seed": 8, "problems": [{"kind": "word_problems"}]}}


def with_candidates(store: Path, *further: dict[str, Any]):
    """The smoke recipe with more candidates."""
    config = load_recipe("smoke", None, str(store))
    kept = [item.model_dump() for item in config.candidates]
    changed = checked_recipe(config.model_dump() | {"candidates": kept + list(further)}, "smoke")
    return changed.model_copy(update={"candidates": tuple(item.pinned() for item in changed.candidates)})


def running(config) -> set[str]:
    return {row.label for row in plan_rows(config, new_session(config), sweep) if row.action != "reused"}


def ranking(order: list[str], outcome: str) -> Ranking:
    values = dict.fromkeys(order, 0.5)
    return Ranking(
        stage="rank", id="0", address="rank/0/g1", digest="", order=order, scores=values, stderr=values, outcome=outcome
    )


def test_candidates_that_are_added_are_all_that_runs(finished_smoke: Path):
    assert running(with_candidates(finished_smoke)) == set()
    found = running(with_candidates(finished_smoke, THIRD))
    assert found and all("third" in label or label == "rank" for label in found)


@pytest.mark.slow
def test_a_fourth_candidate_runs_alone_after_a_sweep_of_three(finished_smoke: Path, tmp_path: Path):
    store = tmp_path / "store"
    shutil.copytree(finished_smoke, store)
    three = with_candidates(store, THIRD)
    run_sweep(three, [*three.candidates])
    assert running(three) == set()
    found = running(with_candidates(store, THIRD, FOURTH))
    assert found and all("fourth" in label or label == "rank" for label in found)


@pytest.mark.slow
def test_budgets_and_seeds_are_axes_of_a_sweep(finished_smoke: Path, tmp_path: Path):
    store = tmp_path / "store"
    shutil.copytree(finished_smoke, store)
    axes = ["microanneal.seeds=[1, 2]", "microanneal.budgets=[4096]"]
    config = load_recipe("smoke", axes, str(store))
    labels = {row.label for row in plan_rows(config, new_session(config), sweep)}
    tried = {label for label in labels if label.startswith("anneal:")}
    names = [candidate.name for candidate in config.candidates]
    assert tried == {
        f"anneal:try-{name}-{part}seed-{seed}" for name in names for part in ("4096-", "") for seed in (1, 2)
    }
    assert {run.label for run in training_runs(config)} >= tried
    made = run_sweep(config, [*config.candidates])
    table = Store(str(store)).read_json(f"{payload_at(Store(str(store)), made.address)}/ranking.json")
    assert (table["seeds"], table["tokens"]) == (2, 8192) and table["noise_floor"] >= 0
    assert sorted(made.order) == sorted(names)


def test_budgets_rise_and_seeds_differ():
    with pytest.raises(RecipeError, match="budgets=8192 and then tokens=8,192 do not rise"):
        load("smoke", ["microanneal.budgets=[8192]"])
    with pytest.raises(RecipeError, match="would count one training as two"):
        load("smoke", ["microanneal.seeds=[1, 1]"])


def test_a_promoted_mix_file_is_a_piece_of_a_recipe(tmp_path: Path):
    config = load("smoke")
    names = [candidate.name for candidate in config.candidates]
    file = tmp_path / "maths.yaml"
    assert write_promoted(file, config, ranking(names, names[1])) == names[1]
    (tmp_path / "mine.yaml").write_text("extends: [smoke, maths.yaml]\n")
    found = load(str(tmp_path / "mine.yaml"))
    assert found.anneal_mix.winner == names[1]
    assert found.anneal_mix.sources == config.anneal_mix.sources and found.candidates == config.candidates
    assert yaml.safe_load(file.read_text()).keys() == {"candidates", "anneal_mix"}
    with pytest.raises(ValueError, match=r"maths.yaml exists"):
        write_promoted(file, config, ranking(names, names[1]))


def test_what_is_undecided_is_promoted_by_name_alone(tmp_path: Path):
    config = load("smoke")
    names = [candidate.name for candidate in config.candidates]
    undecided = ranking(names, "undecided")
    with pytest.raises(ValueError, match="is undecided: arithmetic, word_problems may be equally good"):
        write_promoted(tmp_path / "a.yaml", config, undecided)
    with pytest.raises(ValueError, match=r"candidate 'aritmetic' is not both .*did you mean 'arithmetic'"):
        write_promoted(tmp_path / "a.yaml", config, undecided, "aritmetic")
    assert write_promoted(tmp_path / "a.yaml", config, undecided, names[0]) == names[0]
    with pytest.raises(ValueError, match="is not a plain name"):
        promoted_path("../a")
