"""A benchmark of one's own: prompts by hand, all formats, and errors that name the row."""

import json

import pytest
from pydantic import TypeAdapter

from tasks.evaluation.benchmarks import (
    BenchmarkConfig,
    load_items,
    make_requests,
    primary_metric,
    score_item,
)
from tasks.evaluation.benchmarks.items import LikelihoodAnswer

ROWS = [
    {"country": "France", "options": ["Rome", "Paris"], "city": "Paris"},
    {"country": "Italy", "options": ["Rome", "Paris"], "city": "Rome"},
]
QUESTION = "Question: What is the capital of {{ country }}?\n"


def load(tmp_path, rows=ROWS, **fields):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"paths": [str(tmp_path / "rows.jsonl")]}
    if fields.get("shots"):
        fields["shot_rows"] = source
    data = {"kind": "template", "name": "capitals", "rows": source, **fields}
    config = TypeAdapter(BenchmarkConfig).validate_python(data).pinned()
    return config, load_items(config)


def test_lettered_choices(tmp_path):
    prompt = QUESTION + "{{ lettered }}\nAnswer:"
    config, items = load(
        tmp_path, prompt=prompt, format="multiple_choice", choices="options", gold="options.index(city)", shots=1
    )
    wanted = make_requests(config, items, chat=False)[1]
    assert wanted[0].prompt.text == (
        "Question: What is the capital of France?\n A. Rome\n B. Paris\nAnswer: B\n\n"
        "Question: What is the capital of Italy?\n A. Rome\n B. Paris\nAnswer:"
    )
    assert [one.continuation for one in wanted] == [" A", " B"]
    answers = [LikelihoodAnswer(-1.0, 1), LikelihoodAnswer(-2.0, 1)]
    assert score_item(config, items[1], answers, False).metrics[primary_metric(config, items)] == 1.0
    assert items[1].text.endswith("\nRome")


def test_cloze_and_bits(tmp_path):
    fields = {"prompt": QUESTION + "Answer:", "choices": "options", "gold": "options.index(city)"}
    config, items = load(tmp_path, format="cloze", normalisation="pmi", **fields)
    assert [one.prompt.text for one in make_requests(config, items, chat=False)[0]][2:] == ["Answer:"] * 2
    bits, items = load(tmp_path, format="bits_per_byte", answer="city", prompt=QUESTION + "Answer:")
    assert [one.continuation for one in make_requests(bits, items, chat=False)[0]] == [" Paris"]
    assert primary_metric(bits, items) == "bits_per_byte"


@pytest.mark.parametrize(
    ("metric", "answer", "text", "right"),
    [
        ("exact_match", "[city, country]", " the Paris!", 1.0),
        ("exact_match", "city", "London", 0.0),
        ("number", "'29'", "It is $29", 1.0),
        ("math", "'\\\\frac{1}{2}'", "\\boxed{\\frac12}", 1.0),
    ],
)
def test_written_answers(tmp_path, metric, answer, text, right):
    config, items = load(tmp_path, prompt=QUESTION, metric=metric, answer=answer)
    assert score_item(config, items[0], [text], False).metrics["exact_match"] == right


def test_code_runs_its_tests(tmp_path):
    rows = [{"task": "double", "cases": [[1, 2], [3, 6]]}]
    tests = "{% for given, wanted in cases %}assert {{ task }}({{ given }}) == {{ wanted }}\n{% endfor %}"
    config, items = load(tmp_path, rows, prompt="Write {{ task }}.\n", metric="code", tests=tests)
    assert score_item(config, items[0], ["def double(x):\n    return 2 * x"], False).metrics == {"exact_match": 1.0}
    assert score_item(config, items[0], ["def double(x):\n    return x"], False).metrics == {"exact_match": 0.0}


def test_chats_have_turns_without_spaces(tmp_path):
    config, items = load(tmp_path, prompt=QUESTION, answer="city", shots=1)
    (asked,) = make_requests(config, items, chat=True)[1]
    assert [message["content"] for message in asked.prompt.messages][1] == "Paris"
    assert len(asked.prompt.messages) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"prompt": "{{ town }}", "answer": "city"},
            "row 1 of benchmark 'capitals' does not fit its templates: 'town' is undefined",
        ),
        ({"prompt": "x", "answer": "town.name"}, "'town' is undefined"),
        ({"prompt": "{{ ''.__class__.__mro__ }}", "answer": "city"}, "unsafe"),
        ({"prompt": "x", "format": "cloze", "choices": "options", "gold": "7"}, "gold is 7, and it has 2 choices"),
        ({"prompt": "x", "format": "cloze", "choices": "options"}, "of format cloze needs gold"),
        ({"prompt": "x"}, "of format generate needs answer"),
        ({"prompt": "x", "metric": "code"}, "needs tests"),
        ({"prompt": "{{ x", "answer": "city"}, "row 1"),
    ],
)
def test_errors_name_the_row_and_the_field(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **fields)
