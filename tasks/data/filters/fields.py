"""Where a document's own fields are found: next to its text, in its metadata, or in JSON text there.

Published sets differ: DCLM has `url` at the top level, Dolma in `metadata`, FineMath in a JSON string that is its `metadata`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

OWN = frozenset({"id", "text", "source", "added", "created", "metadata"})
"""Fields of every document, which a rule does not look for."""


def document_field(document: Mapping[str, Any], name: str) -> Any:
    """The first value under a name that is not None: in the metadata, then at the top level, then one level deeper.

    None where there is none.
    """
    metadata = document.get("metadata")
    top = {key: value for key, value in document.items() if key not in OWN}
    # Metadata goes before the top level, since sources keep their own words there.
    places = [*_mappings(metadata), top]
    for place in places:
        if place.get(name) is not None:
            return place[name]
    for place in places:
        for inner in place.values():
            for found in _mappings(inner):
                if found.get(name) is not None:
                    return found[name]
    return None


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """The value itself if it is a mapping, or the one that its JSON text holds."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        # A text that only looks like JSON is a text.
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return
    if isinstance(value, Mapping):
        yield value
