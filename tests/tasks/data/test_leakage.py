"""Evaluation items planted in every kind of training data. Oracle: the items that were planted, in a real store."""

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from infra.records.artifact import Artifact
from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Checkpoint, Documents, Preferences
from tasks.data.decontaminate import decontaminate
from tasks.data.encode import EncodeConfig, encode
from tasks.data.filters.ngrams import word_ngrams
from tasks.data.filters.overlap import DecontaminateConfig, OverlapRule
from tasks.data.post_training.chats import ChatRows, ChatsConfig, SyntheticChats, chats
from tasks.data.post_training.decontaminate_chats import decontaminate_chats
from tasks.data.post_training.decontaminate_pairs import decontaminate_pairs
from tasks.data.post_training.decontaminate_prompts import decontaminate_prompts
from tasks.data.post_training.prompts import PromptRows, PromptsConfig, prompts
from tasks.data.sources.rows import RowSource
from tasks.evaluation.benchmarks import load_items
from tasks.evaluation.benchmarks.gsm8k import GSM8KBenchmark
from tasks.evaluation.scoring.contamination import overlaps_of
from tasks.synthetic import ArithmeticConfig
from tests.hub_server import CountingHub

ITEMS = 40


class Overlaps(Artifact):
    """What an evaluation knows of its items."""

    found: dict[str, dict[str, int]] | None


def question(i: int) -> str:
    return (
        f"A shop on Linden Lane number {i} sells {i + 3} red lamps and {2 * i + 1} green lamps on each of {i + 2} days. "
        "How many lamps does it sell in all?"
    )


def answer(i: int) -> str:
    return f"It sells {3 * i + 4} a day. #### {(3 * i + 4) * (i + 2)}"


def harmless(i: int) -> str:
    return f"Why does the old river number {i} bend so much where it leaves the quiet mountain valley of our village?"


