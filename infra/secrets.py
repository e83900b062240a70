"""Secrets stay out of what people read: the keys of the environment, and the passwords that a URL carries.

A URL with a password is refused where it would be kept (a store, a recipe). Texts that other programs wrote, such as a server's
refusal that repeats the key it was sent, are cleaned before they reach a message, a log or a record.
"""

import os
import re

SECRET_WORDS = frozenset(
    ("KEY", "KEYS", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASS", "AUTH", "CREDENTIAL", "CREDENTIALS")
)
"""Words of an environment variable's name that say its value is a secret."""
SHORTEST_SECRET = 8
"""Characters; a shorter value is also an everyday word, and taking it out would spoil messages."""
LOGIN_OF_URL = re.compile(r"://[^/\s'\"]*:[^/\s'\"]*@")
"""Name and password before a URL's host; the password may hold an @."""
_HIDDEN = "***"


def without_secrets(text: str) -> str:
    """The text with each secret of the environment and each password in a URL replaced by `***`."""
    for value in _secret_values():
        text = text.replace(value, _HIDDEN)
    return LOGIN_OF_URL.sub(f"://{_HIDDEN}@", text)


def clean_error(error: BaseException) -> None:
    """Take secrets out of an error's texts, and out of those of the errors behind it; it stays the same object."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        item = waiting.pop()
        # Causes and contexts may form a ring.
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, OSError) and item.strerror:
            # Its text is made of this, not of its arguments.
            item.strerror = without_secrets(item.strerror)
        if notes := getattr(item, "__notes__", None):
            item.__notes__ = [without_secrets(note) for note in notes]
        item.args = tuple(without_secrets(part) if isinstance(part, str) else part for part in item.args)
        waiting += [item.__cause__, item.__context__]
        waiting += item.exceptions if isinstance(item, BaseExceptionGroup) else []


def refuse_password(url: str, what: str, way_out: str) -> None:
    """Raise ValueError, which does not repeat it, for a URL that carries a password."""
    if LOGIN_OF_URL.search(url):
        raise ValueError(
            f"{what} {without_secrets(url)[:200]} carries a password, which would stand in records, logs and process "
            f"lists; {way_out}"
        )


def _secret_values() -> list[str]:
    """Values of the environment that are secret by their names, the longest first. A path is where a secret lies, not one."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= SHORTEST_SECRET and SECRET_WORDS.intersection(name.upper().split("_"))
    }
    # user:password: the password alone is as secret.
    found |= {part for value in found if ":" in value and len(part := value.partition(":")[2]) >= SHORTEST_SECRET}
    # The longest first: a secret that contains another is taken out whole.
    return sorted((value for value in found if not os.path.exists(value)), key=len, reverse=True)
