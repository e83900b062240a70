"""Schemas of the dashboard's forms. Oracle: what Prefect's page can draw, seen in its source and in the browser."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from flows.config.parts import CandidateConfig
from flows.deployments import sweep
from flows.running.dashboard import prefect_file
from flows.running.forms import CandidateForm
from tasks.data.synthesis.worked import WorkedConfig

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


def untouched(field: dict[str, Any]) -> Any:
    """What a page sends for a field that nobody touched: its default, or those of the fields inside."""
    if "properties" not in field:
        return field.get("default")
    return {name: untouched(part) for name, part in field["properties"].items()}


def test_an_untouched_form_means_what_a_candidate_means_that_says_nothing():
    shown = CandidateForm.model_json_schema()["properties"]
    assert untouched(shown["filter"]) == {"rules": []}
    collect = {"kind": "local", "paths": ["a.jsonl"]}
    said_nothing = CandidateConfig.model_validate({"name": "notes", "collect": collect | {"name": "notes"}})
    for sent in (untouched(shown["filter"]), {}):
        assert CandidateForm.model_validate({"name": "notes", "collect": collect, "filter": sent}).filter.rules == ()
    sent = {name: untouched(part) for name, part in shown.items()} | {"name": "notes", "collect": collect}
    assert CandidateForm.model_validate(sent).model_dump() == said_nothing.model_dump()


def test_an_object_inside_a_choice_has_the_defaults_it_has_there():
    worked = next(
        choice
        for choice in CandidateForm.model_json_schema()["properties"]["synthesize"]["anyOf"]
        if choice.get("title") == "WorkedConfig"
    )
    assert worked["properties"]["rows"]["properties"]["dataset"]["default"] == WorkedConfig().rows.dataset != ""


def test_sweeps_wait_for_each_other_and_none_is_dropped():
    deployments = yaml.safe_load(prefect_file().read_text())["deployments"]
    limits = {item["name"]: item["concurrency_limit"] for item in deployments if "concurrency_limit" in item}
    expected = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    assert {name: ConcurrencyLimitConfig.model_validate(limit) for name, limit in limits.items()} == {"sweep": expected}
