"""The whole recipe: read this first.

Each line is a phase (a Prefect flow) made of stages (its tasks); what is passed on are promises of artifacts. A phase's
file says which stages it calls, and a stage's file under tasks/ says what it does. With `start` in the recipe a given
checkpoint stands at its place, and what only leads there is left out. With `comparison` variants of pre-training are all
that is trained.
"""

from flows.comparison import comparison
from flows.config.recipe_config import RecipeConfig
from flows.curation import curation
from flows.evaluation import evaluation
from flows.microanneal import microanneal
from flows.midtraining import Soup, midtraining
from flows.posttraining import posttraining
from flows.pretraining import pretraining
from flows.starting import starting_point
from tasks.artifacts import Report


def recipe(config: RecipeConfig) -> Report:
    """From raw text to an instruct model and its report."""
    if config.starts_after_midtraining:
        given = starting_point(config, "soup")
        tuned = posttraining(given, config)
        return evaluation(None, None, None, Soup({}, {}, given, {}) if given else None, tuned, config)
    corpus = curation(config)
    if config.comparison:
        return comparison(corpus, config)
    base = pretraining(corpus, config)
    sweep = microanneal(corpus, base.checkpoint, config)
    soup = midtraining(corpus, sweep, base.checkpoint, config)
    tuned = posttraining(soup.checkpoint, config)
    return evaluation(corpus, base, sweep, soup, tuned, config)
