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
    """Anneal the base on every candidate mixed with web text, evaluate, rank; with several budgets, from the smallest on, and
    without those that a smaller one has shown to be hopeless.
    """
    if config.starts_after_midtraining:
        return Sweep({}, {}, {}, None)
    candidates = {candidate.name: candidate for candidate in config.candidates}
    tokens = candidate_tokens(corpus, config)
    mixes: dict[str, Mix] = {}
    scores: dict[str, Scores] = {}
    ranking: Ranking | None = None
    for budget in config.microanneal.every_budget:
        left = [name for name in candidates if not is_hopeless(name, ranking)]
        # A single candidate that is left has won; a larger budget would rank it against nobody.
        if ranking is not None and len(left) == 1:
            break
        made = trial({name: candidates[name] for name in left}, tokens, corpus, base, budget, ranking, config)
        mixes, scores, ranking = mixes | made.mixes, scores | made.scores, made.ranking
    return Sweep(tokens, mixes, scores, ranking)


def is_hopeless(name: str, ranking: Ranking | None) -> bool:
    """Whether a ranking by a smaller budget, as far as it is known, shows that a larger one would be wasted on a candidate."""
    return isinstance(ranking, Ranking) and name in ranking.hopeless


@Phase
def candidate_tokens(corpus: Corpus, config: RecipeConfig) -> dict[str, Tokens]:
    """The candidates' documents, filtered and encoded."""
    kept = {
        candidate.name: filtered(
            candidate.name, candidate_documents(candidate, config), candidate.filter, corpus.classifiers
        )
        for candidate in config.candidates
    }
    return {name: encode.labelled(name)(documents, config.encode_source(name)) for name, documents in kept.items()}


@Phase
def trial(
    candidates: dict[str, CandidateConfig],
    tokens: dict[str, Tokens],
    corpus: Corpus,
    base: Base,
    budget: int,
    earlier: Ranking | None,
    config: RecipeConfig,
) -> Sweep:
    """Candidates at one token budget: a mix each, an anneal with every seed, and their ranking."""
    sweep = config.microanneal
    evaluation = config.sweep_evaluation
    web = corpus.tokens[sweep.web]
    mixes = {
        name: mix.labelled(sweep.suffix(name, budget))([web, tokens[name]], config.candidate_mix(candidate, budget))
        for name, candidate in candidates.items()
    }
    scores: dict[str, Scores] = {}
    for name in candidates:
        for seed in sweep.every_seed:
            label = sweep.suffix(name, budget, seed)
            tried = anneal.labelled(label)(base.model, mixes[name], sweep.trial(seed))
            scores[label] = evaluate.labelled(label)(tried, evaluation.of(label.replace("-", " ", 1)))
    # The largest budget's ranking is the sweep's own and has no suffix.
    step = rank if budget == sweep.tokens else rank.labelled(budget)
    return Sweep(tokens, mixes, scores, step(list(scores.values()), config.rank(candidates, budget), earlier))


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
