"""A trial of curation: does a small model learn more from filtered text than from as much unfiltered text? (RECIPE C)

Both read as many tokens, in random order over all of their text. Both are judged on curated documents that neither has read.
"""

from flows.config.recipe_config import RecipeConfig
from flows.phases.curation import Corpus
from tasks.artifacts import Scores
from tasks.data.encode import encode
from tasks.data.mix import MixConfig, MixSource, mix
from tasks.data.set_aside import SetAsideConfig, set_aside
from tasks.evaluation.perplexity import PerplexityConfig, perplexity
from tasks.training.pretrain import pretrain


def curation_trial(corpus: Corpus, config: RecipeConfig) -> list[Scores]:
    """Scores of the model on unfiltered and of the one on filtered text, in this order; none without a trial in the recipe."""
    trial = config.curation_trial
    if trial is None:
        return []
    source, share = trial.source, trial.held_out
    texts = {"unfiltered": corpus.funnel[f"collect {source}"], "filtered": corpus.funnel["decontaminate"]}
    # Held out of the filtered text, for both models: on unfiltered text both would be judged by noise.
    judged = set_aside.labelled("trial")(texts["filtered"], SetAsideConfig(source=source, part="held_out", share=share))
    # Without a number of tokens the whole text is read, so its windows come from everywhere in it.
    read = MixConfig(sources=(MixSource(source=source),))
    scores = []
    for name, documents in texts.items():
        kept = set_aside.labelled(name)(documents, SetAsideConfig(source=source, part="rest", share=share))
        tokens = encode.labelled(f"trial-{name}")(kept, config.encode_source(source))
        model = pretrain.labelled(f"trial-{name}")(mix.labelled(f"trial-{name}")([tokens], read), trial.pretrain)
        asked = PerplexityConfig(label=name, passages=trial.passages, passage_tokens=trial.passage_tokens)
        scores.append(perplexity.labelled(name)(model, judged, asked))
    return scores
