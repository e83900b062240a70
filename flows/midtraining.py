"""Mid-training: the base annealed on the chosen mix with several seeds, averaged into a soup (paper section 4; RECIPE E)."""

from typing import NamedTuple

from flows.config import RecipeConfig
from flows.curation import Corpus
from flows.microanneal import Sweep
from infra.phase import Phase
from tasks.artifacts import Checkpoint, Mix
from tasks.data.mix import mix
from tasks.training.anneal import anneal
from tasks.training.soup import soup


class Soup(NamedTuple):
    """What mid-training makes."""

    mix: Mix | None
    """None where the soup is given."""
    ingredients: dict[str, Checkpoint]
    """Anneals by seed."""
    checkpoint: Checkpoint


@Phase
def midtraining(corpus: Corpus, sweep: Sweep, base: Checkpoint, config: RecipeConfig) -> Soup:
    """Mix, one anneal per seed side by side, then their average."""
    sources = [*corpus.tokens.values(), *sweep.tokens.values()]
    tokens = mix.labelled("anneal")(sources, config.anneal_mix, sweep.ranking)
    ingredients = {
        f"seed {seed}": anneal.labelled(seed)(base, tokens, config.anneal.model_copy(update={"seed": seed}))
        for seed in config.anneal_seeds
    }
    return Soup(tokens, ingredients, soup(list(ingredients.values()), config.soup))
