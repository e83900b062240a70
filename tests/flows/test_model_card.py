"""The model card tells what the records tell. Oracles: the records, a YAML parser and a Markdown parser."""

import re
from pathlib import Path

import markdown
import pytest
import yaml

from flows.inspection.artifacts import export_checkpoint
from flows.inspection.model_card import CARD, model_card
from infra.records.record import load_record
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Checkpoint, Documents, Scores
from tests.tasks.training.conftest import Bench

PLANTED = "<script>alert(1)</script> | [x](javascript:1)"


class Source(Config):
    kind: str = "hub"
    name: str = PLANTED
    dataset: str = "allenai/dolma"
    revision: str = "a" * 40


class Nothing(Config):
    chat: bool = False


def read(ws: Workspace, config: Source) -> Documents:
    ws.write("documents/0.txt", b"a")
    return ws.artifact(Documents, documents=1, bytes=1, sources={"web": 1})


def fit(ws: Workspace, documents: Documents, config: Nothing) -> Checkpoint:
    ws.write("config.json", b"{}")
    ws.write("model.safetensors", b"weights")
    facts = {"steps": 1, "tokens": 1, "parameters": 1_234_567, "loss": 1.0, "ranks": 300, "parent": "", "flops": 2e9}
    return ws.artifact(Checkpoint, **facts)


def score(ws: Workspace, checkpoint: Checkpoint, config: Nothing) -> Scores:
    ws.write("scores.json", b"{}")
    primary, errors = {"sums": 0.25, PLANTED: 0.5}, {"sums": 0.0125, PLANTED: 0.1}
    return ws.artifact(Scores, label="x", checkpoint=checkpoint.digest, primary=primary, stderr=errors)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Bench, Checkpoint]:
    bench = Bench(tmp_path / "store")
    documents = bench.run(read, "collect", config=Source())
    checkpoint = bench.run(fit, "sft", documents=documents, config=Nothing())
    bench.run(score, "evaluate", checkpoint=checkpoint, config=Nothing())
    return bench, checkpoint


def test_an_export_has_a_card_with_data_scores_recipe_and_how_to_load(made: tuple[Bench, Checkpoint], tmp_path: Path):
    bench, checkpoint = made
    written = export_checkpoint(bench.session.store, checkpoint.id, tmp_path / "out")
    assert CARD in written
    text = (tmp_path / "out" / CARD).read_text()
    _, matter, card = text.split("---\n", 2)
    front = yaml.safe_load(matter)
    assert front["datasets"] == ["allenai/dolma"]
    assert front["library_name"] == "transformers"
    assert "1,234,567 parameters" in card
    assert "| sums | 0.2500 | 0.0125 |" in card
    assert "apply_chat_template" in card, "a checkpoint of sft is addressed as a chat"
    assert checkpoint.digest in card
    assert "2e+09 FLOPs" in card
    assert "hub" in card and "a" * 40 in card


def test_nothing_in_a_card_becomes_markup(made: tuple[Bench, Checkpoint]):
    bench, checkpoint = made
    known = load_record(bench.session.store, "sft", checkpoint.id)
    assert known is not None
    page = markdown.markdown(model_card(bench.session.store, known), extensions=["tables", "fenced_code"])
    assert not set(re.findall(r"<([a-z0-9]+)", page)) & {"script", "a", "img"}, page
    rows = [row for row in page.split("<tr>") if "alert" in row]
    assert len(rows) == 2
    assert all(row.count("<td") == 4 for row in rows), "a bar in a name makes no cell"
