"""What a recipe that cannot be used tells the person who wrote it: field, value, rule, and the nearest name that exists.

Example: `dpo.bta: there is no such field; did you mean 'beta'?`
"""

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from flows.config.renamed import new_name
from infra.json_values import JsonObject


class RecipeError(ValueError):
    """A recipe or an override that cannot be used; the text is meant for the person who wrote it."""


PASSWORD_OF_URL = re.compile(r"://[^/\s'\"]*@")
"""What stands before a URL's host: a name and a password, which no message repeats."""


def explain_error(error: ValidationError, model: type[BaseModel], recipe: str) -> str:
    """Every problem on a line of its own: the field's path, its value, the rule, the nearest valid name."""
    lines = [f"recipe {recipe} cannot be used:"]
    schema = model.model_json_schema()
    for problem in error.errors(include_url=False):
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = fields_at(schema, list(problem["loc"][:-1]))
            section, field = [str(part) for part in ("", *problem["loc"])][-2:]
            hint = new_name(section, field, known) or nearest(field, known)
            lines.append(f"  {path}: there is no such field{hint}")
            continue
        # Of a whole mapping, the message names what is wrong.
        shown = problem["type"] != "missing" and not isinstance(problem["input"], dict)
        given = PASSWORD_OF_URL.sub("://***@", repr(problem["input"]))
        value = f" (given: {given:.200})" if shown else ""
        lines.append(f"  {path or 'recipe'}: {problem['msg'].removeprefix('Value error, ')}{value}")
    return "\n".join(lines)


def fields_at(schema: JsonObject, location: list[Any]) -> list[str]:
    """Field names that the schema knows at a location of a validation error."""
    node = schema
    for part in location:
        node = _step(schema, node, part)
    return sorted(_resolved(schema, node).get("properties", {}))


def _resolved(schema: JsonObject, node: JsonObject) -> JsonObject:
    # A reference may lead to another one.
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    # An optional field is `anyOf` of its kind and null; the null has no fields.
    options = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    return _resolved(schema, options[0]) if options else node


def _step(schema: JsonObject, node: JsonObject, part: Any) -> JsonObject:
    node = _resolved(schema, node)
    # A member of a tagged union is named by its tag in pydantic's locations.
    tags = node.get("discriminator", {}).get("mapping", {})
    if part in tags:
        return {"$ref": tags[part]}
    if part in node.get("properties", {}):
        return node["properties"][part]
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            return node[key]
    return {}


def nearest(name: str, known: list[str]) -> str:
    """What the person may have meant, as the end of a sentence."""
    # Half of the letters alike is the least at which a guess helps more than it misleads.
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
