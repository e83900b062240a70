"""Evaluations of models by name, submitted in the phase that makes them: what waits for a long training has cores to spare."""

from flows.config.recipe_config import RecipeConfig
from tasks.artifacts import Checkpoint, Scores
from tasks.evaluation.evaluate import evaluate


def score_models(models: dict[str, Checkpoint], config: RecipeConfig, *, chat: bool, last: str) -> dict[str, Scores]:
    """The benchmarks of their kind for each of them: base models get texts to continue, tuned ones are asked as chats.

    `last` names the last model of the kind, which is asked what is held out too.
    """
    return {
        name: evaluate.labelled(_slug(name))(model, config.evaluation.of(name, chat=chat, last=name == last))
        for name, model in models.items()
    }


def _slug(name: str) -> str:
    """A label's name of a checkpoint."""
    return name.replace(" ", "-")
