"""Micro-anneals: candidate sources compared by short anneals of the base model (paper section 4.4.2; RECIPE E)."""

from typing import NamedTuple

from flows.config.parts import CandidateConfig
from flows.config.recipe_config import RecipeConfig
from flows.phases.curation import Corpus, curation, filtered
from flows.phases.leakage import clean_documents
from flows.phases.pretraining import Base, pretraining
from flows.phases.synthesis import AnySynthesis
from infra.phase import Phase
from tasks.artifacts import Documents, Mix, Ranking, Scores, Tokens
from tasks.data.collect import collect
from tasks.data.decontaminate import decontaminate
from tasks.data.encode import encode
from tasks.data.mix import mix
from tasks.data.synthesis.rewrite import rewrite
from tasks.evaluation.evaluate import evaluate
from tasks.evaluation.rank import rank
from tasks.training.anneal import anneal


class Sweep(NamedTuple):
    """What a sweep makes."""

    tokens: dict[str, Tokens]
    """The candidates, encoded."""
    mixes: dict[str, Mix]
    scores: dict[str, Scores]
    ranking: Ranking | None
    """None where the recipe starts past mid-training."""


@Phase
def microanneal(corpus: Corpus, base: Base, config: RecipeConfig) -> Sweep:
    """Anneal the base on every candidate mixed with web text, evaluate, rank."""
    if config.starts_after_midtraining:
        return Sweep({}, {}, {}, None)
    candidates = {candidate.name: candidate for candidate in config.candidates}
    evaluation = config.evaluation.only(config.microanneal.rank_by)
    web = corpus.tokens[config.microanneal.web]
    kept = {
        name: filtered(name, candidate_documents(candidate, config), candidate.filter, corpus.classifiers)
        for name, candidate in candidates.items()
    }
    tokens = {name: encode.labelled(name)(kept[name], config.encode_source(name)) for name in candidates}
    mixes = {
        name: mix.labelled(f"try-{name}")([web, tokens[name]], config.candidate_mix(candidate))
        for name, candidate in candidates.items()
    }
    shape = config.microanneal.anneal
    tried = {name: anneal.labelled(f"try-{name}")(base.model, mixes[name], shape) for name in candidates}
    scores = {name: evaluate.labelled(f"try-{name}")(tried[name], evaluation.of(f"try {name}")) for name in candidates}
    return Sweep(tokens, mixes, scores, rank(list(scores.values()), config.rank()))


def sweep(config: RecipeConfig) -> Ranking:
    """A sweep by itself: its text, the base (made, or given by `start.base`), and the micro-anneals."""
    corpus = curation(config)
    ranking = microanneal(corpus, pretraining(corpus, config), config).ranking
    assert ranking is not None, config.start
    return ranking


def candidate_documents(candidate: CandidateConfig, config: RecipeConfig) -> Documents:
    """A candidate's documents, made or read, and perhaps rewritten, as its config says, without evaluation items.

    What is rewritten is cleaned before, so that no seed leaks, and after, as a language model wrote it.
    """
    origin, rewriting = candidate.origin, candidate.rewriting
    made = isinstance(origin, AnySynthesis)
    documents = origin.made(candidate.name) if made else collect.labelled(candidate.name)(origin)
    if not rewriting:
        return clean_documents(candidate.name, documents, origin, config)
    seeds = clean_documents(f"{candidate.name}-seeds", documents, origin, config)
    return decontaminate.labelled(candidate.name)(
        rewrite.labelled(candidate.name)(seeds, rewriting), config.decontaminate
    )
