"""Chats, prompts and preference pairs that say what an earlier one says.

Two conversations are the same where their roles and words are, capitals and white space aside. Released sets overlap: one set's
prompts are often another's. Deviation: the paper tells of no such step for chats and pairs, so nothing is left out by default.
"""

from hashlib import blake2b
from typing import Literal

from tasks.data.filters.chats.answer_vote import Messages

Duplicates = Literal["keep", "drop"]
"""What happens to rows that repeat an earlier one of the stage, of whichever source."""


class RepeatedRows:
    """Remembers what has come, 16 bytes for each."""

    def __init__(self, duplicates: Duplicates):
        self._seen: set[bytes] | None = set() if duplicates == "drop" else None

    def again(self, *conversations: Messages) -> bool:
        """Whether these came before; they have come now. Always False where duplicates are kept."""
        if self._seen is None:
            return False
        key = conversation_key(*conversations)
        found = key in self._seen
        self._seen.add(key)
        return found


def conversation_key(*conversations: Messages) -> bytes:
    """Hash of roles and words, in their order."""
    hasher = blake2b(digest_size=16)
    for messages in conversations:
        for message in messages:
            words = " ".join(message["content"].casefold().split())
            # Lengths keep the parts apart, so that no text can look like two messages.
            for part in (message["role"], words):
                data = part.encode("utf-8", "surrogatepass")
                hasher.update(len(data).to_bytes(8, "little") + data)
        hasher.update(b"\xff" * 8)
    return hasher.digest()
