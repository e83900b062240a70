"""Evaluation: the models that no earlier phase has scored, and the report over everything (RECIPE I)."""

from flows.config.recipe_config import RecipeConfig
from flows.inspection.conformance import reported
from flows.phases.curation import Corpus
from flows.phases.microanneal import Sweep
from flows.phases.midtraining import Soup
from flows.phases.posttraining import Tuned
from flows.phases.pretraining import Base
from flows.phases.scoring import score_models
from infra.phase import Phase
from tasks.artifacts import Checkpoint, Report, Scores
from tasks.evaluation.evaluate import evaluate
from tasks.evaluation.report import ReportConfig, report


@Phase
def evaluation(corpus: Corpus, base: Base, sweep: Sweep, soup: Soup, tuned: Tuned, config: RecipeConfig) -> Report:
    """Base, ingredients and soup as texts to continue, where they are not scored yet; then the report over everything.

    What lies before the checkpoint that a recipe starts at is empty.
    """
    texts = {"base": base.checkpoint} if base.checkpoint else {}
    texts |= soup.models
    scores = tuned.scores | soup.scores
    # What was given and not made has no scores yet.
    given = {name: model for name, model in texts.items() if name not in scores}
    scores |= score_models(given, config, chat=False, last=soup.last)
    models = texts | tuned.models
    mixes = {"pretrain": base.mix} if base.mix else {}
    mixes |= {f"try {name}": item for name, item in sweep.mixes.items()} | soup.mixes
    labels = ReportConfig(
        recipe=config.name,
        checkpoint_labels=list(models),
        funnel_labels=list(corpus.funnel),
        mix_labels=list(mixes),
        conformance=reported(config),
    )
    return report(
        list(corpus.funnel.values()),
        list(mixes.values()),
        list(models.values()),
        [item for item in (tuned.reward, tuned.preferences, sweep.ranking) if item is not None],
        list(scores.values()),
        base.trial,
        labels,
    )


@Phase
def evaluate_some(checkpoints: list[Checkpoint], config: RecipeConfig, *, chat: bool) -> list[Scores]:
    """Any checkpoints, named by their stage and id."""
    return [
        evaluate.labelled(f"{item.stage}-{item.id}")(item, config.evaluation.of(f"{item.stage} {item.id}", chat=chat))
        for item in checkpoints
    ]
