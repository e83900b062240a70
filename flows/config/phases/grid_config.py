"""A grid over the settings of one training stage: which values are tried, by what they are judged, and which is taken.

Studies of the paper are such grids: peak learning rates of pre-training (Table 8), learning rates and losses of finetuning
(Table 17), coefficients of reinforcement. Mix shares and token budgets of mid-training are the sweep's (`microanneal`).
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from model.config import Config

How = TypeVar("How", bound=Config)
Gridded = Literal["pretrain", "sft", "dpo", "rlvr"]
"""Training stages that take a grid, by the names of their sections; `rlvr` is the first stage of reinforcement."""
SEED_FIELDS = ("seed", "data_seed", "init_seed")


class GridConfig(Config):
    """What is tried of one stage."""

    values: dict[str, tuple[Any, ...]] = Field(min_length=1)
    """Values by field of the stage, such as learning_rate or schedule.learning_rate; every combination is tried."""
    seeds: tuple[int, ...] = ()
    """Seeds with which every combination is trained: the spread between them is the noise floor. None is the stage's own."""
    by: str
    """Benchmark or suite that judges, by its name under `evaluation`; a held-out one is refused."""
    rule: Literal["best", "first_tied"] = "first_tied"
    """What goes on: the best score, or the first combination in the grid's order that is not worse than the best beyond
    chance. Then what is listed first is kept unless another is shown to be better."""

    @model_validator(mode="after")
    def _several(self) -> Self:
        empty = [field for field, values in self.values.items() if not values]
        if empty or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"grid: {empty or self.seeds} are no values to try; give each field at least one, each seed once"
            )
        if len(self.names) < 2:
            raise ValueError(f"grid: values={self.values} is a single combination, so there is nothing to choose from")
        return self

    @property
    def names(self) -> list[str]:
        """The combinations in the grid's order, as labels name them."""
        return [name for name, _ in self._combinations()]

    def _combinations(self) -> Iterator[tuple[str, Mapping[str, object]]]:
        for chosen in product(*self.values.values()):
            changes = dict(zip(self.values, chosen, strict=True))
            # The last part of a field names it: `schedule.learning_rate` is `learning_rate` in labels.
            yield "-".join(f"{field.rpartition('.')[2]}={value}" for field, value in changes.items()), changes

    def points(self, how: How) -> dict[str, How]:
        """The stage's config of every combination. Raises ValidationError for a field or a value that the stage does not take."""
        return {name: changed(how, changes) for name, changes in self._combinations()}

    def seeded(self, how: How) -> list[How]:
        """A combination's config with every seed."""
        fields = [field for field in SEED_FIELDS if field in type(how).model_fields]
        # A training has up to three seeds: its own, of the data order, of the initialisation.
        return [changed(how, dict.fromkeys(fields, seed)) for seed in self.seeds] or [how]

    def labels(self, name: str) -> list[str]:
        """What follows the stage's name in the labels of a combination's trainings: seeds are named where there are several."""
        return [f"{name}-seed={seed}" for seed in self.seeds] if len(self.seeds) > 1 else [name]

    def choice(self, order: list[str], hopeless: list[str]) -> str:
        """The combination that goes on, given a ranking."""
        if self.rule == "best":
            return order[0]
        # The grid's own order decides among equals, so what is listed first is kept.
        return next(name for name in self.names if name in order and name not in hopeless)


def changed(how: How, changes: Mapping[str, object]) -> How:
    """A config with fields, dotted ones within its parts, set to other values and validated again."""
    # Through plain values and back, so that every validator sees the changed config.
    data = how.model_dump()
    for field, value in changes.items():
        *above, last = field.split(".")
        place = data
        for name in above:
            if not isinstance(place.get(name), dict):
                raise ValueError(f"grid: there is no field {field!r} in {type(how).__name__}")
            place = place[name]
        place[last] = value
    return type(how).model_validate(data)
