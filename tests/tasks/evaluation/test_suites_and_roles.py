"""Hand-computed averages; Table 20's wall; the published tables; a planted gain found by the paired test."""

import gzip
import json
import random
from math import sqrt

import pytest

from flows.config.files import load
from tasks.evaluation.benchmarks.gsm8k import GSM8KBenchmark
from tasks.evaluation.benchmarks.ifeval import IFEvalBenchmark
from tasks.evaluation.benchmarks.items import Item, ItemScore
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark
from tasks.evaluation.benchmarks.olmes.requests import OlmesRequestsBenchmark, load_items
from tasks.evaluation.benchmarks.olmes.tasks import all_tasks
from tasks.evaluation.benchmarks.roles import role_of
from tasks.evaluation.comparing.differences import paired, with_holm
from tasks.evaluation.scoring.best_format import choice_excess
from tasks.evaluation.scoring.questions import EvaluateConfig
from tasks.evaluation.scoring.room import context_of
from tasks.evaluation.scoring.selection import TABLES, select
from tasks.evaluation.scoring.suites import SuiteConfig, check_suites, over_groups, score_suites
from tasks.training.fitting.in_loop_evaluation import InLoopConfig


def row(name: str, score: float, n: int = 100, stderr: float = 0.03, role: str = "dev") -> dict:
    facts = {"lower_is_better": False, "truncated_prompts": 0, "primary": "acc_raw", "role": role}
    return {"name": name, "score": score, "stderr": stderr, "n": n} | facts


def test_suites_hold_suites_in_any_order():
    rows = [row("a_mc", 0.4), row("a_rc", 0.6), row("b", 0.2)]
    outer = SuiteConfig(name="outer", tasks=(("inner",), ("b",)))
    inner = SuiteConfig(name="inner", tasks=(("a_mc", "a_rc"),))
    found = score_suites([outer, inner], rows)
    assert [one["name"] for one in found] == ["outer", "inner"]
    assert found[1]["score"] == 0.6
    assert found[0]["score"] == pytest.approx(0.4)
    assert found[0]["formats"] == ["inner", "b"]


def test_the_best_of_two_formats_is_corrected_for_the_choice():
    """Oracle: simulation. Two equally good formats of 0.5 on 200 items: the better one is 0.5 and about 0.028 on average."""
    found, measured = [], []
    for seed in range(60):
        draw = random.Random(seed)
        formats = {name: {str(n): (float(draw.random() < 0.5), "") for n in range(200)} for name in ("mc", "rc")}
        rows = [row(name, sum(value for value, _ in items.values()) / 200, n=200) for name, items in formats.items()]
        (suite,) = score_suites([SuiteConfig(name="task", tasks=(("mc", "rc"),))], rows, formats)
        measured.append(suite["score"])
        found.append(suite["corrected"])
    assert sum(measured) / 60 == pytest.approx(0.528, abs=0.01)
    assert sum(found) / 60 == pytest.approx(0.51, abs=0.012), "the bootstrap sees most of it"
    assert all(one <= other for one, other in zip(found, measured, strict=True))


def test_a_clear_choice_is_corrected_by_nothing_and_groups_are_averaged():
    better = {str(n): (float(n % 10 > 0), "a" if n < 90 else "b") for n in range(100)}
    worse = {id: (0.0, group) for id, (_, group) in better.items()}
    assert choice_excess([better, worse], lower_is_better=False) == pytest.approx(0, abs=0.003)
    assert choice_excess([better, worse], lower_is_better=True) == pytest.approx(0, abs=0.003)
    apart = {f"other {id}": value for id, value in better.items()}
    assert choice_excess([better, better], lower_is_better=False) == pytest.approx(0, abs=0.003), "the same items"
    assert choice_excess([better, apart], lower_is_better=False) > 0.01, "items of their own"


def test_micro_weighs_by_items_and_macro_does_not():
    rows = [row("a", 1.0, n=300), row("b", 0.0, n=100)]
    tasks = (("a",), ("b",))
    micro, macro = score_suites(
        [SuiteConfig(name="micro", tasks=tasks, average="micro"), SuiteConfig(name="macro", tasks=tasks)], rows
    )
    assert (micro["score"], macro["score"]) == (0.75, 0.5)
    assert micro["stderr"] == pytest.approx(sqrt((0.03 * 300) ** 2 + (0.03 * 100) ** 2) / 400)


