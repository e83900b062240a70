"""A comparison: pre-trainings that differ in one thing, side by side on one mix (paper section 3; RECIPE D)."""

from flows.config.phases.comparison_config import label_of
from flows.config.recipe_config import RecipeConfig
from flows.phases.curation import Corpus
from infra.phase import Phase
from tasks.artifacts import Mix, Report, Tokens
from tasks.data.encode import encode
from tasks.data.mix import mix
from tasks.evaluation.report import ComparedConfig, ReportConfig, report
from tasks.training.pretrain import pretrain


@Phase
def comparison(corpus: Corpus, config: RecipeConfig) -> Report:
    """Every variant trained from its initialisation, and the report that draws them side by side."""
    what = config.comparison
    assert what is not None, config.name
    # Where every variant has its own vocabulary, no shared mix is made.
    shared = {} if not corpus.tokens else {"pretrain": mixed("pretrain", list(corpus.tokens.values()), config)}
    own = {name: mixed(f"pretrain-{label_of(name)}", encoded(name, corpus, config), config) for name in what.encode}
    read = {name: own[name] if name in own else shared["pretrain"] for name in what.variants}
    trained = {name: pretrain.labelled(label_of(name))(read[name], how) for name, how in what.variants.items()}
    mixes = shared | own
    labels = ReportConfig(
        recipe=config.name,
        checkpoint_labels=list(trained),
        funnel_labels=list(corpus.funnel),
        mix_labels=list(mixes),
        compared=ComparedConfig(
            title=what.title,
            paper=what.paper,
            window=what.window,
            mixes={name: name if name in own else "pretrain" for name in what.variants} if own else {},
        ),
    )
    return report(list(corpus.funnel.values()), list(mixes.values()), list(trained.values()), [], [], [], labels)


def mixed(label: str, tokens: list[Tokens], config: RecipeConfig) -> Mix:
    """The recipe's mix of these token files."""
    return mix.labelled(label)(tokens, config.pretraining_mix)


def encoded(name: str, corpus: Corpus, config: RecipeConfig) -> list[Tokens]:
    """The recipe's text in a variant's own vocabulary."""
    assert config.comparison is not None, config.name
    how = config.comparison.encode[name]
    return [
        encode.labelled(f"{source}-{label_of(name)}")(documents, how.model_copy(update={"source": source}))
        for source, documents in corpus.documents.items()
    ]
