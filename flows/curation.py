"""Curation: raw sources to documents, documents to tokens (paper section 2.4; RECIPE C)."""

from typing import NamedTuple

from flows.config import RecipeConfig
from infra.phase import Phase
from tasks.artifacts import Documents, Tokens
from tasks.data.classifier import classifier
from tasks.data.collect import collect
from tasks.data.decontaminate import decontaminate
from tasks.data.dedup import dedup
from tasks.data.encode import encode
from tasks.data.filter import filter
from tasks.data.synthesize import synthesize


class Corpus(NamedTuple):
    """What curation makes."""

    funnel: dict[str, Documents]
    """Documents after each step, by the step's label."""
    tokens: dict[str, Tokens]
    """Token files by source."""


@Phase
def curation(config: RecipeConfig) -> Corpus:
    """Collect, filter, deduplicate, decontaminate and encode every source; synthetic ones are clean by construction."""
    raw = {name: collect.labelled(name)(source) for name, source in config.collect.items()}
    judge = classifier(list(raw.values()), config.classifier) if config.classifier else None
    kept = {
        name: filter.labelled(name)(raw[name], rules, judge if config.judged(name) else None)
        for name, rules in config.filter.items()
    }
    unique = dedup(list(kept.values()), config.dedup)
    clean = decontaminate(unique, config.decontaminate)
    tokens = {name: encode.labelled(name)(clean, config.encode_source(name)) for name in config.collect}
    made = {name: synthesize.labelled(name)(source) for name, source in config.synthesize.items()}
    tokens |= {name: encode.labelled(name)(documents, config.encode_source(name)) for name, documents in made.items()}
    funnel = {f"collect {name}": documents for name, documents in raw.items()}
    funnel |= {f"filter {name}": documents for name, documents in kept.items()}
    return Corpus(funnel | {"dedup": unique, "decontaminate": clean}, tokens)