def test_suites_in_a_circle_and_unknown_names_are_refused():
    circle = [SuiteConfig(name="x", tasks=(("y",),)), SuiteConfig(name="y", tasks=(("x",),))]
    with pytest.raises(ValueError, match="suites x, y hold each other"):
        check_suites(["a"], circle)
    with pytest.raises(ValueError, match=r"suite 'x' names \['poetry'\]"):
        check_suites(["a"], [SuiteConfig(name="x", tasks=(("poetry",),))])
    with pytest.raises(ValueError, match="used twice"):
        check_suites(["a"], [SuiteConfig(name="a", tasks=(("a",),))])


def test_a_suite_with_a_held_out_member_is_held_out():
    suite = SuiteConfig(name="s", tasks=(("a",), ("b",)))
    (found,) = score_suites([suite], [row("a", 0.1), row("b", 0.2, role="held_out")])
    assert found["role"] == "held_out"


def test_means_over_groups():
    items = [Item(str(n), "", "", {"group": group}) for n, group in enumerate("aaab")]
    scored = [ItemScore({"acc_raw": value}, "", "") for value in (1.0, 1.0, 1.0, 0.0)]
    found = over_groups(row("mmlu", 0.75, n=4) | {"metrics": {"acc_raw": {}}}, items, scored)
    assert found["score"] == 0.5
    assert found["groups"] == {"a": {"score": 1.0, "n": 3}, "b": {"score": 0.0, "n": 1}}


def of(task: str, **fields) -> OlmesBenchmark:
    return OlmesBenchmark.model_validate({"task": task, **fields})


def test_roles_are_those_of_table_20():
    held_out = {name for name, task in all_tasks().items() if task.role == "held_out"}
    assert {"agi_eval", "gsm8k", "gsm8k_held_out", "mmlu_pro", "triviaqa", "bbh", "minerva_math"} <= held_out
    assert not held_out & {"gsm_star", "arc_challenge", "mmlu", "drop", "squad", "coqa", "jeopardy", "naturalqs"}
    assert role_of(GSM8KBenchmark()) == "held_out"
    for rows, role in (({"paths": ["/d/gsm8k/test.jsonl"]}, "held_out"), ({"paths": ["quiz.jsonl"]}, "dev"),
                       ({"paths": ["/d/gsm8k/train.jsonl"]}, "dev")):  # fmt: skip
        assert role_of(GSM8KBenchmark.model_validate({"rows": rows})) == role
    assert role_of(GSM8KBenchmark(role="dev")) == "dev"
    for path, role in (
        ("/x/gsm8k__gold_bpb_5shot", "held_out"),
        ("/x/gsm8k/gold", "held_out"),
        ("/x/piqa__val", "dev"),
    ):
        assert role_of(OlmesRequestsBenchmark(name="n", path=path)) == role
    assert role_of(OlmesRequestsBenchmark(name="n", path="/x/gsm8k", role="dev")) == "dev"


@pytest.mark.parametrize(
    "benchmark", [of("gsm8k"), of("triviaqa"), GSM8KBenchmark(), OlmesRequestsBenchmark(name="mmlu_pro", path="/x")]
)
def test_a_training_that_asks_a_held_out_benchmark_is_refused(benchmark):
    with pytest.raises(ValueError, match=r"in_loop.tasks names .* held out"):
        InLoopConfig(tasks=(benchmark.name,)).filled((benchmark,))
    star = of("gsm_star")
    assert InLoopConfig(tasks=("gsm_star",)).filled((star,)).benchmarks == (star,)


def test_a_sweep_that_ranks_by_a_held_out_benchmark_is_refused():
    held_out = [
        "evaluation.benchmarks=[{kind: olmes, task: gsm8k}]",
        "microanneal.rank_by=gsm8k",
    ]
    with pytest.raises(ValueError, match=r"microanneal.rank_by names gsm8k, which is held out"):
        load("olmo2-7b", held_out)


def test_ifeval_has_room_for_its_answers():
    config = EvaluateConfig(label="x", benchmarks=(IFEvalBenchmark(), of("mmlu_cot"), of("piqa")), max_context=512)
    assert [context_of(one, config.max_context, 4096) for one in config.benchmarks] == [4096, 4096, 2048]
    assert context_of(of("piqa", context=100), config.max_context, 4096) == 100


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_table_selects_tasks_that_exist(table):
    chosen = select([table])
    names = [benchmark.name for benchmark in chosen.benchmarks]
    assert len(names) == len(set(names)) >= 3
    check_suites(names, chosen.suites)


