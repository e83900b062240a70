"""Stage: the uniform average of several anneals (RECIPE E; paper section 4.5).

Weights are averaged in fp32; moments are dropped. Ingredients of different shape, vocabulary or parent are
refused: an average is only meaningful between models that left the same point.
"""

from collections.abc import Iterator

from torch import Tensor

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from model.files.soup import average_weights
from model.network.transformer import Transformer
from tasks.artifacts import Checkpoint
from tasks.training.fitting.fit import export, load_checkpoint


class SoupConfig(Config):
    """A soup has no choice but its ingredients: the published average is uniform."""


def make_soup(ws: Workspace, ingredients: list[Checkpoint], config: SoupConfig) -> Checkpoint:
    """Average checkpoints. Raises ValueError when they do not share parent, shape and vocabulary."""
    # Their facts say enough to refuse them before gigabytes are fetched.
    check_ingredients(ingredients)
    first = ingredients[0]
    model, tokenizer = load_checkpoint(ws, first)
    weights = average_weights(_states(ws, ingredients, model))
    model.load_state_dict(weights)
    export(ws, model, tokenizer, "none")
    return ws.artifact(
        Checkpoint,
        steps=0,
        tokens=0,
        parameters=first.parameters,
        loss=sum(item.loss for item in ingredients) / len(ingredients),
        ranks=first.ranks,
        tokenizer=first.tokenizer,
        parent=first.parent,
    )


def _states(ws: Workspace, ingredients: list[Checkpoint], first: Transformer) -> Iterator[dict[str, Tensor]]:
    """The ingredients' weights, one after the other, since each may fill a good part of the memory."""
    yield first.state_dict()
    for ingredient in ingredients[1:]:
        other, _ = load_checkpoint(ws, ingredient)
        if other.config != first.config:
            raise ValueError(
                f"soup: {ingredient.address} has shape {other.config}, {ingredients[0].address} has {first.config}"
            )
        yield other.state_dict()


def check_ingredients(ingredients: list[Checkpoint]) -> None:
    """Raise ValueError unless there are at least two ingredients of one parent, size and vocabulary."""
    if len(ingredients) < 2:
        raise ValueError(f"a soup needs at least two ingredients, got {len(ingredients)}; give more anneal seeds")
    first = ingredients[0]
    for other in ingredients[1:]:
        for name in ("parent", "parameters", "ranks"):
            if getattr(other, name) != getattr(first, name):
                raise ValueError(
                    f"soup: {other.address} has {name} {getattr(other, name)!r}, {first.address} has "
                    f"{getattr(first, name)!r}; average only anneals of one parent"
                )


soup = stage(make_soup, name="soup", version=2)
