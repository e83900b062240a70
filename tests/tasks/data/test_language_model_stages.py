"""Stages in which a language model writes, rewrites and labels. Oracles: the server's count of what it was asked and paid
for, over real sockets; the rows themselves; byte equality of repeated runs."""

import re

import orjson
import pytest

from infra.language_models.client import EndpointError
from infra.session import Session
from infra.settings import EndpointSettings, Execution
from tasks.data.classifying.classifier import ClassifierConfig, ClassSelection, classifier
from tasks.data.classifying.label import LabelConfig, label, read_label
from tasks.data.sources.rows import RowSource
from tasks.data.synthesis.personas import PersonasConfig, personas
from tasks.data.synthesis.programs import ProgramsConfig, programs
from tasks.data.synthesis.rewrite import RewriteConfig, rewrite, states
from tasks.prompting import LanguageModelConfig, check_prompt
from tests.openai_server import OpenAIServer, completed

WRITER = LanguageModelConfig(model="writer", max_tokens=64)


def ask(bench, server, **changes):
    """Point the bench's stages at a server."""
    quick = {"first_wait_seconds": 0.01, "timeout_seconds": 2.0, "concurrency": 4, "prompt_price": 1e6}
    endpoint = EndpointSettings(url=server.url, **(quick | changes))
    bench.session = Session(bench.store, Execution(store=bench.store.url, ray="off", endpoints={"default": endpoint}))
    return bench


def prompt_of(body):
    return body["messages"][-1]["content"]


def lines(path, rows):
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else orjson.dumps(row) for row in rows))
    return RowSource(paths=(str(path),))


# -- personas ---------------------------------------------------------------------------------------------


def tutor(body):
    """A model that writes a problem of 3 x the persona's number, and sometimes misbehaves."""
    prompt = prompt_of(body)
    if solving := re.search(r"What is 3 \* (\d+)\?", prompt):
        number = int(solving[1])
        if number % 10 == 7:
            return completed("3 * ", finish="length")
        if number % 10 == 8:
            return "It is easy."
        return f"3 * {number} = {3 * number}.\nFinal Answer: The final answer is ${3 * number}$. I hope it is correct."
    persona = re.search(r"person number (\d+)", prompt)
    assert persona, prompt
    number = int(persona[1])
    return 400 if number % 10 == 9 else f"{'Sure! ' if number % 10 == 6 else ''}Math problem: What is 3 * {number}?"


def persona_config(tmp_path, count=40, **changes):
    rows = [{"persona": f"person number {i}, a baker"} for i in range(count)] + [
        b'{"persona" "no colon"}',
        {"persona": " "},
    ]
    settings = {"personas": lines(tmp_path / "p.jsonl", rows), "writer": WRITER, "max_dropped": 0.6}
    return PersonasConfig(**(settings | changes)).pinned()


def test_personas_give_problems_with_checked_solutions(bench, tmp_path, new_bench):
    config = persona_config(tmp_path)
    with OpenAIServer(tutor, faults=True) as server:
        made = ask(bench, server).run(personas, config)
        rows = bench.rows(made, "documents/")
        good = [i for i in range(40) if i % 10 < 6]
        assert [row["metadata"]["persona"] for row in rows] == [f"person number {i}, a baker" for i in good]
        assert rows[1]["text"] == (
            "What is 3 * 1?\n\n3 * 1 = 3.\nFinal Answer: The final answer is $3$. I hope it is correct."
        )
        assert [row["metadata"]["answer"] for row in rows] == [str(3 * i) for i in good]
        assert made.sources == {"personas": 24}
        assert made.bytes == sum(len(row["text"].encode()) for row in rows)
        assert made.dropped == {
            "no persona": 2,
            "problem: no leading phrase": 4,
            "problem: refused": 4,
            "solution: cut off": 4,
            "solution: no final answer": 4,
        }
        dropped = bench.rows(made, "dropped/")
        assert {(row["reason"], row["detail"]) for row in dropped} >= {("solution: no final answer", "It is easy.")}
        assert set(server.paid.values()) == {1}
        note = bench.reader().record(made).notes["endpoint"]
        assert note["requests"] == 40 + 32 and note["refused"] == 4
        assert note["prompt_tokens"] == 10 * 68 == note["cost"] == note["paid_now"]
        again = ask(new_bench("b"), server).run(personas, config)
    assert again.digest == made.digest


