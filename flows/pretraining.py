"""Pre-training: tokens to a base model (paper section 2; RECIPE D)."""

from typing import NamedTuple

from flows.config.recipe_config import RecipeConfig
from flows.curation import Corpus
from flows.starting import starting_point
from infra.phase import Phase
from tasks.artifacts import Checkpoint, Mix
from tasks.data.mix import mix
from tasks.training.pretrain import pretrain


class Base(NamedTuple):
    """What pre-training makes."""

    mix: Mix | None
    """None where the base is given."""
    checkpoint: Checkpoint


@Phase
def pretraining(corpus: Corpus, config: RecipeConfig) -> Base:
    """Mix all sources and train from the initialisation, unless the base is given."""
    if given := starting_point(config, "base"):
        return Base(None, given)
    tokens = mix.labelled("pretrain")(list(corpus.tokens.values()), config.pretraining_mix)
    return Base(tokens, pretrain(tokens, config.pretrain))
