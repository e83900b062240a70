"""No value of a recipe is a URL with a password: a recipe's values stand in records, in plans and on the dashboard's pages."""

from collections.abc import Iterator
from typing import Any

from flows.config.recipe_config import RecipeConfig
from infra.secrets import LOGIN_OF_URL, refuse_password

WAY_OUT = "keep it in the environment: key_env for an endpoint, FSSPEC_FTP_PASSWORD and the like for files"


def check_passwords(config: RecipeConfig) -> None:
    """Raise ValueError, which names the field and does not repeat the password."""
    for path, text in _texts(config.model_dump(), ""):
        # A prompt or a word list may speak of such a URL; a value that is one has no spaces.
        if LOGIN_OF_URL.search(text) and len(text.split()) == 1:
            refuse_password(text, f"{path}:", WAY_OUT)


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string in a value, also a mapping's keys, with its dotted path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, member in value.items():
            # Keys too: a mapping's key may be a URL, such as a source's file.
            yield from _texts(str(key), path or "a name in the recipe")
            yield from _texts(member, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple | set | frozenset):
        for place, member in enumerate(value):
            yield from _texts(member, f"{path}.{place}")
