"""Evaluation: the models that no earlier phase has scored, and the report over everything (RECIPE I)."""

from flows.config.recipe_config import RecipeConfig
from flows.curation import Corpus
from flows.inspection.conformance import reported
from flows.microanneal import Sweep
from flows.midtraining import Soup
from flows.posttraining import Tuned
from flows.pretraining import Base
from flows.scoring import score_models
from infra.phase import Phase
from tasks.artifacts import Checkpoint, Report, Scores
from tasks.evaluation.evaluate import evaluate
from tasks.evaluation.report import ReportConfig, report


@Phase
def evaluation(
    corpus: Corpus | None, base: Base | None, sweep: Sweep | None, soup: Soup | None, tuned: Tuned, config: RecipeConfig
) -> Report:
    """Base, ingredients and soup as texts to continue, where they are not scored yet; then the report over everything.

    None is what lies before the checkpoint that a recipe starts at.
    """
    funnel = corpus.funnel if corpus else {}
    texts = {"base": base.checkpoint} if base else {}
    texts |= soup.models if soup else {}
    scores = tuned.scores | (soup.scores if soup else {})
    # What was given and not made has no scores yet.
    scores |= score_models({name: model for name, model in texts.items() if name not in scores}, config, chat=False)
    models = texts | tuned.models
    mixes = {"pretrain": base.mix} if base and base.mix else {}
    mixes |= {f"try {name}": item for name, item in sweep.mixes.items()} if sweep else {}
    mixes |= soup.mixes if soup else {}
    labels = ReportConfig(
        recipe=config.name,
        checkpoint_labels=list(models),
        funnel_labels=list(funnel),
        mix_labels=list(mixes),
        conformance=reported(config),
    )
    return report(
        list(funnel.values()),
        list(mixes.values()),
        list(models.values()),
        tuned.reward,
        tuned.preferences,
        sweep.ranking if sweep else None,
        list(scores.values()),
        base.trial if base else [],
        labels,
    )


@Phase
def evaluate_some(checkpoints: list[Checkpoint], config: RecipeConfig, *, chat: bool) -> list[Scores]:
    """Any checkpoints, named by their stage and id."""
    return [
        evaluate.labelled(f"{item.stage}-{item.id}")(item, config.evaluation.of(f"{item.stage} {item.id}", chat=chat))
        for item in checkpoints
    ]
