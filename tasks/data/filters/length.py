"""The length window: documents that are too short or too long (RECIPE C.3, folder name "100_to_20k" of the
code source).

The published name gives no unit; here it is characters of the stripped text, both ends included.
"""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from model.config import Config
from tasks.data.filters.judgement import Judgement, document_score


class LengthRule(Config):
    """Keeps documents whose length lies in a window."""

    kind: Literal["length"] = "length"
    min_chars: int = Field(default=100, ge=0)
    """Shortest text kept, characters."""
    max_chars: int | None = Field(default=20_000, ge=1)
    """Longest text kept, characters; None for no limit."""

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars={self.max_chars} is below min_chars={self.min_chars}; swap them")
        return self


def judge_length(texts: Sequence[str], rule: LengthRule) -> list[Judgement]:
    """A judgement of each text."""
    judgements = []
    for text in texts:
        chars = len(text.strip())
        detail = ""
        if chars < rule.min_chars:
            detail = f"{chars} characters, at least {rule.min_chars} wanted"
        elif rule.max_chars is not None and chars > rule.max_chars:
            detail = f"{chars} characters, at most {rule.max_chars} wanted"
        judgements.append(Judgement({"chars": document_score(text, float(chars))}, detail))
    return judgements
