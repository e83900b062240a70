"""Oracles: golden/eval_sampling.json; OLMES-rendered rows made here in the published shape; hand-computed scores."""

import gzip
import json
import random
from math import log, sqrt
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tasks.evaluation.benchmarks import (
    BenchmarkConfig,
    load_items,
    make_requests,
    primary_metric,
    score_item,
)
from tasks.evaluation.benchmarks import synthetic as synthetic_module
from tasks.evaluation.benchmarks.items import (
    Estimate,
    Generation,
    Likelihood,
    LikelihoodAnswer,
    estimate_mean,
    macro_average,
    subsample,
)
from tasks.evaluation.benchmarks.olmes import answers as answer_rules
from tasks.evaluation.benchmarks.olmes.answers import drop_f1, gsm8k_match, squad_f1, squad_match
from tasks.evaluation.benchmarks.olmes.ranked import score_ranked
from tasks.evaluation.benchmarks.olmes.requests import OlmesRequestsBenchmark
from tasks.evaluation.benchmarks.synthetic import SyntheticBenchmark, near_misses
from tasks.synthetic import ArithmeticConfig, WordProblemsConfig, generate_problems, split_of

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "eval_sampling.json").read_text())
SETS = {name: case for name, case in GOLDEN.items() if isinstance(case, dict) and "seed" not in name}


@pytest.mark.parametrize("name", sorted(SETS))
def test_subsample_equals_golden(name):
    case = SETS[name]
    sampled = subsample(range(case["population"]), None)
    assert len(sampled) == case["limit"]
    assert sampled[:10] == case["first10"]
    assert sampled[-3:] == case["last3"]
    assert sum(sampled) == case["sum_of_indices"]


def test_small_sets_are_taken_whole_and_limits_hold():
    assert subsample(range(1_500), None) == list(range(1_500))
    assert subsample(range(30), 10) == random.Random(1234).sample(range(30), 10)


def test_errors_of_means():
    half = estimate_mean([0.0, 1.0] * 50)
    assert half.value == 0.5
    assert half.stderr == pytest.approx(sqrt(0.25 / 101))
    assert estimate_mean([0.0] * 100).stderr > 0
    assert estimate_mean([0.2, 0.4]).stderr == pytest.approx(0.1)
    combined = macro_average([Estimate(0.2, 0.03, 10), Estimate(0.4, 0.04, 20)])
    assert (combined.value, combined.stderr, combined.n) == (pytest.approx(0.3), pytest.approx(0.025), 30)
    with pytest.raises(ValueError, match="without items"):
        estimate_mean([])


def test_ranked_normalisations_by_hand():
    texts = [" no", " certainly"]
    answers = [LikelihoodAnswer(-2.0, 1), LikelihoodAnswer(-4.0, 3)]
    base = [LikelihoodAnswer(-1.0, 1), LikelihoodAnswer(-6.0, 3)]
    score = score_ranked(texts, 1, answers, base, "pmi")
    assert score.metrics == {
        "acc_raw": 0.0,
        "acc_per_char": 1.0,
        "acc_per_token": 1.0,
        "acc_pmi": 1.0,
        "bits_per_byte": pytest.approx(4.0 / (log(2) * 10)),
    }
    assert score.answer == "certainly"
    tie = score_ranked(["a", "b"], 0, [LikelihoodAnswer(-1.0, 1)] * 2, None, "raw")
    assert tie.metrics["acc_raw"] == 1.0, "ties break to the first"


def test_f1_rules():
    assert squad_f1("The cat, sat", ["a cat"]) == pytest.approx(2 / 3)
    assert squad_f1("", ["x"]) == 0.0
    assert squad_match("The Cat!", ["dog", "cat"]) == 1.0
    assert drop_f1("5 yards", [["5"]]) == 0.67
    assert drop_f1("6 yards", [["5 yards"]]) == 0.0, "a number in the gold must be shared"
    assert drop_f1(["b c", "a"], [["a", "b c"]]) == 1.0
    assert drop_f1("a b", [["a b", "c"]]) == 0.5
    assert drop_f1("five-year", [["five year"]]) == 1.0
    assert gsm8k_match("so $1,234.", "1,234") == (True, "1234")


