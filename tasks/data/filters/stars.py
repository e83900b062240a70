"""The popularity rule for code: files of repositories with too few stars (RECIPE C.3; paper section 2.4.1)."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Literal

from pydantic import Field

from model.config import Config
from tasks.data.filters.attributes import DocumentScores, Limit
from tasks.data.filters.fields import document_field

_NO_COUNT = ("", "nan", "none", "null")
"""How tables that went through text write that there is no count."""


class StarsScorer(Config):
    """Reads the number of stars from the metadata."""

    kind: Literal["stars"] = "stars"
    field: str = "max_stars_count"
    """Metadata field with the count; a document without it has none (StarCoder's name for it)."""


class StarsRule(Config):
    """Drops code of repositories with few stars."""

    kind: Literal["stars"] = "stars"
    scorer: StarsScorer = StarsScorer()
    """Where the count is."""
    min_stars: int = Field(default=2, ge=0)
    """Fewest stars kept (paper section 2.4.1)."""

    def limits(self) -> tuple[Limit, ...]:
        """The fewest stars."""
        return (Limit("count", self.min_stars, float("inf"), "count"),)


def score_stars(documents: Sequence[Mapping[str, Any]], scorer: StarsScorer) -> DocumentScores:
    """`count`: stars of each document's repository; a count may be written as text. ValueError for one that is no number."""
    return DocumentScores({"count": [_count(document, scorer.field) for document in documents]})


def _count(document: Mapping[str, Any], field: str) -> float:
    count = document_field(document, field)
    try:
        # A missing value counts as no stars.
        number = float(count.replace(",", "") if isinstance(count, str) else count or 0)
    except (ValueError, TypeError):
        # Text that is no number is judged below, with NaN as any other non-number.
        number = float("nan")
    if not isfinite(number):
        if isinstance(count, str) and count.strip().lower() in _NO_COUNT:
            return 0.0
        raise ValueError(f"document {document['id']!r}: metadata {field}={count!r} is not a number")
    return number
