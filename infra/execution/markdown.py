"""Markdown for the dashboard from text that data, models and recipes gave: shown as text, never obeyed as markup."""

import re

SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|~])")
"""What Markdown reads as markup somewhere in a line."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def escaped(text: str) -> str:
    """A text as one line of Markdown that shows exactly it: no tag, link, picture, table cell or emphasis comes of it."""
    # The ampersand first, or it would escape the escapes of the others.
    line = _CONTROL.sub(" ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\1", line)


def code(text: str) -> str:
    """A text as a code span in a line or a table cell. A backtick would end it, and a bar would end the cell."""
    line = _CONTROL.sub(" ", text).replace("`", "'").replace("|", "¦")
    return f"`{line}`" if line.strip() else ""


def slug(text: str) -> str:
    """An artifact key: lower-case ASCII letters, digits and dashes, and nothing else is one."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "artifact"