def synthetic(**fields) -> SyntheticBenchmark:
    return SyntheticBenchmark(
        name="maths",
        problems=(ArithmeticConfig(max_operand=99, max_factor=20), WordProblemsConfig()),
        items=40,
        **fields,
    )


def test_synthetic_items_are_held_out_and_shots_are_not():
    config = synthetic()
    items = load_items(config)
    assert items == load_items(config)
    keys = {p.key for kind in config.problems for p in generate_problems(kind, "train", 3_000, 1)}
    assert len({item.text for item in items}) == 40
    assert all(item.gold in item.text for item in items)
    assert all(split_of(key) == "train" for key in keys)
    request = make_requests(config, items, chat=False)[0][0]
    assert isinstance(request, Generation)
    assert request.prompt.text.count("Question: ") == 4
    assert request.prompt.text.endswith(f"Question: {items[0].data['question']}\nAnswer:")


def test_synthetic_right_and_wrong_answers():
    config = synthetic()
    item = load_items(config)[0]
    assert score_item(config, item, [" " + item.data["response"]], False).metrics == {
        "exact_match": 1.0,
        "exact_response": 1.0,
    }
    assert score_item(config, item, ["The answer is 99999."], False).metrics["exact_match"] == 0.0
    (request,) = make_requests(config, [item], chat=True)[0]
    assert [m["role"] for m in request.prompt.messages] == ["user"]


@pytest.mark.parametrize("format", ["cloze", "multiple_choice"])
def test_synthetic_ranked_formats(format):
    config = synthetic(format=format)
    items = load_items(config)
    for item, wanted in zip(items, make_requests(config, items, chat=False), strict=True):
        assert len(set(item.data["options"])) == 4
        gold = item.data["options"].index(item.gold)
        answers = [LikelihoodAnswer(-1.0 if place == gold else -9.0, 1) for place in range(4)]
        assert all(isinstance(request, Likelihood) and request.continuation[0] == " " for request in wanted)
        assert score_item(config, item, answers, False).metrics[config.primary] == 1.0
    chance = sum(item.data["options"].index(item.gold) == 0 for item in items) / len(items)
    assert 0.05 < chance < 0.5, "the right answer must not have a place of its own"


def test_near_misses_are_distinct_and_not_negative():
    for problem in generate_problems(ArithmeticConfig(max_operand=99), "eval", 300, 1):
        options = near_misses(problem, 5, 1)
        assert problem.answer in options
        assert len(set(options)) == 5
        assert min(map(int, options)) >= 0


def write_task(folder: Path, core: str, rows: list[dict], *, suffix: str = "", **settings) -> OlmesRequestsBenchmark:
    folder.mkdir()
    settings = {"task_config": {"task_core": core, **settings}}
    (folder / "config.json").write_text(json.dumps(settings))
    full = [
        {"request_type": "loglikelihood", "doc": {}, "idx": 0, "task_name": core + suffix, "native_id": None, **row}
        for row in rows
    ]
    data = "\n".join(json.dumps(row) for row in full).encode()
    (folder / "requests.jsonl.gz").write_bytes(gzip.compress(data))
    config = OlmesRequestsBenchmark(name=core, path=str(folder)).pinned()
    assert isinstance(config, OlmesRequestsBenchmark)
    return config


def ranked_rows(documents: int, label: int = 1) -> list[dict]:
    return [
        {
            "doc": {"query": f"Question: q{doc}\nAnswer:", "choices": ["yes", "no"]},
            "request": {"context": f"shots\n\nQuestion: q{doc}\nAnswer:", "continuation": choice},
            "idx": place,
            "doc_id": doc,
            "label": label,
        }
        for doc in range(documents)
        for place, choice in enumerate([" yes", " no"])
    ]


