"""Conversations of training data: which messages are usable, and why others are not (RECIPE F, G)."""

from typing import Any

from tasks.data.filters.chats.chat_filters import Messages

_ROLES = ("system", "user", "assistant")


CALLS = ("tool_calls", "function_call", "function_calls")
"""Fields of a message that hold calls of tools."""


def clean_messages(messages: Any) -> tuple[Messages, str]:
    """Role and content of every message, without empty system turns, or the reason why this is not a list of messages."""
    if not isinstance(messages, list) or not messages:
        return [], "no messages"
    cleaned = []
    for message in messages:
        if not isinstance(message, dict):
            return [], "a message without text"
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            return [], f"role {str(role)[:20]!r}"
        # Calls of tools have no form in the chat template, so the whole chat is unusable.
        if called := next((name for name in CALLS if message.get(name)), ""):
            return [], f"a message with {called}"
        if not isinstance(content, str):
            return [], "a message without text"
        # An empty system turn says nothing, and the template would still print its header.
        if role != "system" or content.strip():
            cleaned.append({"role": role, "content": content})
    return cleaned, "" if cleaned else "no messages"


def unanswered(messages: Messages) -> str:
    """Why there is nothing good to train on, or "". An answer without text would teach to say nothing."""
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not answers:
        return "no assistant message"
    # One empty answer spoils the chat, even where others are good.
    return "" if all(answer.strip() for answer in answers) else "an empty answer"
