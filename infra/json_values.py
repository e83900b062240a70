"""The name of a JSON object whose keys are not this project's to fix.

Where the keys are known there is a TypedDict, a dataclass or a pydantic model instead.

    >>> config: JsonObject = {"seed": 1, "model": {"n_layers": 2}}
"""

from typing import Any

JsonObject = dict[str, Any]
"""A JSON object read as it is: a stage's config, a row of a data set, a server's answer, an artifact's facts."""