def test_olmes_cloze_uses_published_normalisation_and_makes_pmi_requests(tmp_path):
    config = write_task(
        tmp_path / "arc", "arc_challenge", ranked_rows(3), metric_kwargs={"uncond_docid_offset": 1_000_000}
    )
    items = load_items(config)
    assert [item.text for item in items] == [f"Question: q{n}\nno" for n in range(3)]
    assert primary_metric(config, items) == "acc_pmi"
    wanted = make_requests(config, items, chat=False)[0]
    assert [request.prompt.text for request in wanted[2:]] == ["Answer:", "Answer:"]
    answers = [LikelihoodAnswer(p, 1) for p in (-1.0, -2.0, -1.0, -9.0)]
    metrics = score_item(config, items[0], answers, False).metrics
    assert (metrics["acc_raw"], metrics["acc_pmi"]) == (0.0, 1.0)


def test_olmes_rows_of_the_unconditional_context_are_not_items(tmp_path):
    rows = ranked_rows(2)
    for row in ranked_rows(2):
        rows.append(row | {"doc_id": row["doc_id"] + 1_000_000})
    config = write_task(tmp_path / "csqa", "csqa", rows, metric_kwargs={"uncond_docid_offset": 1_000_000})
    assert len(load_items(config)) == 2


def test_olmes_lettered_choices_are_raw_and_name_the_gold_text(tmp_path):
    rows = [
        {
            "doc": {"query": "Question: q\n A. red\n B. blue\nAnswer:", "choices": ["A", "B"]},
            "request": {"context": "Question: q\n A. red\n B. blue\nAnswer:", "continuation": f" {letter}"},
            "idx": place,
            "doc_id": 0,
            "label": 1,
        }
        for place, letter in enumerate("AB")
    ]
    config = write_task(tmp_path / "mc", "arc_challenge", rows, suffix=":mc")
    items = load_items(config)
    assert items[0].gold == "blue"
    assert primary_metric(config, items) == "acc_raw"


def test_olmes_bits_and_generation(tmp_path):
    row = {
        "doc": {"question": "how many?"},
        "request": {
            "context": "Question: how many?\nAnswer:",
            "continuation": " It is 12. So the answer is 12.",
            "stop_sequences": ["Question:", "\n\n"],
            "generation_kwargs": {"max_gen_toks": 9},
        },
        "doc_id": 0,
        "label": "12",
    }
    config = write_task(tmp_path / "gsm", "gsm8k", [row | {"request_type": "generate_until_and_loglikelihood"}])
    items = load_items(config)
    (request,) = make_requests(config, items, chat=False)[0]
    assert request == Generation(request.prompt, 9, ("Question:", "\n\n"))
    assert score_item(config, items[0], [" 12 eggs"], False).metrics == {"exact_match": 1.0}
    bits = config.model_copy(update={"scoring": "bits_per_byte"})
    items = load_items(bits)
    assert primary_metric(bits, items) == "bits_per_byte"
    metrics = score_item(bits, items[0], [LikelihoodAnswer(-31 * log(2), 9)], False).metrics
    assert metrics == {"bits_per_byte": pytest.approx(1.0)}
    span = row | {"label": [["a b"], ["c"]], "request_type": "generate_until"}
    drop = write_task(tmp_path / "drop", "drop", [span])
    assert score_item(drop, load_items(drop)[0], ["c"], False).metrics == {"f1": 1.0, "exact_match": 1.0}


@pytest.mark.parametrize("wanted_at_hand", [True, False])
def test_a_rendered_answer_ends_at_its_stops(tmp_path, wanted_at_hand):
    request = {"context": "Q", "stop_sequences": ["\n\n"], "generation_kwargs": {"max_gen_toks": 8}}
    row = {"request_type": "generate_until", "doc": {"question": "How many?"}, "request": request, "idx": 0}
    row |= {"task_name": "drop", "doc_id": 0, "native_id": 0, "label": [["10"]]}
    config = write_task(tmp_path / "drop", "drop", [row])
    (item,) = load_items(config)
    (wanted,) = make_requests(config, [item], False)
    found = score_item(config, item, [" 10\n\nPassage: 11"], False, wanted if wanted_at_hand else None)
    assert found.metrics == {"f1": 1.0, "exact_match": 1.0}


