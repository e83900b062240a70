"""Which usable chats, preference pairs and prompts a mix leaves out: mentions of a knowledge cut-off, other languages, lengths,
what a majority outvoted, and caps per origin.

Source: RECIPE F (the mixes of 1B and 32B have mentions of date cut-offs removed). The wordings are ours: the published filter is
not released. Chats are chosen for a cap by a hash of their place, so the choice is even over the file and has a seed.
"""

import heapq
import re
from collections import defaultdict
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Literal

from pydantic import Field

from model.config import Config
from tasks.data.filters.chats.answer_vote import AnswerVote, Messages
from tasks.verifiers.text_units import detect_language

DATE_CUTOFF = re.compile(
    r"\b(?:knowledge|training|data|date|information)[ -]cut[ -]?off\b"
    r"|\bcut[ -]?off (?:date|in (?:19|20)\d\d)\b"
    r"|\bmy (?:training|knowledge|training data|data|information)\b[^.\n]{0,60}\b(?:ends?|ended|up to|until|through|as of|only)\b"
    r"|\bas of my (?:last|latest|most recent)? ?(?:knowledge|training|update)\b"
    r"|\b(?:last|most recent|latest) (?:knowledge |training )update\b",
    re.IGNORECASE,
)
"""How an answer says until when its knowledge reaches."""


class Caps(Config):
    """How many rows of each origin stay."""

    caps: dict[str, int] = Field(default_factory=dict)
    """Most rows of an origin, by what the rows' `origin` field says; origins that are not named have no cap."""
    origin: str = "source"
    """Field of a row that says which set it comes from."""
    seed: int = 1
    """Which rows stay below a cap."""


class PromptFilterConfig(Caps):
    """What is left out of one source's usable prompts; nothing by default."""

    languages: tuple[str, ...] = ()
    """Languages (ISO 639-1, as langdetect names them) that the user's messages may have; empty for all."""
    min_chars: int = Field(default=0, ge=0)
    """Characters that the user's messages together have at least."""
    max_chars: int | None = Field(default=None, ge=1)
    """Characters that all messages together have at most."""
    origin: str = "dataset"
    """Field of a row that says which set it comes from."""


class ChatFilterConfig(Caps):
    """What is left out of one source's usable chats or pairs; nothing by default. Of a pair, both conversations must pass."""

    mentions: tuple[Literal["date_cutoff"], ...] = ()
    """Chats with an answer that mentions this: `date_cutoff` is until when the model's knowledge reaches."""
    languages: tuple[str, ...] = ()
    """Languages (ISO 639-1, as langdetect names them) that the answers may have; empty for all."""
    min_chars: int = Field(default=0, ge=0)
    """Characters that all answers together have at least."""
    max_chars: int | None = Field(default=None, ge=1)
    """Characters that a whole chat has at most."""
    majority: AnswerVote | None = None
    """Votes over the completions of a question, before caps; None for none."""


def unwanted(config: ChatFilterConfig, messages: Messages) -> str:
    """Why a chat is left out, whatever else there is, or ""."""
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if "date_cutoff" in config.mentions and any(DATE_CUTOFF.search(answer) for answer in answers):
        return "mentions a date cut-off"
    if sum(map(len, answers)) < config.min_chars:
        return "short answers"
    # The whole chat counts, since training cuts it as a whole.
    if config.max_chars is not None and sum(len(message["content"]) for message in messages) > config.max_chars:
        return "too long"
    if config.languages and detect_language("\n".join(answers)) not in config.languages:
        return "another language"
    return ""


def unwanted_prompt(config: PromptFilterConfig, messages: Messages) -> str:
    """Why a prompt is left out, whatever else there is, or ""."""
    asked = [message["content"] for message in messages if message["role"] == "user"]
    if sum(map(len, asked)) < config.min_chars:
        return "short question"
    if config.max_chars is not None and sum(len(message["content"]) for message in messages) > config.max_chars:
        return "too long"
    if config.languages and detect_language("\n".join(asked)) not in config.languages:
        return "another language"
    return ""


def over_cap(config: Caps, last: dict[str, bytes], place: str, origin: str) -> str:
    """Why a row is over its origin's cap, or ""; `last` is from `last_below_caps`."""
    return f"over the cap of {origin}" if origin in last and order_key(config, place) > last[origin] else ""


def order_key(config: Caps, place: str) -> bytes:
    """A row's place in the seeded order in which caps take rows."""
    # By place and seed, so the choice is even over the file and does not follow its order.
    return blake2b(f"{config.seed}/{place}".encode(), digest_size=12).digest()


def last_below_caps(config: Caps, rows: Iterable[tuple[str, Any]]) -> dict[str, bytes]:
    """The largest key that stays, by origin, of (place, origin) of all usable rows; origins within their cap are not in it."""
    smallest: dict[str, list[int]] = defaultdict(list)
    beyond: set[str] = set()
    for place, origin in rows:
        if origin not in config.caps:
            continue
        kept = smallest[origin]
        # A heap of negated keys: its first entry is the largest key that is kept.
        heapq.heappush(kept, -int.from_bytes(order_key(config, place), "big"))
        if len(kept) > config.caps[origin]:
            heapq.heappop(kept)
            beyond.add(origin)
    return {origin: (-smallest[origin][0]).to_bytes(12, "big") if smallest[origin] else b"" for origin in beyond}
