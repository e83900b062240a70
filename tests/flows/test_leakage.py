"""What trains is behind decontamination, in the graph of a recipe. Oracle: the graph that a plan has."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from flows.config.files import checked_recipe, load
from flows.config.pinning import pin_recipe
from flows.config.recipe_config import RecipeConfig
from flows.rehearsing.uncleaned import uncleaned
from flows.running.run import plan
from infra.execution.plan import above


def rows_file(folder: Path, name: str, row: dict) -> list[str]:
    path = folder / f"{name}.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return [str(path)]


@pytest.fixture
def recipe(tmp_path) -> RecipeConfig:
    """The smoke recipe with a source of every kind that is read rather than made."""
    problem = {"question": "What is 1 + 1?", "answer": "<<1+1=2>>2 #### 2", "text": "One and one is two."}
    messages = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]
    paths = rows_file(tmp_path, "problems", problem)
    chats = rows_file(tmp_path, "chats", {"messages": messages})
    asked = rows_file(tmp_path, "prompts", {"messages": messages[:1], "ground_truth": "2", "dataset": "gsm8k"})
    prompts = {"sources": [{"kind": "rows", "name": "given", "rows": {"paths": asked}}]}
    own = {
        "extends": "smoke",
        "execution": {"store": str(tmp_path / "store"), "ray": "off"},
        "candidates": [
            {"name": "read", "collect": {"kind": "local", "paths": paths}},
            {"name": "worked", "synthesize": {"kind": "worked", "numbers": "original", "rows": {"paths": paths}}},
            {
                "name": "told",
                "synthesize": {"kind": "worked", "name": "seeds", "numbers": "original", "rows": {"paths": paths}},
                "rewrite": {"style": "two_students"},
            },
            {"name": "made", "synthesize": {"count": 100}},
        ],
        "synthesize": {"maths": {"count": 400}, "more": {"kind": "worked", "name": "more", "rows": {"paths": paths}}},
        "chats": {"sources": [{"kind": "rows", "name": "given", "rows": {"paths": chats}}]},
        "preference_prompts": prompts,
        "rlvr_prompts": prompts,
        "further_rlvr": [{"name": "more", "prompts": prompts, "rlvr": {"episodes": 768, "max_new_tokens": 8}}],
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(own))
    return load(str(path))


def test_every_kind_of_source_is_decontaminated_before_it_trains(recipe):
    rows = plan(recipe)
    labels = {row.label for row in rows}
    assert labels >= {
        "decontaminate", "decontaminate:read", "decontaminate:worked", "decontaminate:told-seeds", "decontaminate:told",
        "decontaminate:more", "decontaminate_chats", "decontaminate_prompts:preference", "decontaminate_prompts:rlvr",
        "decontaminate_prompts:rlvr-more",
    }  # fmt: skip
    assert "decontaminate:made" not in labels
    reads = {
        "encode:read": "decontaminate:read",
        "encode:worked": "decontaminate:worked",
        "encode:told": "decontaminate:told",
        "rewrite:told": "decontaminate:told-seeds",
        "encode:more": "decontaminate:more",
        "sft": "decontaminate_chats",
        "preferences": "decontaminate_prompts:preference",
        "rlvr": "decontaminate_prompts:rlvr",
        "rlvr:more": "decontaminate_prompts:rlvr-more",
    }
    for label, cleaned in reads.items():
        assert cleaned in above(rows, {label}), label


def test_what_would_train_as_it_came_is_named(recipe):
    rows = plan(recipe)
    assert uncleaned(rows) == {}
    # Without a cleaning stage, what it took stands where it stood.
    inputs = {row.label: row.inputs for row in rows}
    for gone, origin, reader in (
        ("decontaminate:read", "collect:read", "anneal:try-read"),
        ("decontaminate:told-seeds", "worked:told", "rewrite:told"),
        ("decontaminate_chats", "chats", "sft"),
        ("decontaminate_prompts:rlvr", "prompts:rlvr", "rlvr"),
        ("decontaminate", "collect:web", "pretrain"),
    ):
        ways = [
            replace(row, inputs=tuple(t for n in row.inputs for t in (inputs[n] if n == gone else (n,))))
            for row in rows
        ]
        found = uncleaned([row for row in ways if row.label != gone])
        assert reader in found[origin], found


def test_items_are_those_of_all_benchmarks(recipe):
    pinned = pin_recipe(recipe)
    names = {benchmark.name for benchmark in pinned.decontaminate.benchmarks}
    assert names == {"arithmetic", "arithmetic_cloze", "arithmetic_mc", "arithmetic_bits"}, "those of base models too"
    assert pinned.decontaminate_messages.benchmarks == pinned.decontaminate.benchmarks


def test_a_rule_for_an_unknown_source_is_refused(recipe):
    with pytest.raises(ValueError, match=r"decontaminate.sources has a rule for 'flann'"):
        checked_recipe(recipe.model_dump() | {"decontaminate": {"sources": {"flann": {"splits": "all"}}}}, "leaky")


def test_flan_is_cleared_of_training_splits_as_in_the_paper():
    for name in ("olmo2-1b", "olmo2-7b", "olmo2-13b", "olmo2-32b", "olmo2-7b-synthesis"):
        config = load(name).decontaminate
        flan = config.rule_of("flan")
        assert flan is not None and (flan.splits, flan.ngram, flan.direction, flan.max_overlap) == (
            "all",
            8,
            "document",
            0.1,
        )
        assert config.splits == "held_out"
