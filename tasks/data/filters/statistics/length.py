"""The length window: documents that are too short or too long (RECIPE C.3, folder name "100_to_20k" of the
code source).

The published name gives no unit; here it is characters of the stripped text, both ends included.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from model.config import Config
from tasks.data.filters.attributes import DocumentScores, Limit
from tasks.data.filters.batch import TextBatch


class LengthScorer(Config):
    """Counts characters."""

    kind: Literal["length"] = "length"


class LengthRule(Config):
    """Keeps documents whose length lies in a window."""

    kind: Literal["length"] = "length"
    scorer: LengthScorer = LengthScorer()
    """What is measured."""
    min_chars: int = Field(default=100, ge=0)
    """Shortest text kept, characters."""
    max_chars: int | None = Field(default=20_000, ge=1)
    """Longest text kept, characters; None for no limit."""

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars={self.max_chars} is below min_chars={self.min_chars}; swap them")
        return self

    def limits(self) -> tuple[Limit, ...]:
        """The window."""
        most = float("inf") if self.max_chars is None else self.max_chars
        return (Limit("chars", self.min_chars, most, "count"),)


def score_length(batch: TextBatch) -> DocumentScores:
    """`chars`: characters of each stripped text."""
    return DocumentScores({"chars": [len(text.strip()) for text in batch.texts]})
