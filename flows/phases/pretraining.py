"""Pre-training: tokens to a base model (paper section 2; RECIPE D), with the trial of curation alongside."""

from typing import NamedTuple

from flows.config.recipe_config import RecipeConfig
from flows.phases.curation import Corpus
from flows.phases.curation_trial import curation_trial
from flows.phases.grid import chosen_setting
from flows.starting import starting_point
from infra.phase import Phase
from tasks.artifacts import Checkpoint, Mix, Scores
from tasks.data.mix import mix
from tasks.training.pretrain import pretrain


class Base(NamedTuple):
    """What pre-training makes."""

    mix: Mix | None
    """None where the base is given."""
    checkpoint: Checkpoint | None
    """None where the recipe starts past it."""
    trial: list[Scores]
    """A small model's scores on unfiltered and on filtered text; empty without a trial."""

    @property
    def model(self) -> Checkpoint:
        """The checkpoint, for what goes on from it."""
        assert self.checkpoint is not None, "the recipe starts past the base checkpoint"
        return self.checkpoint


@Phase
def pretraining(corpus: Corpus, config: RecipeConfig) -> Base:
    """Mix all sources and train from the initialisation, unless the base is given; try meanwhile what curation brings."""
    if config.starts_after_midtraining:
        return Base(None, None, [])
    if given := starting_point(config, "base"):
        return Base(None, given, [])
    tokens = mix.labelled("pretrain")(list(corpus.tokens.values()), config.pretraining_mix)
    # Pre-training first: it takes a core for long, the trial fills the others.
    how = chosen_setting(
        "pretrain", config.pretrain, lambda name, how: pretrain.labelled(name)(tokens, how), config, chat=False
    )
    base = pretrain(tokens, how)
    return Base(tokens, base, curation_trial(corpus, config))
