"""What a verifier says about one answer."""

from dataclasses import dataclass
from typing import Literal

Rules = Literal["correct", "published"]
"""How answers are read. `correct`: numbers as numbers, one answer counts, an empty answer is never right. `published`: as
open-instruct of December 2024 did, with its gaps: signs lost, any of several answers accepted, empty ones accepted."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is accepted, what was read out of it, and why."""

    correct: bool
    extracted: str
    """The part of the answer that was judged."""
    detail: str
    """The rule that decided, in a few words."""


def is_blank(text: str) -> bool:
    """Whether nothing can be seen of a text: it is empty, white space, or characters without a shape."""
    return not any(letter.isprintable() and not letter.isspace() for letter in text)
