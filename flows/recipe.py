"""The whole recipe: read this first.

Each line is a phase (a Prefect flow) made of stages (its tasks); what is passed on are promises of artifacts. A phase's
file says which stages it calls, and a stage's file under tasks/ says what it does. With `start` in the recipe, a phase takes the
given checkpoint at its place; a phase that only leads there makes nothing and returns an empty result. With `comparison`
variants of pre-training are all that is trained.
"""

from flows.config.recipe_config import RecipeConfig
from flows.phases.comparison import comparison
from flows.phases.curation import curation
from flows.phases.evaluation import evaluation
from flows.phases.microanneal import microanneal
from flows.phases.midtraining import midtraining
from flows.phases.posttraining import posttraining
from flows.phases.pretraining import pretraining
from tasks.artifacts import Report


def recipe(config: RecipeConfig) -> Report:
    """Make an instruct model and its report from raw text."""
    # What a given checkpoint makes needless, a phase skips by itself; the order here never changes.
    corpus = curation(config)
    if config.comparison:
        return comparison(corpus, config)
    base = pretraining(corpus, config)
    sweep = microanneal(corpus, base, config)
    soup = midtraining(corpus, sweep, base, config)
    tuned = posttraining(soup, config)
    return evaluation(corpus, base, sweep, soup, tuned, config)
