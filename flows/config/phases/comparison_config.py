"""Pre-trainings that differ in one thing, in the place of the rest of a recipe: the comparisons of paper section 3.

`comparison` names variants of `pretrain`. All read the same mix; each says only what differs, and the report draws them next to
each other, with their spike scores. A variant under `encode` reads the same text in a vocabulary of its own (paper Table 2).
Losses per token cannot be compared then, so the report draws bits per byte.
"""

from typing import Any, Self

from pydantic import Field, model_validator

from model.config import Config
from model.training.measuring.diagnostics import PAPER_WINDOW
from tasks.data.encode import EncodeConfig
from tasks.training.pretrain import PretrainConfig


class ComparisonConfig(Config):
    """What is compared."""

    title: str
    """What the comparison is of, as the figure says it."""
    paper: str = ""
    """What the paper found, for the report."""
    window: int = Field(default=PAPER_WINDOW, ge=2)
    """Steps before a value that it is judged against in the spike score (RECIPE D); a short run needs a shorter one."""
    variants: dict[str, PretrainConfig] = Field(min_length=2)
    """Trainings by name; in a recipe file, what differs from `pretrain`."""
    encode: dict[str, EncodeConfig] = Field(default_factory=dict)
    """Vocabularies of variants that have their own, by the variant's name; the recipe's `encode` is that of the others."""

    @model_validator(mode="after")
    def _encodes_variants(self) -> Self:
        if unknown := sorted(self.encode.keys() - self.variants.keys()):
            raise ValueError(f"encode names {', '.join(unknown)}; the variants are {', '.join(self.variants)}")
        return self

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len(self.trainings) < len(self.variants):
            raise ValueError(
                f"variants have the same label: {', '.join(self.variants)}; spaces count as hyphens in labels"
            )
        return self

    @property
    def trainings(self) -> dict[str, PretrainConfig]:
        """The variants by the labels of their stages."""
        return {f"pretrain:{label_of(name)}": how for name, how in self.variants.items()}


def label_of(name: str) -> str:
    """What follows `pretrain:` in the label of a variant."""
    return name.replace(" ", "-")


def with_variants(data: Any) -> Any:
    """Raw fields of a recipe with each variant written out over `pretrain`; what is no mapping is left to its field."""
    if not isinstance(data, dict):
        return data
    comparison = data.get("comparison")
    variants = comparison.get("variants") if isinstance(comparison, dict) else None
    if not isinstance(comparison, dict) or not isinstance(variants, dict):
        return data
    shared = data.get("pretrain") or {}
    # Written out in full, so that each variant is validated as a training of its own.
    written = {name: _over(shared, changes) for name, changes in variants.items()}
    return data | {"comparison": comparison | {"variants": written}}


def _over(shared: Any, changes: Any) -> Any:
    """The mapping `changes` over `shared`, key by key; a model that is a name alone is a mapping of its size."""
    if changes is None:
        return shared
    if not isinstance(changes, dict):
        return changes
    if isinstance(shared, str):
        shared = {"size": shared}
    if not isinstance(shared, dict):
        return changes
    return shared | {
        key: _over(shared.get(key), value) if isinstance(value, dict) else value for key, value in changes.items()
    }
