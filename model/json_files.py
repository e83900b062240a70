"""Reads JSON files as pydantic models, with messages that name the file and the field."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)

JsonObject = dict[str, Any]
"""A JSON object whose keys another format fixes: the content of a `config.json` or a `tokenizer.json`."""


def read_json(path: Path, kind: type[M]) -> M:
    """A JSON file as a pydantic model. Raises ValueError naming the file, its fields that do not fit, and why."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise not_the_format(path, error) from error


def not_the_format(path: Path, error: ValidationError) -> ValueError:
    """The error for a file whose content does not fit: each field, what is wrong with it and what was given."""
    said = []
    for problem in error.errors(include_url=False):
        place = ".".join(map(str, problem["loc"]))
        shown = problem["type"] not in ("missing", "json_invalid") and not isinstance(problem["input"], dict)
        given = f" (given: {problem['input']!r:.100})" if shown else ""
        said.append(f"{place}: {problem['msg']}{given}".removeprefix(": "))
    return ValueError(f"{path} cannot be used: {'; '.join(said)}")
