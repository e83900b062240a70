"""Oracles: the released rows' schema (the sample has it), IFEval's scoring rules, verdicts of the constraints' wording."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tasks.evaluation.benchmarks import BenchmarkConfig, load_items, make_requests, primary_metric, score_item
from tasks.evaluation.benchmarks.ifeval_ood import IFEvalOODBenchmark
from tasks.evaluation.benchmarks.roles import refuse_held_out, role_of
from tasks.evaluation.benchmarks.splits import items_of_splits
from tasks.evaluation.scoring.selection import TABLES, select

SAMPLES = Path(__file__).parents[2] / "samples" / "hub"


def benchmark(**fields: object) -> IFEvalOODBenchmark:
    rows = {"paths": [str(SAMPLES / "allenai/IFBench_test/data")]}
    config = TypeAdapter(BenchmarkConfig).validate_python({"kind": "ifeval_ood", "rows": rows, **fields})
    assert isinstance(config, IFEvalOODBenchmark)
    return config.pinned()


def test_rows_in_the_released_schema_are_asked_and_scored():
    config = benchmark()
    items = load_items(config)
    assert [item.id for item in items] == [str(place) for place in range(8)]
    requests = make_requests(config, items, chat=True)
    (request,) = requests[0]
    assert request.prompt.messages[0]["content"] == items[0].question
    assert request.prompt.messages[0]["content"].endswith("Include exactly 3 numbers in the response.")
    assert {asked.max_new_tokens for (asked,) in requests} == {2048}
    assert primary_metric(config, items) == "prompt_loose"
    passed = score_item(config, items[0], ["From 1 to 2.5 or 3,000"], True).metrics
    assert passed == dict.fromkeys(("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose"), 1.0)
    loose = score_item(config, items[0], ["Three numbers, as asked in 2024:\n1, 2, 3"], True).metrics
    assert (loose["prompt_strict"], loose["prompt_loose"]) == (0.0, 1.0)
    both = score_item(config, items[3], ["It is. Is it? Yes!"], True).metrics
    assert (both["prompt_strict"], both["instruction_strict"]) == (0.0, 0.5)


def test_it_is_held_out_and_a_part_of_the_unseen_suite():
    assert role_of(benchmark()) == "held_out"
    with pytest.raises(ValueError, match="sweep names ifeval_ood, which is held out"):
        refuse_held_out("sweep", [benchmark()])
    assert TABLES["unseen"] == ("agi_eval_cot", "deepmind_math", "gpqa", "ifeval_ood", "mmlu_pro_cot")
    chosen = select(["unseen"], copies=str(SAMPLES), limit=2)
    assert not chosen.not_computed
    (suite,) = (suite for suite in chosen.suites if suite.name == "unseen")
    assert ("ifeval_ood",) in suite.tasks
    (config,) = (config for config in chosen.benchmarks if config.name == "ifeval_ood")
    assert len(load_items(config.pinned())) == 2


def test_one_task_reads_the_hub_or_a_copy():
    (config,) = select(["ifeval_ood"], limit=3).benchmarks
    assert isinstance(config, IFEvalOODBenchmark)
    assert (config.rows.dataset, config.rows.split, config.limit) == ("allenai/IFBench_test", "train", 3)
    (copy,) = select(["ifeval_ood"], copies=str(SAMPLES)).benchmarks
    assert isinstance(copy, IFEvalOODBenchmark)
    # The card next to the rows is none of them.
    assert copy.rows.paths == (f"{SAMPLES}/allenai/IFBench_test/data/train-00000-of-00001.parquet",)
    (downloaded,) = select(["ifeval"], copies=str(SAMPLES)).benchmarks
    assert len(load_items(downloaded.pinned())) == 30


def test_all_rows_are_kept_out_of_training():
    assert len(list(items_of_splits(benchmark(limit=1), "held_out"))) == 8
