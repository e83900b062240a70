"""A comparison: pre-trainings that differ in one thing, side by side on one mix (paper section 3; RECIPE D)."""

from flows.config.phases.comparison_config import label_of
from flows.config.recipe_config import RecipeConfig
from flows.phases.curation import Corpus
from infra.phase import Phase
from tasks.artifacts import Report
from tasks.data.mix import mix
from tasks.evaluation.report import ComparedConfig, ReportConfig, report
from tasks.training.pretrain import pretrain


@Phase
def comparison(corpus: Corpus, config: RecipeConfig) -> Report:
    """Every variant trained from its initialisation, and the report that draws them side by side."""
    what = config.comparison
    assert what is not None, config.name
    tokens = mix.labelled("pretrain")(list(corpus.tokens.values()), config.pretraining_mix)
    trained = {name: pretrain.labelled(label_of(name))(tokens, how) for name, how in what.variants.items()}
    labels = ReportConfig(
        recipe=config.name,
        checkpoint_labels=list(trained),
        funnel_labels=list(corpus.funnel),
        mix_labels=["pretrain"],
        compared=ComparedConfig(title=what.title, paper=what.paper, window=what.window),
    )
    return report(list(corpus.funnel.values()), [tokens], list(trained.values()), [], [], [], labels)