def test_worked_examples_are_made_once_and_not_again_to_score(monkeypatch):
    config = synthetic()
    items = load_items(config)
    made = []
    shots = synthetic_module.shots
    monkeypatch.setattr(synthetic_module, "shots", lambda *rest: made.append(rest) or shots(*rest))
    requests = make_requests(config, items, chat=False)
    for item, wanted in zip(items, requests, strict=True):
        score_item(config, item, [" " + item.data["response"]], False, wanted)
    assert len(made) == 1


def test_olmes_folder_errors_are_named(tmp_path):
    with pytest.raises(ValueError, match="is not pinned"):
        load_items(OlmesRequestsBenchmark(name="x", path=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a rendered task"):
        OlmesRequestsBenchmark(name="x", path=str(tmp_path)).pinned()


def test_olmes_prompts_are_completions_for_chat_models_too(tmp_path):
    config = write_task(tmp_path / "arc", "arc_easy", ranked_rows(1))
    items = load_items(config)
    assert make_requests(config, items, chat=True) == make_requests(config, items, chat=False)


def test_gsm8k_family_from_a_file(tmp_path):
    rows = [{"question": f"q{n}?", "answer": f"1 + {n} = <<1+{n}={n + 1}>>{n + 1}\n#### {n + 1}"} for n in range(4)]
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = {"paths": [str(tmp_path / "test.jsonl")]}
    config = (
        TypeAdapter(BenchmarkConfig)
        .validate_python({"kind": "gsm8k", "rows": source, "shot_rows": source, "shots": 1})
        .pinned()
    )
    items = load_items(config)
    (request,) = make_requests(config, items, chat=False)[2]
    assert request.prompt.text == ("Question: q0?\nAnswer: 1 + 0 = 1 So the answer is 1.\n\nQuestion: q2?\nAnswer:")
    (turns,) = make_requests(config, items, chat=True)[2]
    assert turns.prompt.cue == "Answer:"
    assert [m["role"] for m in turns.prompt.messages] == ["user", "assistant", "user"]
    assert score_item(config, items[2], [" So the answer is 3."], False).metrics["exact_match"] == 1.0


def test_ifeval_family_from_a_file(tmp_path):
    row = {"key": 7, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    config = (
        TypeAdapter(BenchmarkConfig)
        .validate_python({"kind": "ifeval", "rows": {"paths": [str(tmp_path / "x.jsonl")]}})
        .pinned()
    )
    items = load_items(config)
    assert items[0].id == "7"
    assert score_item(config, items[0], ["fine"], True).metrics["prompt_loose"] == 1.0
    assert score_item(config, items[0], ["a, b"], True).metrics["prompt_loose"] == 0.0
    assert primary_metric(config, items) == "prompt_loose"


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("10\n\nPassage: The 2011 census", ("Passage:", "Question:", "\n\n"), "10"),
        (" 10 Question: 3", ("Passage:", "Question:"), " 10 "),
        ("10", (), "10"),
    ],
)
def test_stops_are_applied_to_an_answer(text, stops, kept):
    assert answer_rules.before_stops(text, stops) == kept
    assert answer_rules.drop_f1(answer_rules.before_stops(text, stops).strip(), [["10"]]) == 1.0


@pytest.mark.parametrize(
    ("text", "truth"), [("x \u22125", "\u22125"), ("It costs $29.00", "29"), ("$1,029", "1029"), ("is -5.", "#### -5")]
)
def test_gsm8k_reads_numbers_as_numbers(text, truth):
    assert answer_rules.gsm8k_match(text, truth)[0]


def test_bits_per_byte_of_synthetic_problems_are_those_of_the_worked_answer():
    config = SyntheticBenchmark(name="bits", format="bits_per_byte", items=3, shots=0, problems=(ArithmeticConfig(),))
    item = load_items(config)[0]
    ((request,),) = make_requests(config, [item], False)
    assert isinstance(request, Likelihood) and request.continuation == f" {item.data['response']}"
    found = score_item(config, item, [LikelihoodAnswer(-7.0, 3)], False)
    wanted = 7.0 / log(2) / len(request.continuation.encode())
    assert found.metrics[primary_metric(config, [item])] == pytest.approx(wanted)
