"""Schemas of the dashboard's forms. Oracle: what Prefect's page can draw, seen in its source and in the browser."""

from collections.abc import Iterator
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from flows.config import CandidateConfig
from flows.deployments import sweep
from flows.forms import CandidateForm

SCHEMA = parameter_schema(sweep.fn).model_dump_for_openapi()


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for member in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(member)


def test_unions_are_drawn_as_buttons_with_labels():
    candidate = SCHEMA["definitions"]["CandidateForm"]
    assert not any("oneOf" in node or "$ref" in node for node in nodes(candidate))
    for node in nodes(candidate):
        assert all(choice.get("title") or choice.get("type") for choice in node.get("anyOf", ()))
    titles = [choice.get("title") for choice in candidate["properties"]["collect"]["anyOf"]]
    assert titles == ["LocalSource", "HubSource", "StackExchangeSource", "PythonSource", None]


def test_an_origin_is_not_asked_for_what_the_candidate_has():
    shown = CandidateForm.model_json_schema()["properties"]
    for choice in shown["collect"]["anyOf"][:-1] + shown["synthesize"]["anyOf"][:-1]:
        assert not {"name", "files", "versions"} & choice["properties"].keys()
        assert "name" not in choice["required"]


def test_what_a_form_sends_is_a_candidate():
    sent = {"name": "notes", "collect": {"kind": "local", "paths": ["a.jsonl"]}}
    named = {"name": "notes", "collect": {"kind": "local", "name": "notes", "paths": ["a.jsonl"]}}
    assert CandidateForm.model_validate(sent).model_dump() == CandidateConfig.model_validate(named).model_dump()


def test_a_list_of_several_kinds_says_which():
    problems = CandidateForm.model_json_schema()["properties"]["synthesize"]["anyOf"][0]["properties"]["problems"]
    assert "`arithmetic` `multi_addition` `word_problems`" in problems["description"]


def test_a_candidate_needs_one_origin():
    with pytest.raises(ValidationError, match="exactly one of synthesize and collect"):
        CandidateForm.model_validate({"name": "nothing"})
