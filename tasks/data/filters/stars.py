"""The popularity rule for code: files of repositories with too few stars (RECIPE C.3; paper section 2.4.1)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from model.config import Config
from tasks.data.filters.judgement import Judgement, document_score


class StarsRule(Config):
    """Drops code of repositories with few stars."""

    kind: Literal["stars"] = "stars"
    min_stars: int = Field(default=2, ge=0)
    """Fewest stars kept (paper section 2.4.1)."""
    field: str = "max_stars_count"
    """Metadata field with the count; a document without it has none (StarCoder's name for it)."""


def judge_stars(documents: Sequence[Mapping[str, Any]], rule: StarsRule) -> list[Judgement]:
    """A judgement of each document. Raises ValueError for a count that is not a number."""
    judgements = []
    for document in documents:
        count = (document.get("metadata") or {}).get(rule.field)
        if count is not None and not isinstance(count, int | float):
            raise ValueError(f"document {document['id']!r}: metadata {rule.field}={count!r} is not a number")
        stars = float(count or 0)
        detail = f"{stars:g} stars, at least {rule.min_stars} wanted" if stars < rule.min_stars else ""
        judgements.append(Judgement({"count": document_score(document["text"], stars)}, detail))
    return judgements
