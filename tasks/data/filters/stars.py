"""The popularity rule for code: files of repositories with too few stars (RECIPE C.3; paper section 2.4.1)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from model.config import Config
from tasks.data.filters.attributes import Limit, Scores
from tasks.data.filters.fields import field_of


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


def score_stars(documents: Sequence[Mapping[str, Any]], scorer: StarsScorer) -> Scores:
    """`count`: stars of each document's repository. Raises ValueError for a count that is not a number."""
    counts = []
    for document in documents:
        count = field_of(document, scorer.field)
        try:
            counts.append(float(count.replace(",", "") or 0) if isinstance(count, str) else float(count or 0))
        except (TypeError, ValueError):
            raise ValueError(f"document {document['id']!r}: {scorer.field}={count!r} is not a number") from None
    return Scores({"count": counts})
