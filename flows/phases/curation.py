"""Curation: raw sources to documents, documents to tokens (paper section 2.4; RECIPE C).

Rules are asked in two stages: `score` measures every document, `filter` decides by the scores. Only the second knows thresholds,
so a changed one leaves the scores as they are.
"""

from typing import NamedTuple

from flows.config.needed import needed_classifiers, needed_sources
from flows.config.recipe_config import RecipeConfig
from flows.phases.leakage import clean_documents
from infra.phase import Phase
from tasks.artifacts import Classifier, Documents, Tokens
from tasks.data.classifying.classifier import classifier
from tasks.data.classifying.label import label
from tasks.data.collect import collect
from tasks.data.decontaminate import decontaminate
from tasks.data.dedup import dedup
from tasks.data.encode import encode
from tasks.data.filter import FilterConfig, filter
from tasks.data.score import ScoreConfig, score


class Corpus(NamedTuple):
    """What curation makes."""

    funnel: dict[str, Documents]
    """Documents after each step, by the step's label."""
    tokens: dict[str, Tokens]
    """Token files by source."""
    documents: dict[str, Documents]
    """What they were encoded from, by source."""
    classifiers: dict[str, Classifier]
    """Classifiers that rules may ask, by name."""


@Phase
def curation(config: RecipeConfig) -> Corpus:
    """Collect, filter, deduplicate, decontaminate and encode every source that is still read; synthetic ones are clean by
    construction. A recipe that starts at a model past mid-training reads no corpus.
    """
    if config.starts_after_midtraining:
        return Corpus({}, {}, {}, {})
    read = needed_sources(config)
    raw = {name: collect.labelled(name)(source) for name, source in config.collect.items() if name in read}
    made = {name: source.made(name) for name, source in config.synthesize.items() if name in read}
    known = raw | made
    asked = {name: config.classifiers[name] for name in needed_classifiers(config, read)}
    examples = {name: [known[source] for source in config.classifier_sources(name)] for name in asked}
    # A classifier with labels learns from the labelled sample, not from its sources.
    examples |= {
        name: [label.labelled(name)(examples[name], config.label[name])] for name in asked if name in config.label
    }
    classifiers = {name: classifier.labelled(name)(examples[name], how) for name, how in asked.items()}
    kept = {name: filtered(name, raw[name], config.filter[name], classifiers) for name in raw}
    # Over all sources at once, since copies of a page come from several.
    unique = dedup(list(kept.values()), config.dedup)
    clean = decontaminate(unique, config.decontaminate)
    safe = {name: clean_documents(name, documents, config.synthesize[name], config) for name, documents in made.items()}
    documents = dict.fromkeys(raw, clean) | safe
    # Where every variant of a comparison has a vocabulary of its own, nothing reads the recipe's.
    apart = config.comparison and config.comparison.encode.keys() == config.comparison.variants.keys()
    encoded = {} if apart else documents
    tokens = {name: encode.labelled(name)(found, config.encode_source(name)) for name, found in encoded.items()}
    funnel = {f"collect {name}": documents for name, documents in raw.items()}
    # A made source that was exempt is the same object, and no step of the funnel.
    funnel |= {f"decontaminate {name}": documents for name, documents in safe.items() if documents is not made[name]}
    funnel |= {f"filter {name}": documents for name, documents in kept.items()}
    return Corpus(funnel | {"dedup": unique, "decontaminate": clean}, tokens, documents, classifiers)


def filtered(name: str, documents: Documents, rules: FilterConfig, classifiers: dict[str, Classifier]) -> Documents:
    """What passes the rules: measured first, then decided. Without rules the documents themselves."""
    if not rules.rules:
        return documents
    config = ScoreConfig(scorers=rules.scorers)
    scores = score.labelled(name)(documents, config, [classifiers[asked] for asked in config.classifiers])
    return filter.labelled(name)(documents, rules, scores)
