"""Majority votes over the completions of a question: which of several chats with one question is kept.

Source: RECIPE F (the 1B's and 32B's mixes keep mathematics whose answer most of 5 completions give). Chats that share all but
their last message are completions of one question, and the first so many of them vote. An answer is read as the MATH verifier
reads it, else as the last number. Kept is the first completion with the answer of more than half of the voters. Deviation: that
majority is ours, since the published rule is not released.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from hashlib import blake2b

from pydantic import Field

from model.config import Config
from tasks.verifiers.competition_math import last_boxed, minerva_answer
from tasks.verifiers.gsm8k import extract_number
from tasks.verifiers.latex_strings import normalise_hendrycks

Messages = list[dict[str, str]]
_FORMULA = re.compile(r"\$([^$]+)\$")
_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d*)?")


class AnswerVote(Config):
    """Which chats vote on their answers."""

    completions: int = Field(default=5, ge=2)
    """Completions of a question that vote: the first so many. More than half of so many must agree."""
    origins: tuple[str, ...] = ()
    """Origins whose chats vote, by what the rows' `origin` field says; empty for all."""

    def votes(self, origin: str) -> bool:
        """Whether chats of an origin vote."""
        return not self.origins or origin in self.origins


def question_key(messages: Messages) -> bytes:
    """What completions of one question share."""
    # The last message is left out: it is the completion, and the rest is the question.
    return blake2b(json.dumps(messages[:-1]).encode("utf-8", "surrogatepass"), digest_size=12).digest()


def answer_of(messages: Messages) -> str:
    """The answer of the last message: what is boxed, marked as final or a formula, else the last number; equal numbers alike."""
    text = messages[-1]["content"].strip()
    read = last_boxed(text) or minerva_answer(text)
    if not read:
        formulas = _FORMULA.findall(text)
        read = formulas[-1] if formulas else extract_number(text)
    # LaTeX writes thousands as 1{,}000, and a sentence's full stop is no part of its answer.
    answer = normalise_hendrycks(read.replace("{,}", ",").strip("$ ").removesuffix("."))
    if _NUMBER.fullmatch(answer):
        # Numbers are compared as numbers: 1,000 and 1000.0 agree.
        return f"{float(answer.replace(',', '')):.12g}"
    return answer


def winners(config: AnswerVote, chats: Iterable[tuple[str, Messages]]) -> dict[bytes, str]:
    """Place of the kept completion by question, of (place, messages) of all chats that vote; a question without a majority has
    none.
    """
    votes: dict[bytes, Counter[str]] = defaultdict(Counter)
    first: dict[bytes, dict[str, str]] = defaultdict(dict)
    for place, messages in chats:
        question = question_key(messages)
        # Only the first completions vote, so a question that was sampled more often has no louder voice.
        if votes[question].total() == config.completions:
            continue
        answer = answer_of(messages)
        votes[question][answer] += 1
        first[question].setdefault(answer, place)
    found = {}
    for question, counted in votes.items():
        ((answer, count),) = counted.most_common(1)
        # More than half of all votes that there could be, not of those that came.
        if 2 * count > config.completions:
            found[question] = first[question][answer]
    return found
