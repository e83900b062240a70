"""Made and rewritten sources in a recipe. Oracles: the plan that a run walks, and the rows that the stages leave."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.config.errors import RecipeError
from flows.config.files import load
from flows.config.parts import CandidateConfig
from flows.config.pinning import pin_recipe
from flows.config.recipe_config import RecipeConfig
from flows.phases.microanneal import candidate_documents
from flows.running.readiness import asked_models
from flows.running.run import plan, run
from infra.execution.attempt import run_stage
from infra.execution.plan import Plan, above
from infra.records.reader import Reader
from infra.session import Session, current_session, open_session
from infra.settings import EndpointSettings, Execution
from infra.storage.store import Store
from tasks.data.classifying.label import LabelConfig
from tests.openai_server import OpenAIServer

PROGRAM = {"question": "How many legs have 6 cows?", "code": "def f():\n    result = 6 * 4\n    return result"}
WORKED = {"question": "Ann has 8 pens and buys 35.", "answer": "She has 8+35=<<8+35=43>>43.\n#### 43"}


def planned(config: RecipeConfig, root: Path) -> dict[str, Any]:
    execution = config.execution.model_copy(update={"store": str(root)})
    return {row.label: row for row in plan(config.model_copy(update={"execution": execution}))}


def test_the_synthesis_recipe_makes_every_part_that_can_be_made(tmp_path):
    config = load("olmo2-7b-synthesis")
    rows = planned(config, tmp_path)
    assert rows["rewrite:tinygsm_students"].inputs == ("decontaminate:tinygsm_students-seeds",)
    assert rows["decontaminate:tinygsm_students-seeds"].inputs == ("programs:tinygsm_students",)
    assert rows["programs:tinygsm_students"].id == rows["programs:tinygsm_solving"].id, "made once, rewritten twice"
    assert "rewrite:gsm8k_students" in above(list(rows.values()), {"encode:gsm8k_students"})
    made = {row.stage for row in rows.values()} & {"synthesize", "worked", "programs", "personas", "rewrite"}
    assert made == {"synthesize", "worked", "programs", "personas", "rewrite"}
    known = {*config.collect, *(candidate.name for candidate in config.candidates)}
    assert {source.source for source in config.anneal_mix.sources} <= known
    assert sum(source.source not in config.collect for source in config.anneal_mix.sources) == len(config.candidates)


def test_labels_lead_to_the_classifier_and_need_one(tmp_path):
    config = load("smoke")
    assert planned(config, tmp_path)["classifier:quality"].inputs == ("collect:web", "collect:code")
    labelled = config.model_copy(update={"label": {"quality": LabelConfig()}})
    rows = planned(labelled, tmp_path)
    assert rows["classifier:quality"].inputs == ("label:quality",)
    assert rows["label:quality"].inputs == ("collect:web", "collect:code")
    with pytest.raises(RecipeError, match="label makes examples for classifiers, and maths is none"):
        load("smoke", ["label.maths={}"])


def test_a_source_of_no_kind_is_made_from_a_seed():
    candidate = CandidateConfig.model_validate({"name": "sums", "synthesize": {"count": 5}})
    assert candidate.synthesize and candidate.synthesize.kind == "problems"
    assert CandidateConfig.model_validate(candidate.model_dump()) == candidate
    with pytest.raises(ValidationError, match="does not match any of the expected tags: 'problems', 'worked'"):
        CandidateConfig.model_validate({"name": "sums", "synthesize": {"kind": "poems"}})


def test_a_missing_endpoint_is_found_before_the_run_begins(tmp_path, monkeypatch):
    rows = {"paths": write(tmp_path / "p.jsonl", PROGRAM)}
    candidate = {"name": "students", "synthesize": {"kind": "programs", "rows": rows}, "rewrite": {}}
    config = load("smoke", [f"candidates={json.dumps([candidate])}", "preferences.judge={kind: language_model}"])
    assert asked_models(config) == {
        "rewrite:students": ("Qwen/Qwen2.5-7B-Instruct",),
        "preferences": ("gpt-4o-2024-08-06",),
    }
    monkeypatch.setattr("flows.running.run.recipe", refuse_to_begin)
    endpoints: dict[str, Any] = {}
    for message in ("'Qwen/Qwen2.5-7B-Instruct'", "'gpt-4o-2024-08-06'", r"\$JUDGE_KEY, which is not set"):
        execution = Execution(store=str(tmp_path / "store"), endpoints=endpoints)
        with pytest.raises(ValueError, match=message):
            run(pin_recipe(config).model_copy(update={"execution": execution}))
        named = {"url": "http://nowhere/v1"} | ({"key_env": "JUDGE_KEY"} if endpoints else {})
        endpoints["gpt-4o-2024-08-06" if endpoints else "Qwen/Qwen2.5-7B-Instruct"] = EndpointSettings(**named)
    assert not list((tmp_path / "store").glob("[a-z]*"))


def refuse_to_begin(config: RecipeConfig) -> None:
    assert isinstance(current_session().engine, Plan), "a stage was called in earnest"
    from flows.recipe import recipe

    recipe(config)


class AtOnce(Plan):
    """An engine that runs each stage as it is called."""

    def stage(self, stage, session, arguments):
        return run_stage(stage, session, arguments, lambda event: None).artifact


@pytest.fixture
def run_at_once(tmp_path):
    """Stages run as they are called, in a session of their own."""

    def run(candidate: dict[str, Any], server: OpenAIServer | None = None) -> list[dict[str, Any]]:
        endpoints = {"default": EndpointSettings(url=server.url)} if server else {}
        store = Store(str(tmp_path / "store"))
        session = Session(store, Execution(store=store.url, ray="off", endpoints=endpoints), engine=AtOnce())
        recipe = load("smoke", [f"candidates={json.dumps([candidate])}"])
        with open_session(session):
            pinned = pin_recipe(recipe)
            made = candidate_documents(pinned.candidates[0], pinned)
        return list(Reader(store).read_jsonl(made, "documents/00000-000.jsonl.zst"))

    return run


def write(path: Path, row: dict[str, Any]) -> list[str]:
    path.write_text(json.dumps(row))
    return [str(path)]


def test_programs_are_run_and_then_rewritten_under_the_candidates_name(run_at_once, tmp_path):
    rows = {"paths": write(tmp_path / "p.jsonl", PROGRAM)}
    candidate = {
        "name": "students",
        "synthesize": {"kind": "programs", "name": "tiny", "rows": rows},
        "rewrite": {"style": "problem_solving", "min_words": 3},
    }
    with OpenAIServer(lambda body: "Ann: six times four is 24.") as server:
        (made,) = run_at_once(candidate, server)
        assert "result = 6 * 4  # = 24" in server.bodies[0]["messages"][0]["content"]
    assert (made["source"], made["text"]) == ("students", "Ann: six times four is 24.")
    assert made["metadata"]["rewritten_from"].startswith("tiny/")


def test_worked_problems_get_other_numbers(run_at_once, tmp_path):
    rows = {"paths": write(tmp_path / "w.jsonl", WORKED)}
    made = run_at_once({"name": "numbers", "synthesize": {"kind": "worked", "rows": rows}})
    assert 1 < len(made) <= 6 and {row["source"] for row in made} == {"numbers"}
    for row in made:
        first, second = [int(word) for word in row["text"].split("\n")[0].rstrip(".").split() if word.isdigit()]
        assert row["text"].endswith(f"{first}+{second}={first + second}. So the answer is {first + second}.")
    (plain,) = run_at_once({"name": "plain", "synthesize": {"kind": "worked", "numbers": "original", "rows": rows}})
    assert plain["text"] == ("Question: Ann has 8 pens and buys 35.\nAnswer: She has 8+35=43. So the answer is 43.")
