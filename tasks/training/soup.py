"""Stage: the average of several anneals (RECIPE E; paper section 4.5), uniform as published or greedy.

Weights are averaged in fp32; moments are dropped. Ingredients of different shape, vocabulary or parent are refused: an average is
only meaningful between models that left the same point. `soup.json` says who is in it, and how far each lies from the average,
tensor by tensor. Ours is the greedy soup (Wortsman et al. 2022): ingredients are taken in the order of their scores on a
development benchmark, each if the average with it scores no worse.
"""

from collections.abc import Iterator, Sequence
from typing import Self, TypedDict

from torch import Tensor

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from model.files.soup import average_weights, distances
from model.network.transformer import Transformer
from model.parallel.group import Group
from tasks.artifacts import Checkpoint
from tasks.evaluation.benchmarks import BenchmarkConfig
from tasks.evaluation.scoring.suites import SuiteConfig
from tasks.training.fitting.dev_scores import DevConfig, DevScorer, dev_scorer
from tasks.training.fitting.fit import export, load_checkpoint

SOUP_FILE = "soup.json"
"""The payload's file with the soup's members and their distances from it."""


class SoupConfig(Config):
    """How ingredients become one; the published average is uniform."""

    greedy: DevConfig | None = None
    """Take only ingredients that do not lower the soup's score on this; none takes all."""

    def filled(self, benchmarks: tuple[BenchmarkConfig, ...], suites: tuple[SuiteConfig, ...]) -> Self:
        """The same with the benchmarks that decide."""
        return self.model_copy(update={"greedy": self.greedy and self.greedy.filled(benchmarks, suites)})


def make_soup(ws: Workspace, ingredients: list[Checkpoint], config: SoupConfig) -> Checkpoint:
    """Average checkpoints. Raises ValueError when they do not share parent, shape and vocabulary."""
    # Their facts say enough to refuse them before gigabytes are fetched.
    check_ingredients(ingredients)
    model, tokenizer = load_checkpoint(ws, ingredients[0])
    members, tried = ingredients, []
    if config.greedy:
        scorer = dev_scorer("soup.greedy", config.greedy, tokenizer, "fp32", chat=False)
        members, tried = greedy_members(ws, ingredients, model, scorer)
    # Read one after the other, so that memory holds the sum and one ingredient at a time.
    weights = average_weights(_states(ws, members, model))
    model.load_state_dict(weights)
    apart = {
        item.address: distances(state, weights)
        for item, state in zip(ingredients, _states(ws, ingredients, model), strict=True)
    }
    # The distances are of all ingredients, taken or not: they say how far the anneals went apart.
    facts = {"members": [item.address for item in members], "greedy": tried, "distances": apart}
    ws.write_json(SOUP_FILE, facts)
    export(ws, model, tokenizer, "none")
    first = members[0]
    return ws.artifact(
        Checkpoint,
        steps=0,
        tokens=0,
        parameters=first.parameters,
        # A soup was not trained; the mean of its members' losses stands in for one.
        loss=sum(item.loss for item in members) / len(members),
        ranks=first.ranks,
        tokenizer=first.tokenizer,
        parent=first.parent,
    )


class TriedMember(TypedDict):
    """An ingredient of the greedy soup, with what its addition scored."""

    ingredient: str
    alone: float
    together: float
    taken: bool


def greedy_members(
    ws: Workspace, ingredients: Sequence[Checkpoint], model: Transformer, scorer: DevScorer
) -> tuple[list[Checkpoint], list[TriedMember]]:
    """The ingredients of the greedy soup, best first, and what was tried: whose addition gave which score. `model` is used up."""
    sign = -1 if scorer.lower_is_better else 1
    alone = []
    for item, state in zip(ingredients, _states(ws, ingredients, model), strict=True):
        model.load_state_dict(state)
        alone.append((item, scorer(model.eval(), Group())["score"]))
    # Sorted by score and stable, so equals keep the order in which they were given.
    (first, best), *others = sorted(alone, key=lambda one: -sign * one[1])
    members = [first]
    tried: list[TriedMember] = [{"ingredient": first.address, "alone": best, "together": best, "taken": True}]
    for item, score in others:
        model.load_state_dict(average_weights(_states(ws, [*members, item], model)))
        together = scorer(model.eval(), Group())["score"]
        # Not worse is enough: a member that changes nothing still averages out noise.
        taken = sign * together >= sign * best
        tried.append({"ingredient": item.address, "alone": score, "together": together, "taken": taken})
        if taken:
            members, best = [*members, item], together
    return members, tried


def _states(ws: Workspace, ingredients: Sequence[Checkpoint], like: Transformer) -> Iterator[dict[str, Tensor]]:
    """The ingredients' weights, one after the other, since each may fill a good part of the memory."""
    for ingredient in ingredients:
        other, _ = load_checkpoint(ws, ingredient)
        # Parent and size agree in the record; only the files say whether the shape does.
        if other.config != like.config:
            raise ValueError(f"soup: {ingredient.address} has shape {other.config}, the first has {like.config}")
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


soup = stage(make_soup, name="soup", version=3, process=True)
