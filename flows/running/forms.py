"""Configs as the dashboard's forms show them: every choice is a row of buttons, and nothing is asked twice.

Prefect's page draws `anyOf` as buttons, but `oneOf`, which pydantic writes for a union told apart by its `kind`, as an
empty JSON editor; so forms get schemas of their own. What a form sends is validated by the same models as a recipe.
"""

from typing import Any

from pydantic import GetJsonSchemaHandler, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from flows.config.parts import CandidateConfig
from infra.json_values import JsonObject

_HIDDEN = frozenset({"name", "files", "versions"})
"""Fields of a candidate's origin that nobody fills in: it has the candidate's name, and the others are pinned later."""


class CandidateForm(CandidateConfig):
    """One source that a micro-anneal tries: either problems made from a seed or documents that are read."""

    @model_validator(mode="before")
    @classmethod
    def _keep_everything(cls, data: Any) -> Any:
        # A list that was left empty may not be sent at all, which must not stand for a filter's own default.
        if isinstance(data, dict) and isinstance(data.get("filter"), dict):
            return data | {"filter": {"rules": []} | data["filter"]}
        return data

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema of a candidate without references, since the form's other definitions are not of its kind."""
        shown = CandidateConfig.model_json_schema(schema_generator=FormSchema)
        definitions = {name: without_hidden(part) for name, part in shown.pop("$defs").items()}
        return inlined(shown | {"title": "Candidate"}, definitions)


class FormSchema(GenerateJsonSchema):
    """JSON schema whose unions are flat and written as `anyOf`."""

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        return {"anyOf": super().tagged_union_schema(schema)["oneOf"]}

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        choices = super().nullable_schema(schema)["anyOf"]
        # A union within an optional field is flattened, or the page draws buttons within buttons.
        return {"anyOf": [member for choice in choices for member in choice.get("anyOf", [choice])]}


def without_hidden(part: JsonObject) -> JsonObject:
    """An object's schema without the fields that a form does not ask."""
    asked = {name: value for name, value in part.get("properties", {}).items() if name not in _HIDDEN}
    required = [name for name in part.get("required", []) if name not in _HIDDEN]
    return part | {"properties": asked, "required": required}


def inlined(node: Any, definitions: JsonObject) -> Any:
    """A schema with every reference replaced by what it stands for (configs do not contain themselves).

    A page fills in the defaults of an object's fields, so those are the ones that the object has where it stands.
    """
    if isinstance(node, list):
        return [inlined(member, definitions) for member in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        # Inlined again, because what a reference stands for may hold references itself.
        return inlined(with_defaults(definitions[node["$ref"].rpartition("/")[2]], node.get("default")), definitions)
    return explained({key: inlined(value, definitions) for key, value in node.items()})


def with_defaults(part: JsonObject, default: JsonObject | None) -> JsonObject:
    """An object's schema whose fields have the values that they have in a default of the whole object."""
    if default is None:
        return part
    fields = {
        name: field | {"default": default[name]} if name in default else field
        for name, field in part["properties"].items()
    }
    return part | {"properties": fields}


def explained(field: JsonObject) -> JsonObject:
    """A schema; if it is of a list of several kinds, whose members the page asks as JSON, its description says which."""
    items = field.get("items")
    if not isinstance(items, dict) or "anyOf" not in items:
        return field
    kinds = " ".join(f"`{choice['properties']['kind']['const']}`" for choice in items["anyOf"])
    return field | {"description": f"{field['description']} Each is JSON with a `kind`, one of {kinds}."}