def turns(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def write(path: Path, rows: list[dict[str, Any]]) -> RowSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RowSource(paths=(str(path),))


@pytest.fixture
def config(tmp_path) -> DecontaminateConfig:
    """Forty questions, of which five are evaluated: all forty count."""
    rows = write(tmp_path / "quiz.jsonl", [{"question": question(i), "answer": answer(i)} for i in range(ITEMS)])
    benchmark = GSM8KBenchmark(rows=rows, limit=5).pinned()
    return DecontaminateConfig(benchmarks=(benchmark,), direction="item", max_overlap=0.5)


def as_documents(config: DecontaminateConfig) -> DecontaminateConfig:
    return config.model_copy(update={"direction": "document", "max_overlap": 0.1})


def test_documents_lose_all_items_and_say_so(bench, config):
    texts = [f"{question(i)}\n{answer(i)}" for i in range(ITEMS)] + [harmless(i) for i in range(25)]
    made = bench.run(decontaminate, bench.documents(texts), as_documents(config))
    assert (made.documents, made.dropped) == (25, {"contaminated": ITEMS})
    (report,) = bench.json(made, "report.json")
    assert (report["items"], report["items_found"], report["documents_removed"]) == (ITEMS, ITEMS, ITEMS)


def make_trained(ws: Workspace, documents: Documents, config: Config) -> Checkpoint:
    """A stage that says it trained a checkpoint on documents."""
    ws.write_json("config.json", documents.model_dump(mode="json"))
    return ws.artifact(Checkpoint, steps=0, tokens=0, parameters=1, loss=0.0, ranks=320, parent="")


def look_up(ws: Workspace, checkpoint: Checkpoint, config: Config) -> Overlaps:
    """A stage that keeps what an evaluation would know of its items."""
    found = overlaps_of(ws, checkpoint)
    return ws.artifact(Overlaps, found=None if found is None else {name: dict(row) for name, row in found.items()})


def test_an_evaluation_knows_which_items_share_words_with_the_training_data(bench, config):
    texts = [f"{question(i)}\n{answer(i)}" for i in (3, 3, 7)] + [harmless(i) for i in range(25)]
    train, ask = stage(make_trained, name="train", version=1), stage(look_up, name="look_up", version=1)
    documents = bench.documents(texts)
    clean = bench.run(decontaminate, documents, as_documents(config).model_copy(update={"ngram": 13}))
    (report,) = bench.json(clean, "report.json")
    found = bench.run(ask, bench.run(train, clean, Config()), Config()).found
    assert found == {"gsm8k": report["touched"]}
    items = {item.id: item.text for item in load_items(config.benchmarks[0].model_copy(update={"limit": ITEMS}))}
    by_number = {int(items[id].split("number ")[1].split()[0]): count for id, count in report["touched"].items()}
    assert (by_number[3], by_number[7]) == (2, 1)
    assert bench.run(ask, bench.run(train, documents, Config()), Config()).found is None, "nobody looked"


def test_an_emptied_source_is_refused_by_name_where_it_would_be_read(bench, config):
    made = bench.run(decontaminate, bench.documents([question(i) for i in range(ITEMS)], "leaky"), as_documents(config))
    assert (made.documents, made.sources, made.dropped) == (0, {}, {"contaminated": ITEMS})
    with pytest.raises(ValueError, match=r"'leaky' is not in .*\{'contaminated': 40\}"):
        bench.run(encode, made, EncodeConfig(source="leaky", ranks=490))


def test_chats_lose_items_in_any_turn(bench, config, tmp_path):
    rows = [{"messages": turns(question(i), answer(i))} for i in range(ITEMS // 2)]
    rows += [{"messages": turns("Give me a question.", f"Here it is: {question(i)}")} for i in range(ITEMS // 2, ITEMS)]
    long = " ".join(harmless(k) for k in range(60))
    rows += [{"messages": [*turns(long, "Yes."), *turns(question(3), "No.")]}]
    rows += [{"messages": turns(harmless(i), f"Because of {i} stones.")} for i in range(10)]
    source = ChatRows(name="quiz", rows=write(tmp_path / "chats.jsonl", rows))
    made = bench.run(chats, ChatsConfig(sources=(source,)).pinned())
    clean = bench.run(decontaminate_chats, made, config)
    assert (clean.chats, clean.sources, clean.dropped) == (10, {"quiz": 10}, {"contaminated": ITEMS + 1})
    assert [row["id"] for row in bench.rows(clean, "chats.jsonl.zst")] == [f"quiz-{ITEMS + 1 + i}" for i in range(10)]
    (report,) = bench.json(clean, "report.json")
    assert report["items_found"] == ITEMS


def test_prompts_lose_items_also_behind_shots(bench, config, tmp_path):
    shots = "\n\n".join(f"Question: {harmless(k)}\nAnswer: It does, {k} times." for k in range(8))
    asked = [question(i) if i % 2 else f"{shots}\n\nQuestion: {question(i)}" for i in range(ITEMS)]
    asked += [harmless(i) for i in range(12)]
    rows = [{"messages": turns(text, "")[:1], "ground_truth": "1", "dataset": "gsm8k"} for text in asked]
    source = PromptRows(name="quiz", rows=write(tmp_path / "prompts.jsonl", rows))
    made = bench.run(prompts, PromptsConfig(sources=(source,)).pinned())
    clean = bench.run(decontaminate_prompts, made, config)
    assert (clean.prompts, clean.datasets, clean.dropped) == (12, {"gsm8k": 12}, {"contaminated": ITEMS})


def test_prompts_that_are_all_items_end_the_stage_with_the_benchmark(bench, config, tmp_path):
    rows = [{"messages": turns(question(i), "")[:1], "ground_truth": "1", "dataset": "gsm8k"} for i in range(ITEMS)]
    source = PromptRows(name="quiz", rows=write(tmp_path / "prompts.jsonl", rows))
    made = bench.run(prompts, PromptsConfig(sources=(source,)).pinned())
    with pytest.raises(ValueError, match=r"each of the 40 rows of .* \(gsm8k 40\)"):
        bench.run(decontaminate_prompts, made, config)


def make_pairs(ws: Workspace, config: DecontaminateConfig) -> Preferences:
    pairs = [(turns(harmless(i), "Yes."), turns(harmless(i), "No.")) for i in range(6)]
    pairs += [(turns(question(1), "Yes."), turns(question(1), "No."))]
    pairs += [(turns("Ask me.", "Yes."), turns("Ask me.", question(2)))]
    rows = [{"id": str(n), "chosen": chosen, "rejected": rejected} for n, (chosen, rejected) in enumerate(pairs)]
    ws.write_jsonl("preferences.jsonl.zst", rows)
    return ws.artifact(Preferences, pairs=len(rows), ties=0, mean_chosen=1.0, mean_rejected=0.0)


def test_pairs_lose_items_of_either_side(bench, config, tmp_path):
    made = bench.run(stage(make_pairs, name="test-pairs", version=1), config)
    clean = bench.run(decontaminate_pairs, made, config)
    assert (clean.pairs, clean.dropped) == (6, {"contaminated": 2})


def test_sources_made_from_a_split_of_their_own_are_exempt_and_say_so(bench, config, tmp_path):
    kind = ArithmeticConfig(max_operand=9)
    leaky = ChatRows(name="quiz", rows=write(tmp_path / "c.jsonl", [{"messages": turns(question(0), answer(0))}]))
    made = bench.run(
        chats,
        ChatsConfig(sources=(SyntheticChats(name="sums", problems=(kind,), count=20), leaky)).pinned(),
    )
    clean = bench.run(decontaminate_chats, made, config.model_copy(update={"exempt": {"sums": "own split"}}))
    assert (clean.sources, clean.dropped) == ({"sums": 20}, {"contaminated": 1})
    assert bench.json(clean, "exempt.json") == {"sums": "own split"}


def test_rules_are_those_of_each_source(bench, config):
    """The first shot is training data, so only the source that asks for all splits loses it."""
    shot = {"question": harmless(77), "answer": "For reasons. #### 7"}
    path = bench.root / "shots.jsonl"
    benchmark = config.benchmarks[0].model_copy(update={"shot_rows": write(path, [shot])})
    rule = OverlapRule(splits="all")
    both = DecontaminateConfig(benchmarks=(benchmark.pinned(),), sources={"flan": rule})
    text = harmless(77)
    plain = bench.run(decontaminate, bench.documents([text, "other words here"], "plain"), both)
    flan = bench.run(decontaminate, bench.documents([text, "other words here"], "flan"), both)
    assert (plain.documents, flan.documents) == (2, 1)
    small = DecontaminateConfig(benchmarks=both.benchmarks, sources={"flan": OverlapRule(ngram=3, max_overlap=0.01)})
    piece = "the sells a red lamps and others in the market by the sea"
    assert bench.run(decontaminate, bench.documents([piece, "x"], "plain2"), small).documents == 2
    piece += " how many lamps"
    assert bench.run(decontaminate, bench.documents([piece, "x"], "flan"), small).documents == 1


SPLITS = """
import json
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark
from tasks.evaluation.benchmarks.splits import items_of_splits
found = {}
for task in ("gsm_star", "gsm8k_held_out"):
    pinned = OlmesBenchmark.model_validate({"kind": "olmes", "task": task}).pinned()
    for splits in ("held_out", "all"):
        items = list(items_of_splits(pinned, splits))
        kinds = {kind: sorted(item.text for mine, item in items if mine == kind) for kind in ("held_out", "all")}
        assert len({item.id for _, item in items}) == len(items)
        found[f"{task} {splits}"] = kinds
print(json.dumps(found))
"""


def test_all_splits_of_a_task_of_olmes_count(tmp_path):
    """A task asks some rows of the test split only, and a split without answers is read by its texts."""

    def lines(split: str, count: int) -> bytes:
        rows = [{"question": f"{split} question {i}?", "answer": f"So. #### {i}"} for i in range(count)]
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    contents = {
        "README.md": b"---\nconfigs:\n- config_name: main\n  data_files:\n"
        + b"".join(f"  - split: {name}\n    path: main/{name}.jsonl\n".encode() for name in ("train", "test", "hidden"))
        + b"---\n",
        "main/train.jsonl": lines("train", 5),
        "main/test.jsonl": lines("test", 1319),
        "main/hidden.jsonl": json.dumps({"question": "hidden question?", "notes": ["told nowhere"]}).encode() + b"\n",
    }
    with CountingHub(0, contents) as hub:
        environment = {"HF_ENDPOINT": hub.url, "XDG_CACHE_HOME": str(tmp_path / "c"), "HF_HOME": str(tmp_path / "h")}
        run = subprocess.run(
            [sys.executable, "-c", SPLITS], env={**os.environ, **environment}, capture_output=True, text=True
        )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    for task in ("gsm_star", "gsm8k_held_out"):
        few, every = found[f"{task} held_out"], found[f"{task} all"]
        assert (len(few["held_out"]), len(few["all"])) == (1319 + 1, 0)
        assert "hidden question?\ntold nowhere" in few["held_out"]
        assert (len(every["held_out"]), len(every["all"])) == (1320, 5)
        assert all("train question" in text for text in every["all"])


CAFE = "Zoë naïvely serves eleven crème brûlée desserts at the café on every day of the week in summer"
DISGUISES = {
    "decomposed": unicodedata.normalize("NFD", CAFE),
    "zero width": CAFE.replace("s", "s\u200b").replace("d", "\u200dd\ufeff"),
    "soft hyphens": CAFE.replace("serves", "ser\u00adves").replace("every", "ev\u00adery"),
    "variation selectors": CAFE.replace("e", "e\ufe0f"),
    "capitals": CAFE.upper(),
    "full width": "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in CAFE),
    "punctuation": CAFE.replace(" ", " — “").replace("day", "…day·"),
    "no-break spaces": CAFE.replace(" ", "\u00a0"),
    "arabic and dingbats": CAFE.replace(" ", " ✱ ، "),
    "decomposed around a joiner": unicodedata.normalize("NFD", CAFE).replace("\u0302", "\u2060\u0302"),
    "word joiner": "\u2060".join(CAFE),
}


@pytest.mark.parametrize("text", DISGUISES.values(), ids=DISGUISES)
def test_spelling_hides_no_item(bench, tmp_path, text):
    rows = write(tmp_path / "quiz.jsonl", [{"question": CAFE, "answer": "#### 77"}])
    benchmark = GSM8KBenchmark(rows=rows).pinned()
    made = bench.run(decontaminate, bench.documents([text, harmless(1)]), DecontaminateConfig(benchmarks=(benchmark,)))
    assert made.documents == 1
    hidden = GSM8KBenchmark(rows=write(tmp_path / "hidden.jsonl", [{"question": text, "answer": "#### 7"}])).pinned()
    made = bench.run(decontaminate, bench.documents([CAFE, harmless(1)]), DecontaminateConfig(benchmarks=(hidden,)))
    assert made.documents == 1


def test_accents_still_tell_words_apart():
    assert word_ngrams(["resume"], 1, fold=True).hashes[0] != word_ngrams(["résumé"], 1, fold=True).hashes[0]
