"""Tasks of the instruct and held-out suites on rows in their public schemas: prompts and scores by hand (RECIPE I.2 to I.4)."""

import json
from math import log
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tasks.evaluation.benchmarks import (
    BenchmarkConfig,
    load_items,
    make_requests,
    primary_metric,
    score_item,
)
from tasks.evaluation.benchmarks.items import Generation, LikelihoodAnswer
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark, pass_at
from tasks.evaluation.benchmarks.olmes.tasks import find_task
from tasks.evaluation.benchmarks.olmes.tasks.answers.drop import read_row as read_drop
from tasks.evaluation.benchmarks.olmes.tasks.choices.agi_eval import EXAMS
from tasks.evaluation.benchmarks.olmes.tasks.choices.mmlu import extract_letter
from tasks.evaluation.benchmarks.olmes.tasks.reasoning.bbh import BBH_TASKS, extract
from tasks.evaluation.benchmarks.olmes.tasks.reasoning.deepmind_math import MODULES, equal


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(**fields: Any):
    config = OlmesBenchmark.model_validate(fields).pinned()
    return config, load_items(config)


def generation(config, items, place: int = 0, *, chat: bool = True) -> Generation:
    request = make_requests(config, items, chat=chat)[place][0]
    assert isinstance(request, Generation)
    return request


def test_mmlu_cot_asks_for_a_letter_in_parentheses(tmp_path):
    write(tmp_path / "all/test.jsonl", [{"question": "q?", "subject": "s", "choices": list("wxyz"), "answer": 2}])
    config, items = load(task="mmlu_cot", path=str(tmp_path))
    asked = generation(config, items)
    (message,) = asked.prompt.messages
    assert "Question: q?\n (A) w\n (B) x\n (C) y\n (D) z\n" in message["content"]
    assert "Answer:" not in message["content"]
    assert (asked.max_new_tokens, asked.stop) == (2048, ())
    text = "Therefore, the answer is (A). No: Therefore, the answer is (C)."
    assert score_item(config, items[0], [text], True).metrics == {"exact_match": 1.0}


@pytest.mark.parametrize(
    ("text", "letter"),
    [("The answer is B.", "B"), ("(D) fits best", "D"), ("I say C", "C"), ("D is correct", "D"), ("nothing", "")],
)
def test_looser_patterns_find_a_letter(text, letter):
    assert extract_letter(text, 4) == letter


def test_popqa_shows_the_other_relations(tmp_path):
    rows = [
        {"id": n, "question": f"q{n}?", "prop": f"p{n % 16}", "possible_answers": json.dumps([f"Answer {n}"])}
        for n in range(20)
    ]
    write(tmp_path / "test.jsonl", rows)
    config, items = load(task="popqa", path=str(tmp_path))
    asked = generation(config, items, 17)
    contents = [message["content"] for message in asked.prompt.messages]
    assert len(contents) == 31
    assert contents[:2] == ["Q: q0? A:", "Answer 0"]
    assert "Q: q1? A:" not in contents
    assert (contents[-1], asked.max_new_tokens, asked.stop) == ("Q: q17? A:", 15, ("\n\n",))
    assert score_item(config, items[17], ["It is answer 17, I think"], True).metrics == {"exact_match": 1.0}


