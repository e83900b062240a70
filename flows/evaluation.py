"""Evaluation: every checkpoint on every benchmark, and the report (RECIPE I)."""

from flows.config.recipe_config import RecipeConfig
from flows.curation import Corpus
from flows.inspection.conformance import reported
from flows.microanneal import Sweep
from flows.midtraining import Soup
from flows.posttraining import Tuned
from flows.pretraining import Base
from infra.phase import Phase
from tasks.artifacts import Checkpoint, Report, Scores
from tasks.evaluation.evaluate import evaluate
from tasks.evaluation.report import ReportConfig, report


@Phase
def evaluation(
    corpus: Corpus | None, base: Base | None, sweep: Sweep | None, soup: Soup | None, tuned: Tuned, config: RecipeConfig
) -> Report:
    """Base, ingredients and soup as texts to continue, the tuned models as chats; then the report over everything.

    None is what lies before the checkpoint that a recipe starts at.
    """
    funnel = corpus.funnel if corpus else {}
    texts = {"base": base.checkpoint} if base else {}
    texts |= soup.models if soup else {}
    chats = {"sft": tuned.sft} if tuned.sft else {}
    # The last stage of reinforcement makes the instruct model.
    chats |= {"dpo": tuned.dpo} if tuned.dpo else {}
    chats |= {**dict(list(tuned.reinforced.items())[:-1]), "instruct": tuned.instruct}
    scores = {name: evaluate.labelled(slug(name))(model, config.evaluation.of(name)) for name, model in texts.items()}
    scores |= {
        name: evaluate.labelled(slug(name))(model, config.evaluation.of(name, chat=True))
        for name, model in chats.items()
    }
    mixes = {"pretrain": base.mix} if base and base.mix else {}
    mixes |= {f"try {name}": item for name, item in sweep.mixes.items()} if sweep else {}
    mixes |= soup.mixes if soup else {}
    labels = ReportConfig(
        recipe=config.name,
        checkpoint_labels=[*texts, *chats],
        funnel_labels=list(funnel),
        mix_labels=list(mixes),
        conformance=reported(config),
    )
    return report(
        list(funnel.values()),
        list(mixes.values()),
        [*texts.values(), *chats.values()],
        tuned.reward,
        tuned.preferences,
        sweep.ranking if sweep else None,
        list(scores.values()),
        labels,
    )


@Phase
def evaluate_some(checkpoints: list[Checkpoint], config: RecipeConfig, *, chat: bool) -> list[Scores]:
    """Any checkpoints, named by their stage and id."""
    return [
        evaluate.labelled(f"{item.stage}-{item.id}")(item, config.evaluation.of(f"{item.stage} {item.id}", chat=chat))
        for item in checkpoints
    ]


def slug(name: str) -> str:
    """A label's name of a checkpoint."""
    return name.replace(" ", "-")
