"""Grids: one training stage with several settings, judged on the same items, ranked, and the chosen setting for the recipe to go
on with. The chosen training is not made again: it has the same identity as its trial, so it is reused.
"""

from collections.abc import Callable
from typing import TypeVar

from flows.config.phases.grid_config import GridConfig, Gridded
from flows.config.recipe_config import RecipeConfig
from infra.phase import Phase
from model.config import Config
from tasks.artifacts import Checkpoint, Ranking
from tasks.evaluation.evaluate import evaluate
from tasks.evaluation.rank import RankConfig, rank

How = TypeVar("How", bound=Config)
Train = Callable[[str, How], Checkpoint]
"""(What follows the stage's name in the label, settings) -> the training's checkpoint."""


def chosen_setting(section: Gridded, how: How, train: Train[How], config: RecipeConfig, *, chat: bool) -> How:
    """The stage's settings, or with a grid those that it chooses. A plan before the ranking is made shows the stage's own."""
    grid = config.grid.get(section)
    if grid is None:
        return how
    points = grid.points(how)
    ranking = tried(section, grid, points, train, config, chat)
    # Of an unfinished ranking a plan knows nothing, so it goes on with the stage's own settings.
    return points[grid.choice(ranking.order, ranking.hopeless)] if isinstance(ranking, Ranking) else how


@Phase
def tried(
    section: Gridded, grid: GridConfig, points: dict[str, How], train: Train[How], config: RecipeConfig, chat: bool
) -> Ranking:
    """Every combination trained with every seed, evaluated, and ranked."""
    evaluation = config.grid_evaluation(section)
    scores = []
    for name, how in points.items():
        for label, seeded in zip(grid.labels(name), grid.seeded(how), strict=True):
            made = train(label, seeded)
            step = evaluate.labelled(f"{section}-{label}")
            scores.append(step(made, evaluation.of(f"{section} {label}", chat=chat)))
    ranked = RankConfig(benchmark=grid.by, candidates=tuple(points), seeds=max(1, len(grid.seeds)))
    return rank.labelled(f"grid-{section}")(scores, ranked)