def test_truthfulqa_is_the_share_of_true_answers(tmp_path):
    row = {
        "question": "q?",
        "mc1_targets": {"choices": ["t", "f"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["t", "u", "f"], "labels": [1, 1, 0]},
    }
    write(tmp_path / "multiple_choice/validation.jsonl", [row])
    config, items = load(task="truthfulqa", path=str(tmp_path))
    wanted = make_requests(config, items, chat=True)[0]
    (message,) = wanted[0].prompt.messages
    assert message["content"].count("Q: ") == 7
    assert message["content"].endswith("A: The 1992 Olympics were held in Barcelona, Spain.\n\nQ: q?\nA:")
    assert [one.continuation for one in wanted] == [" t", " f", " u"]
    answers = [LikelihoodAnswer(log(p), 1) for p in (0.2, 0.3, 0.1)]
    assert score_item(config, items[0], answers, True).metrics["mc2"] == pytest.approx(0.5)
    assert primary_metric(config, items) == "mc2"


@pytest.fixture
def bbh(tmp_path):
    for name in BBH_TASKS:
        write(tmp_path / name / "test.jsonl", [{"input": f"{name}?", "target": "(B)"}])
    return str(tmp_path)


def test_bbh_has_three_worked_shots_of_each_task(bbh):
    config, items = load(task="bbh", path=bbh)
    assert [item.data["group"] for item in items] == list(BBH_TASKS)
    plain = generation(config, items, BBH_TASKS.index("navigate"), chat=False)
    assert plain.prompt.text.startswith("Given a series of navigation instructions, determine whether")
    assert plain.prompt.text.count("A: Let's think step by step.\n") == 3
    assert plain.prompt.text.endswith("\n\nQ: navigate?\nA: Let's think step by step.")
    turns = generation(config, items, BBH_TASKS.index("navigate")).prompt.messages
    assert len(turns) == 7
    assert turns[1]["content"].startswith("We start at the origin")


@pytest.mark.parametrize(
    ("group", "text", "answer"),
    [
        ("navigate", "So the answer is No. Q: … So the answer is Yes.", "Yes"),
        ("date_understanding", "the answer is **(C)**", "(C)"),
        ("date_understanding", "It must be D", "(D)"),
        ("object_counting", "So the answer is 8.", "8"),
        ("multistep_arithmetic_two", "So the answer is -12.", "-12"),
        ("dyck_languages", "So the answer is ] }.", "] }"),
        ("word_sorting", "So the answer is apple bee cat", "apple bee cat"),
        ("boolean_expressions", "answer: True", "True"),
        ("formal_fallacies", "it is invalid", "invalid"),
    ],
)
def test_bbh_extraction(group, text, answer):
    assert extract(group, text) == answer


def test_agi_eval_reads_both_schemas_and_shows_the_exams_first_official_exemplar(tmp_path):
    official = {"passage": "P\n\n\nP", "question": "q?", "options": ["(A)one", "(B) two"], "label": "B"}
    hub = {"query": "P Q: q? Answer Choices: (A)one (B)two\nA:", "choices": ["(A)one", "(B)two"], "gold": [1]}
    for place, exam in enumerate(EXAMS):
        write(tmp_path / f"agieval-{exam}/test.jsonl", [hub if place else official])
    config, items = load(task="agi_eval", path=str(tmp_path))
    first, second = (make_requests(config, items, chat=False)[place][0].prompt.text for place in (0, 1))
    assert first.startswith("Question: A cycled from P to Q at 10 kmph and")
    assert first.endswith("\n E. 5.75km\nAnswer: C\n\nP\nP\nQuestion: q?\n A. one\n B. two\nAnswer:")
    assert second.startswith(
        "Because the image of the photo is formed by the contact between the light and the film, each"
    )
    assert second.endswith("\nAnswer: B\n\nP\nQuestion: q?\n A. one\n B. two\nAnswer:")
    assert [item.gold for item in items] == ["two"] * 8
    # By hand from the official file: the keys of the eight exemplars.
    letters = [
        make_requests(config, items, chat=False)[place][0].prompt.text.split("\nAnswer: ")[1][0] for place in range(8)
    ]
    assert dict(zip(EXAMS, letters, strict=True)) == {
        "aqua-rat": "C", "logiqa-en": "B", "lsat-ar": "E", "lsat-lr": "C", "lsat-rc": "D", "sat-en": "C", "sat-math": "A",
        "gaokao-english": "D",
    }  # fmt: skip
    assert config.average == "macro"


def test_mmlu_pro_has_ten_letters_and_shots_of_the_category(tmp_path):
    rows = [
        {
            "question_id": n,
            "question": f"q{n}?",
            "options": [f"o{k}" for k in range(10)],
            "answer_index": 9,
            "category": "law",
        }
        for n in range(6)
    ]
    write(tmp_path / "data/validation.jsonl", rows[:5])
    write(tmp_path / "data/test.jsonl", rows[5:])
    config, items = load(task="mmlu_pro", path=str(tmp_path))
    wanted = make_requests(config, items, chat=False)[0]
    assert [one.continuation for one in wanted] == [f" {letter}" for letter in "ABCDEFGHIJ"]
    assert wanted[0].prompt.text.count("Answer: J\n\n") == 5


def test_humaneval_asks_twenty_samples_and_runs_them(tmp_path):
    row = {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(3) == 6\n",
        "entry_point": "double",
    }
    write(tmp_path / "test.jsonl", [row])
    config, items = load(task="humaneval", path=str(tmp_path))
    wanted = make_requests(config, items, chat=False)[0]
    assert len(wanted) == 20
    assert isinstance(wanted[0], Generation)
    assert (wanted[0].temperature, wanted[0].top_p) == (0.8, 0.95)
    # A new "def" is a stop, so a fenced answer can hold the body alone.
    right, fenced, wrong = "    return 2 * x", "```python\n    return x + x\n```", "    return x"
    found = score_item(config, items[0], [right, fenced] + [wrong] * 18, False)
    assert found.metrics == pytest.approx({"pass_at_1": 0.1, "pass_at_10": 1 - (10 * 9) / (20 * 19)})
    assert primary_metric(config, items) == "pass_at_10"


def test_pass_at_k_of_all_and_none():
    assert pass_at([1.0] * 20) == {"pass_at_1": 1.0, "pass_at_10": 1.0}
    assert pass_at([0.0] * 20) == {"pass_at_1": 0.0, "pass_at_10": 0.0}


def test_gpqa_shuffles_options_by_the_question(tmp_path):
    fields = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    rows = [{"Question": f"q{n}?", **{field: f" {field} " for field in fields}} for n in range(40)]
    write(tmp_path / "gpqa_main/train.jsonl", rows)
    _, items = load(task="gpqa", path=str(tmp_path))
    assert {item.data["gold"] for item in items} == {0, 1, 2, 3}
    assert load(task="gpqa", path=str(tmp_path))[1] == items
    assert all(item.gold == "Correct Answer" for item in items)


def test_drop_reads_numbers_dates_and_spans():
    empty = {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": []}
    row = {
        "query_id": "x",
        "passage": "p",
        "question": "q",
        "answer": empty | {"date": {"day": "8", "month": "April", "year": "1898"}},
        "validated_answers": {
            "number": ["7", "7"],
            "date": [empty["date"]] * 2,
            "spans": [[], []],
        },
    }
    assert read_drop(row, 0).references == (("8 April 1898",), ("7",))


def test_deepmind_mathematics_reads_the_hub_rows_and_judges_expressions(tmp_path):
    for module in MODULES:
        rows = [{"question": f"b'Solve {n}*x = {2 * n} for x.\\n'", "answer": "b'2\\n'"} for n in range(1, 4)]
        write(tmp_path / module / "test.jsonl", rows * 50)
    config, items = load(task="deepmind_math", path=str(tmp_path))
    assert len(MODULES) == 56
    assert len(items) == 56 * 100
    asked = generation(config, items)
    (message,) = asked.prompt.messages
    assert message["content"].startswith(
        "Solve the following math problem efficiently:\nSolve 1*x = 2 for x.\n\nShow your work"
    )
    assert (asked.max_new_tokens, asked.stop) == (2048, ())
    facts = find_task("deepmind_math")
    assert (facts.average, facts.role, facts.count) == ("macro", "held_out", len(items))
    ending = "Therefore, the final answer is {}. I hope it is correct."
    text = f"{ending.format(7)} No. {ending.format(2)}"
    assert score_item(config, items[0], [text], True).metrics == {"exact_match": 1.0}


@pytest.mark.parametrize(
    ("given", "wanted", "right"),
    [
        ("2*x**2 + 3*x", "3*x + 2*x**2", True), ("x**2", "x**3", False), ("2,10", "2, 10", True), ("10, 2", "2, 10", False),
        ("-2/7", "\u22122/7", True), ("No", "False", True), ("true", "False", False), ("$5$", "5", True), ("3", "3, 4", False),
        ("0.5", "1/2", True), ("b", "c", False),
    ],
)  # fmt: skip
def test_answers_of_deepmind_mathematics(given, wanted, right):
    assert equal(given, wanted) is right


def test_reasoning_of_the_unseen_suite_ends_with_a_letter(tmp_path):
    write(tmp_path / "gpqa/gpqa_main/train.jsonl", [
        {"Question": "q?", "Correct Answer": "r", "Incorrect Answer 1": "s", "Incorrect Answer 2": "t", "Incorrect Answer 3": "u"}
    ])  # fmt: skip
    write(tmp_path / "pro/data/test.jsonl", [
        {"question_id": 1, "question": "q?", "options": list("rstuvwxyz!"), "answer_index": 9, "category": "law"}
    ])  # fmt: skip
    for exam in EXAMS:
        row = {"passage": "p", "question": "q?", "options": ["(A)r", "(B)s"], "label": "B"}
        write(tmp_path / f"agieval-{exam}" / "test.jsonl", [row])
    for task, path, letters, gold in (
        ("gpqa", "gpqa", "one of (A), (B), (C), (D).", None),
        ("mmlu_pro_cot", "pro", "one of (A), (B), (C), (D), (E), etc.", "J"),
        ("agi_eval_cot", "", "one of (A), (B), (C), (D), (E), etc.", "B"),
    ):
        config, items = load(task=task, path=str(tmp_path / path))
        (message,) = generation(config, items).prompt.messages
        assert message["content"].endswith(letters)
        assert "\n (A) " in message["content"]
        letter = gold or "ABCD"[items[0].data["gold"]]
        text = f"Therefore, the answer is ({letter})."
        assert score_item(config, items[0], [text], True).metrics == {"exact_match": 1.0}
        assert score_item(config, items[0], ["Therefore, the answer is (Z)."], True).metrics == {"exact_match": 0.0}


@pytest.mark.parametrize("kind", ["olmes", "gsm8k", "template"])
def test_numbers_are_read_as_written_or_by_the_published_rules(tmp_path, kind):
    row = {"question": "q?", "answer": "It is -5. #### -5"}
    write(tmp_path / "main/test.jsonl", [row])
    rows = {"paths": [str(tmp_path / "main/test.jsonl")]}
    more = {
        "olmes": {"task": "gsm8k", "path": str(tmp_path), "shots": 0},
        "gsm8k": {"rows": rows, "shots": 0},
        "template": {"name": "mine", "rows": rows, "prompt": "{{ question }}", "answer": "'-5'", "metric": "number"},
    }[kind]
    found = {}
    for rules in ("correct", "published"):
        config = TypeAdapter(BenchmarkConfig).validate_python({"kind": kind} | more | {"rules": rules}).pinned()
        items = load_items(config)
        found[rules] = score_item(config, items[0], ["So x is \u22125"], False).metrics["exact_match"]
    assert found == {"correct": 1.0, "published": 0.0}


def test_a_task_with_one_way_of_reading_answers_refuses_another():
    with pytest.raises(ValueError, match="'piqa' has one way of reading answers"):
        OlmesBenchmark.model_validate({"task": "piqa", "rules": "published"})
