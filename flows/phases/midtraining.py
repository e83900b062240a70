"""Mid-training: the base annealed on the chosen mix with several seeds, averaged into a soup (paper section 4; RECIPE E).

Base, ingredients and soup are evaluated here, while the last anneals run.
"""

from typing import NamedTuple

from flows.config.recipe_config import RecipeConfig
from flows.phases.curation import Corpus
from flows.phases.microanneal import Sweep
from flows.phases.pretraining import Base
from flows.phases.scoring import score_models
from flows.starting import starting_point
from infra.phase import Phase
from tasks.artifacts import Checkpoint, Mix, Scores
from tasks.data.mix import mix
from tasks.training.anneal import anneal
from tasks.training.soup import soup


class Soup(NamedTuple):
    """What mid-training makes."""

    mixes: dict[str, Mix]
    """What the ingredients read; empty where the soup is given."""
    ingredients: dict[str, Checkpoint]
    """Anneals by seed or name."""
    checkpoint: Checkpoint | None
    """Their average; a single ingredient is not averaged. None where the recipe starts past it."""
    scores: dict[str, Scores]
    """Of the base and of every model of it, by name; empty where the soup is given."""

    @property
    def models(self) -> dict[str, Checkpoint]:
        """Every model of it by name."""
        if self.checkpoint is None or len(self.ingredients) == 1:
            return self.ingredients
        return self.ingredients | {"soup": self.checkpoint}

    @property
    def last(self) -> str:
        """The name of the model that finetuning starts from; empty where the recipe starts past it."""
        return list(self.models)[-1] if self.models else ""


@Phase
def midtraining(corpus: Corpus, sweep: Sweep, base: Base, config: RecipeConfig) -> Soup:
    """Mix, one anneal per seed side by side, those on mixes of their own, then the average of all, unless the soup is given."""
    if config.starts_after_midtraining:
        return Soup({}, {}, starting_point(config, "soup"), {})
    sources = [*corpus.tokens.values(), *sweep.tokens.values()]
    # The ranking goes in too: a mix whose winner is not named takes the first of it.
    mixes = {"anneal": mix.labelled("anneal")(sources, config.annealing_mix(config.anneal_mix), sweep.ranking)}
    ingredients = {
        f"seed {seed}": anneal.labelled(seed)(
            base.model, mixes["anneal"], config.anneal.model_copy(update={"seed": seed})
        )
        for seed in config.anneal_seeds
    }
    for item in config.further_ingredients:
        own = mix.labelled(f"anneal-{item.name}")(sources, config.annealing_mix(item.mix), sweep.ranking)
        mixes[f"anneal {item.name}"] = own
        ingredients[item.name] = anneal.labelled(item.name)(base.model, own, item.anneal(config.anneal))
    made = list(ingredients.values())
    # With one ingredient there is nothing to average.
    whole = Soup(mixes, ingredients, made[0] if len(made) == 1 else soup(made, config.soup), {})
    return whole._replace(scores=score_models({"base": base.model} | whole.models, config, chat=False, last=whole.last))
