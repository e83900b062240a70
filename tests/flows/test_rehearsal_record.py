"""An expensive run asks for a rehearsal of the same recipe. Oracle: the price by hand from FLOPs, peak and hours."""

from pathlib import Path

import pytest

from flows.config.errors import RecipeError
from flows.config.files import load
from flows.inspection.costs.cost import DEVICES, Hardware, recipe_costs
from flows.rehearsing.rehearsal_record import ASKED_ABOVE, GPU_HOUR, check_rehearsed, digest, price, remember


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_published_run_is_refused_until_that_recipe_was_rehearsed() -> None:
    config = load("olmo2-7b")
    with pytest.raises(RecipeError, match=r"cost about 3\d\d,\d{3} .* olmo2 rehearse olmo2-7b .* --no-rehearsal"):
        check_rehearsed(config, "olmo2-7b", skip=False)
    remember(config, how="rehearsed")
    check_rehearsed(config, "olmo2-7b", skip=False)
    other = load("olmo2-7b", ["dpo.beta=1"])
    with pytest.raises(RecipeError, match="asks for a rehearsal of the same recipe"):
        check_rehearsed(other, "olmo2-7b", skip=False)


def test_a_run_without_a_rehearsal_is_asked_once_and_where_it_runs_does_not_matter() -> None:
    config = load("olmo2-1b")
    check_rehearsed(config, "olmo2-1b", skip=True)
    check_rehearsed(config, "olmo2-1b", skip=False)
    elsewhere = load("olmo2-1b", ["execution.store=s3://other/root", "execution.gc_every=7"])
    assert digest(elsewhere) == digest(config)


@pytest.mark.parametrize("recipe", ["laptop", "smoke"])
def test_small_recipes_are_never_asked(recipe: str) -> None:
    config = load(recipe)
    assert price(config) < ASKED_ABOVE / 1000
    check_rehearsed(config, recipe, skip=False)
    assert not Path("rehearsals").exists()


def test_the_price_is_that_of_the_plans_trainings() -> None:
    config = load("olmo2-13b")
    costs = recipe_costs(config, Hardware(64, DEVICES["h100"], price=GPU_HOUR))
    assert price(config) == pytest.approx(sum(cost.money for cost in costs if cost.money), rel=1e-6)
    # A mid-training from a released base costs what is left.
    assert price(load("olmo2-13b", ["start={base: 0123456789abcdef}"])) < price(config) / 8
