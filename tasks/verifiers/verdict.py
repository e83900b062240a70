"""What a verifier says about one answer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is accepted, what was read out of it, and why."""

    correct: bool
    extracted: str
    """The part of the answer that was judged."""
    detail: str
    """The rule that decided, in a few words."""
