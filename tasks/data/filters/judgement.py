"""What a rule says of a document: Dolma attributes (RECIPE C.1), and why it must go, if it must."""

from typing import NamedTuple

Span = tuple[int, int, float]
"""(first character, end character, score); a score of the whole document spans all of it."""


class Judgement(NamedTuple):
    """One rule's word on one document."""

    attributes: dict[str, list[Span]]
    """Spans by label."""
    detail: str = ""
    """Why the document is dropped, with the value and the limit; empty to keep it."""
    text: str | None = None
    """The text to go on with, where the rule changes it."""


def document_score(text: str, score: float) -> list[Span]:
    """The attribute of a score that belongs to the whole document."""
    return [(0, len(text), score)]