def test_a_stage_that_failed_half_way_pays_for_the_rest_only(bench, tmp_path):
    config = persona_config(tmp_path)
    with OpenAIServer(lambda body: 401 if len(server.paid) >= 30 else tutor(body)) as server:
        with pytest.raises(EndpointError, match="HTTP 401"):
            ask(bench, server).run(personas, config)
        paid = len(server.paid)
        assert 30 <= paid <= 34
        server.reply = tutor
        made = ask(bench, server).run(personas, config)
        assert set(server.paid.values()) == {1}
        assert len(server.paid) == 68
        note = bench.reader().record(made).notes["endpoint"]
        assert note["paid_now"] == 10 * (68 - paid)
        assert note["cost"] == 680


def test_another_subject_prompt_or_seed_is_another_result():
    base = PersonasConfig(writer=WRITER)
    assert "demanding" in base.problem_prompt and "{{ persona }}" in base.problem_prompt
    assert PersonasConfig(writer=WRITER, subject="algebra").problem_prompt != base.problem_prompt
    assert PersonasConfig.model_validate(base.model_dump()) == base
    assert WRITER.request("x").key != WRITER.model_copy(update={"seed": 1}).request("x").key
    for wrong, message in (("no value", "asks for nothing"), ("{{ text }}", "asks for text"), ("{% if %}", "no Jinja")):
        with pytest.raises(ValueError, match=message):
            check_prompt(wrong, "persona")


def test_too_many_unusable_answers_fail_the_stage(bench, tmp_path):
    with OpenAIServer(tutor) as server:
        with pytest.raises(ValueError, match=r"18 of 42 answers could not be used.*max_dropped=0.1"):
            ask(bench, server).run(personas, persona_config(tmp_path, max_dropped=0.1))
        with pytest.raises(ValueError, match="no document could be used"):
            ask(bench, server).run(personas, persona_config(tmp_path, count=0))
    bench.session = Session(bench.store, Execution(store=bench.store.url, ray="off"))
    with pytest.raises(ValueError, match="no endpoint is known for model 'writer'"):
        bench.run(personas, persona_config(tmp_path, count=3))


# -- programs and rewriting ---------------------------------------------------------------------------------


def program_rows():
    safe = [
        {
            "question": f"{i} boxes of 4?",
            "code": f"def f():\n    boxes = {i}\n    result = boxes * 4\n    return result",
        }
        for i in range(2, 12)
    ]
    return [*safe, {"question": "q", "code": "import os"}, {"question": "q"}, b"[]"]


def program_documents(bench, tmp_path, **changes):
    config = ProgramsConfig(name="tiny", rows=lines(tmp_path / "t.jsonl", program_rows()), **changes)
    return bench.run(programs, config.pinned())


def test_programs_are_kept_when_they_run_and_annotated(bench, tmp_path):
    made = program_documents(bench, tmp_path)
    rows = bench.rows(made, "documents/")
    assert len(rows) == made.documents == 10
    assert rows[0] == {
        "id": "tiny-00000-00000000",
        "source": "tiny",
        "text": "2 boxes of 4?\n\ndef f():\n    boxes = 2  # = 2\n    result = boxes * 4  # = 8\n    return result",
        "metadata": {"answer": "8", "origin": "program"},
    }
    assert made.dropped == {"no assignment": 1, "no question or program": 1, "not a JSON object": 1}
    with pytest.raises(ValueError, match=r"13 of 13 programs of 'tiny' are dropped.*'text'"):
        program_documents(bench, tmp_path, program="text")


def test_several_files_are_several_shards(bench, tmp_path):
    for name in ("a", "b"):
        lines(tmp_path / f"{name}.jsonl", program_rows())
    source = RowSource(paths=(str(tmp_path / "*.jsonl"),))
    made = bench.run(programs, ProgramsConfig(rows=source).pinned())
    rows = bench.rows(made, "documents/")
    assert made.documents == len(rows) == len({row["id"] for row in rows}) == 20
    few = bench.run(programs, ProgramsConfig(rows=source.model_copy(update={"limit": 3})).pinned())
    assert few.documents == 3


def students(body):
    """Rewrites; forgets the answer of 3 boxes, and is brief about 4."""
    boxes = int(re.search(r"(\d+) boxes of 4\?", prompt_of(body))[1])
    said = "" if boxes == 3 else f"so that makes {boxes * 4}."
    return f"Student 1: short {said}" if boxes == 4 else f"Student 1: {'we count on. ' * 20}{said} s{body['seed']}"