def test_a_task_is_the_best_of_its_formats_unless_one_is_named():
    chosen = select(["piqa", "arc_easy:rc", "gsm_star"], limit=7)
    assert [benchmark.name for benchmark in chosen.benchmarks] == ["piqa_mc", "piqa_rc", "arc_easy_rc", "gsm_star"]
    assert [suite.name for suite in chosen.suites] == ["piqa"]
    assert all(benchmark.limit == 7 for benchmark in chosen.benchmarks)
    with pytest.raises(ValueError, match=r"'poetry' is no task and no table; there are .*arc_easy"):
        select(["poetry"])
    with pytest.raises(ValueError, match="no copy of ybisk/piqa in"):
        select(["piqa"], copies="/nowhere")


def test_what_needs_a_judge_is_said_and_not_scored():
    chosen = select(["instruct"])
    assert "judge" in chosen.not_computed["alpaca_eval_2"]
    assert "table safety" in chosen.not_computed["safety"]


def rendered(tmp_path, core: str, count: int, **settings) -> OlmesRequestsBenchmark:
    folder = tmp_path / core
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"task_config": {"task_core": core, **settings}}))
    rows = [
        {
            "request_type": "generate_until_and_loglikelihood",
            "doc": {},
            "request": {"context": f"q{n}", "continuation": " a", "stop_sequences": ["\n\n"]},
            "idx": 0,
            "task_name": core,
            "doc_id": n,
            "native_id": None,
            "label": "a",
        }
        for n in range(count)
    ]
    (folder / "requests.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    config = OlmesRequestsBenchmark(name=core, path=str(folder)).pinned()
    assert isinstance(config, OlmesRequestsBenchmark)
    return config


@pytest.mark.parametrize(
    ("core", "count", "kept"),
    [
        ("coqa", 7983, 7983),
        ("jeopardy", 2116, 2116),
        ("lambada", 5153, 5153),
        ("sciq", 1600, 1600),
        ("piqa", 1838, 1000),
    ],
)
def test_rendered_sets_are_whole_unless_olmes_draws(tmp_path, core, count, kept):
    assert len(load_items(rendered(tmp_path, core, count))) == kept


@pytest.mark.parametrize(
    "settings", [{"primary_metric": "bits_per_byte"}, {"compute_gold_bpb": True}, {"metadata": {"alias": "gsm8k:bpb"}}]
)
def test_rendered_generation_is_scored_in_bits_where_asked(tmp_path, settings):
    (item,) = load_items(rendered(tmp_path, "gsm8k", 1, **settings))
    assert item.data["scoring"] == "bits_per_byte"


def test_rendered_generation_is_generated_otherwise(tmp_path):
    (item,) = load_items(rendered(tmp_path, "gsm8k", 1, primary_metric="exact_match"))
    assert item.data["scoring"] == "generate"


def test_a_planted_gain_is_found_by_the_paired_test_and_missed_by_independent_errors():
    draw = random.Random(1)
    first = {str(n): (float(draw.random() < 0.5), "") for n in range(1000)}
    wrong = [id for id, (value, _) in first.items() if value == 0.0]
    second = first | dict.fromkeys(wrong[:20], (1.0, ""))
    found = paired("b", "acc_raw", first, second)
    assert found.difference == pytest.approx(0.02)
    assert found.discordant == 20
    assert found.low > 0
    assert found.p < 0.001
    independent = sqrt(2 * 0.25 / 1000)
    assert abs(found.difference) < 1.96 * independent


def test_items_of_one_passage_count_as_one_when_they_move_together():
    first = {str(n): (0.0, f"passage{n // 10}") for n in range(100)}
    second = {str(n): (float(n // 10 % 2), f"passage{n // 10}") for n in range(100)}
    alone = {id: (value, "") for id, (value, _) in first.items()}
    assert paired("b", "f1", first, second).stderr == pytest.approx(
        sqrt(10) * paired("b", "f1", alone, second).stderr, rel=0.06
    )


def test_equal_models_have_no_difference():
    values = {str(n): (float(n % 2), "") for n in range(10)}
    found = paired("b", "m", values, values)
    assert (found.difference, found.discordant, found.p) == (0.0, 0, 1.0)
    # One item either way is added: equal answers on few items prove little.
    assert found.stderr > 0


def test_many_benchmarks_are_corrected():
    one = paired("b", "m", {str(n): (0.0, "") for n in range(50)}, {str(n): (float(n < 5), "") for n in range(50)})
    found = with_holm([one, one, one])
    assert [row.p_holm for row in found] == pytest.approx([3 * one.p] * 3)
