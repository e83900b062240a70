"""Oracles: the split rule of `tasks.synthetic`, the rows written here, and byte equality of repeated runs in a real store."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.execution.attempt import run_stage
from infra.session import Session
from infra.settings import Execution
from infra.storage.store import Store
from tasks.data.documents.dolma_files import written_rows as read_lines
from tasks.data.post_training.chats import ChatRows, ChatsConfig, SyntheticChats, chats
from tasks.data.post_training.prompts import PromptRows, PromptsConfig, SyntheticPrompts, prompts
from tasks.data.sources.rows import RowSource, read_rows
from tasks.data.synthesis.synthesize import SynthesizeConfig, synthesize
from tasks.synthetic import ArithmeticConfig, WordProblemsConfig, generate_problems
from tasks.verifiers import verify

KINDS = (ArithmeticConfig(max_operand=99, max_factor=12), WordProblemsConfig())


class Desk:
    """Runs stages in a store of their own and reads what they wrote."""

    def __init__(self, root: Path):
        self.session = Session(Store(str(root)), Execution(store=str(root), ray="off", cores=1))

    def run(self, stage: Any, config: Any) -> Any:
        return run_stage(stage, self.session, {"config": config}, lambda event: None).artifact

    def rows(self, artifact: Any, name: str) -> list[dict[str, Any]]:
        return list(read_lines(Path(self.session.store.full(f"{artifact.address}/{name}"))))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "store")


def write_lines(path: Path, rows: list[Any]) -> RowSource:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return RowSource(paths=(str(path),))


def test_documents_hold_training_problems_only(desk, tmp_path):
    config = SynthesizeConfig(problems=KINDS, count=230, problems_per_document=8, documents_per_shard=10)
    made = desk.run(synthesize, config)
    rows = [row for shard in range(3) for row in desk.rows(made, f"documents/{shard:05d}-000.jsonl.zst")]
    assert made.documents == len(rows) == 10 + 10 + 9
    assert made.sources == {"synthetic_math": 29}
    assert made.bytes == sum(len(row["text"].encode()) for row in rows)
    assert len({row["id"] for row in rows}) == 29
    blocks = [block for row in rows for block in row["text"].split("\n\n")]
    assert len(blocks) == 230
    held_out = {p.question for kind in KINDS for p in generate_problems(kind, "eval", 2_000, 3)}
    assert not held_out & {block.split("\n")[0].removeprefix("Question: ") for block in blocks}
    again = Desk(tmp_path / "again").run(synthesize, config)
    assert again.digest == made.digest


def test_chats_count_sources_and_keep_bad_rows_aside(desk, tmp_path):
    good = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "x": 1}
    rows = [
        good,
        "{broken",
        {"messages": []},
        {"messages": [{"role": "user", "content": "no answer"}]},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        good,
    ]
    source = ChatRows(name="file", rows=write_lines(tmp_path / "c.jsonl", rows), max_bad_fraction=0.8)
    config = ChatsConfig(sources=(SyntheticChats(problems=KINDS, count=20), source)).pinned()
    made = desk.run(chats, config)
    assert made.sources == {"synthetic_math": 20, "file": 2}
    assert made.chats == 22
    written = desk.rows(made, "chats.jsonl.zst")
    assert written[-1] == {"id": "file-1", "messages": good["messages"], "source": "file"}
    assert [m["role"] for m in written[0]["messages"]] == ["user", "assistant"]
    bad = desk.rows(made, "bad/chats.jsonl.zst")
    assert [row["reason"] for row in bad] == [
        "not a JSON object",
        "no messages",
        "no assistant message",
        "role 'robot'",
        "a message without text",
    ]
    assert bad[0]["place"].endswith("c.jsonl:2")


def test_too_many_bad_rows_fail_the_stage(desk, tmp_path):
    source = ChatRows(name="file", rows=write_lines(tmp_path / "c.jsonl", ['{"messages" []}', {"messages": []}]))
    with pytest.raises(ValueError, match="has no usable row"):
        desk.run(chats, ChatsConfig(sources=(source,)).pinned())
    good = {"messages": [{"role": "assistant", "content": "x"}]}
    source = ChatRows(name="file", rows=write_lines(tmp_path / "d.jsonl", ['{"messages" []}', good, good]))
    with pytest.raises(ValueError, match=r"1 of 3 rows are unusable .* max_bad_fraction=0.01"):
        desk.run(chats, ChatsConfig(sources=(source,)).pinned())


def test_prompts_come_from_their_split_and_are_verifiable(desk):
    for split in ("preference", "rlvr"):
        config = PromptsConfig(sources=(SyntheticPrompts(split=split, problems=KINDS, count=40),))
        made = desk.run(prompts, config)
        rows = desk.rows(made, "prompts.jsonl.zst")
        assert made.datasets == {"arithmetic": 20, "word_problems": 20}
        expected = {p.question: p for kind_place, kind in enumerate(KINDS) for p in
                    generate_problems(kind, split, 20, f"6198/{kind_place}", distinct=True)}  # fmt: skip
        assert {row["messages"][0]["content"] for row in rows} == set(expected)
        for row in rows:
            response = expected[row["messages"][0]["content"]].response
            assert verify(row["dataset"], response, row["ground_truth"]).correct


def test_prompt_rows_are_checked(desk, tmp_path):
    user = [{"role": "user", "content": "q"}]
    good = {"messages": user, "ground_truth": "4", "dataset": "gsm8k", "extra": 0}
    rows = [
        good,
        good | {"dataset": "MATH"},
        good | {"dataset": "poems"},
        good | {"ground_truth": None},
        good | {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user"}]},
        [1],
    ]
    source = PromptRows(name="file", rows=write_lines(tmp_path / "p.jsonl", rows), max_bad_fraction=1.0)
    made = desk.run(prompts, PromptsConfig(sources=(source,)).pinned())
    assert made.datasets == {"MATH": 1, "gsm8k": 1}
    assert desk.rows(made, "prompts.jsonl.zst")[0] == {
        "id": "file-0",
        "messages": user,
        "ground_truth": "4",
        "dataset": "gsm8k",
    }
    assert [row["reason"] for row in desk.rows(made, "bad/prompts.jsonl.zst")] == [
        "dataset 'poems' has no verifier",
        "no ground truth",
        "the last message is not the user's",
        "a message without role or text",
        "not a JSON object",
    ]


def test_rows_are_pinned_by_content(tmp_path):
    source = write_lines(tmp_path / "r.jsonl", [{"a": 1}, {"a": 2}, {"a": 3}])
    with pytest.raises(ValueError, match="are not pinned"):
        list(read_rows(source))
    pinned = source.pinned()
    assert [row for _, row in read_rows(pinned.model_copy(update={"limit": 2}))] == [{"a": 1}, {"a": 2}]
    write_lines(tmp_path / "r.jsonl", [{"a": 1}, {"a": 2}, {"a": 4}])
    assert source.pinned() != pinned
    with pytest.raises(ValueError, match="give either paths or dataset, not neither"):
        RowSource()
    with pytest.raises(ValueError, match=r"matches no file|does not exist"):
        RowSource(paths=(str(tmp_path / "none.jsonl"),)).pinned()


def test_names_of_sources_are_unique(desk):
    source = SyntheticChats(problems=KINDS, count=2)
    with pytest.raises(ValueError, match="two chat sources are called 'synthetic_math'"):
        desk.run(chats, ChatsConfig(sources=(source, source)))
