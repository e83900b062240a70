"""What a recipe that starts at a given checkpoint still reads: the sources of its later stages, and no others.

Pre-training's 22 TB are not collected for a mid-training that begins at a released base (RECIPE E reads six of the sources).
Deviation: duplicates are then looked for among the sources that are read, so the first copy of a text may be another one.
"""

from collections.abc import Iterable

from flows.config.parts import PAST_MIDTRAINING
from flows.config.recipe_config import RecipeConfig
from tasks.data.filter import FilterConfig
from tasks.data.filters.rules import classifier_of


def needed_sources(config: RecipeConfig) -> set[str]:
    """Names of the collected and made sources that a stage still reads."""
    made = {*config.collect, *config.synthesize}
    if config.begins_at(PAST_MIDTRAINING):
        return set()
    if config.comparison:
        return _compared_sources(config, made)
    mixes = [config.anneal_mix, *(item.mix for item in config.further_ingredients)]
    if "base" not in config.start or not all(mix.sources for mix in mixes):
        return made
    names = {wish.source for mix in mixes for wish in mix.sources} | {mix.winner for mix in mixes}
    names = (names | {config.microanneal.web}) & made
    for name in needed_classifiers(config, names):
        names |= set(config.classifier_sources(name))
    return names


def _compared_sources(config: RecipeConfig, made: set[str]) -> set[str]:
    """What the mix of a comparison reads, and what its rules' classifiers learn from."""
    names = {wish.source for wish in config.pretrain_mix.sources} or made
    return names.union(*(config.classifier_sources(name) for name in needed_classifiers(config, names)))


def needed_classifiers(config: RecipeConfig, sources: Iterable[str]) -> list[str]:
    """Classifiers that are trained: all of them from raw text on, else those that the rules of these sources or of a
    candidate ask."""
    if "base" not in config.start and not config.comparison:
        return list(config.classifiers)
    rules: list[FilterConfig] = [config.filter[name] for name in sources if name in config.filter]
    rules += [] if config.comparison else [candidate.filter for candidate in config.candidates]
    asked = {classifier_of(scorer) for rule in rules for scorer in rule.scorers}
    # In the recipe's order, so that the plan does not depend on a set's.
    return [name for name in config.classifiers if name in asked]