def test_documents_are_rewritten_in_order_and_keep_their_answer(bench, tmp_path):
    source = program_documents(bench, tmp_path)
    config = RewriteConfig(name="mind", writer=WRITER, copies=2, max_dropped=0.5)
    with OpenAIServer(students, faults=True) as server:
        made = ask(bench, server).run(rewrite, source, config)
        assert set(server.paid.values()) == {1} and len(server.paid) == 20
    rows = bench.rows(made, "documents/")
    kept = [boxes for boxes in range(2, 12) if boxes not in (3, 4)]
    assert [row["metadata"]["answer"] for row in rows] == [str(4 * boxes) for boxes in kept for _ in range(2)]
    assert [row["text"][-2:] for row in rows] == ["s0", "s1"] * 8
    assert {row["source"] for row in rows} == {"mind"} and len({row["id"] for row in rows}) == 16
    assert rows[0]["metadata"]["rewritten_from"] == "tiny/tiny-00000-00000000"
    assert rows[0]["metadata"]["style"] == "two_students"
    assert made.dropped == {"answer lost": 2, "too short": 2}


def test_long_documents_are_left_out_and_a_limit_holds(bench):
    documents = bench.documents(["short " * 3, "long " * 300, "short " * 4, "never read"])
    config = RewriteConfig(writer=WRITER, limit=3, max_characters=1_000, min_words=0, max_dropped=0.5)
    with OpenAIServer(lambda body: "so") as server:
        made = ask(bench, server).run(rewrite, documents, config)
        assert server.sent.total() == 2
    assert (made.documents, made.dropped) == (2, {"too long": 1})


def test_both_styles_have_prompts_of_their_own():
    texts = {RewriteConfig(style=style).prompt for style in ("two_students", "problem_solving")}
    assert len(texts) == 2 and all("{{ text }}" in text for text in texts)


def test_a_number_is_found_by_itself_only():
    assert states("that makes $1,234.", "1234") and states("so 8", "8") and states("is 2.50 then 8.", "8")
    assert not states("that makes 18", "8") and not states("8.5", "8") and not states("1.8", "8")


# -- labels -------------------------------------------------------------------------------------------------


def reader(body):
    """Gives 4 points to pages that teach and 1 to the others, with numbers in its explanation."""
    return f"Between 2 and 3 perhaps. score 3?\nScore: {4 if 'theorem' in prompt_of(body) else 1}"


def test_labels_become_metadata_from_which_a_classifier_learns(bench):
    texts = [("a theorem and its proof " if i % 2 else "cheap shoes for sale ") * (3 + i % 5) for i in range(60)]
    pages = bench.documents(texts)
    config = LabelConfig(writer=WRITER, sources=("web",), count=60)
    with OpenAIServer(reader) as server:
        labelled = ask(bench, server).run(label, [pages], config)
    rows = bench.rows(labelled, "documents/")
    assert [row["text"] for row in rows] == texts
    assert [row["metadata"]["educational"] for row in rows] == ["1", "4"] * 30
    assert bench.json(labelled, "labels.json") == {"1": 30, "4": 30}
    model = bench.run(
        classifier,
        [labelled],
        ClassifierConfig(
            positives=ClassSelection(metadata={"educational": ("3", "4", "5")}),
            dim=4,
            bucket=1000,
            epochs=20,
            learning_rate=0.5,
        ),
    )
    assert bench.json(model, "metrics.json")["candidates"] == {"__label__hq": 30, "__label__cc": 30}


def test_the_sample_depends_on_ids_and_seed_alone(bench):
    pages = bench.documents([f"page {i}" for i in range(300)])
    with OpenAIServer(lambda body: "Score: 0") as server:
        chosen = [
            {row["id"] for row in bench.rows(ask(bench, server).run(label, parts, config), "documents/")}
            for parts, config in (
                ([pages], LabelConfig(writer=WRITER, count=60)),
                ([pages], LabelConfig(writer=WRITER, count=60, seed=1)),
                ([pages, pages], LabelConfig(writer=WRITER, count=120)),
            )
        ]
        assert 30 < len(chosen[0]) < 90
        assert chosen[0] != chosen[1]
        assert chosen[0] == chosen[2]
        with pytest.raises(ValueError, match="nothing to label in books; the sources are web"):
            bench.run(label, [pages], LabelConfig(writer=WRITER, sources=("books",)))


def test_the_last_stated_label_counts():
    def said(text, rubric="educational"):
        from infra.language_models.protocol import Answer

        return read_label(Answer(completed(text), remembered=False), rubric)

    assert said("Score: 2\nno, rather\n**Score: 3**") == ("", "3")
    assert said("score 7") == said("I like it") == said("Score: 4.5") == ("no label", "")
    assert said("It teaches.\nMathematics: **Yes**", "mathematics") == ("", "yes")
    assert said("Mathematics: yes or no", "mathematics") == ("no label", "")
    assert said("") == ("empty", "")
