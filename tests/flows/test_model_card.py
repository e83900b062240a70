"""The model card tells what the records tell. Oracles: the records, a YAML parser and a Markdown parser."""

import re
from pathlib import Path
from typing import Any

import markdown
import pytest
import yaml

from flows.inspection.artifacts import export_checkpoint
from flows.inspection.costs.cost import environment
from flows.inspection.model_card import CARD, model_card
from infra.records.footprint import Footprint, footprint
from infra.records.record import Record, lineage, load_record
from infra.settings import StatedSite
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Checkpoint, Documents, Scores
from tasks.evaluation.reporting.words import footprint_words, mass, volume
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


def card_of(root: Path, **execution: Any) -> tuple[str, list[Record]]:
    """The card of a checkpoint that was made from documents, and the records of both."""
    bench = Bench(root, **execution)
    documents = bench.run(read, "collect", config=Source())
    checkpoint = bench.run(fit, "sft", documents=documents, config=Nothing())
    known = load_record(bench.session.store, "sft", checkpoint.id)
    assert known is not None
    return model_card(bench.session.store, known), lineage(bench.session.store, known)


def test_a_card_tells_co2_and_water_at_the_stated_site(tmp_path: Path):
    """By hand: watts x seconds are the energy; kWh x PUE x amount per kWh are kg and litres, as the plan has them."""
    site = {"pue": 1.12, "carbon": 0.351, "water": 3.1}
    card, made = card_of(tmp_path, watts={"default": 1e9}, site=site)
    kwh = sum(record.seconds for record in made) * 1e9 / 3.6e6
    co2, water = environment(kwh, StatedSite(**site).planned())
    expected = Footprint(
        stages=2, co2_kg=co2, co2_stages=2, water_litres=water, water_stages=2,
        sites=["PUE 1.12, 0.351 kg of CO2 per kWh, 3.1 L of water per kWh"], missing=[],
    )  # fmt: skip
    assert all(record.seconds > 0 for record in made), "a stage that takes no time proves nothing"
    assert footprint_words(expected) in card
    assert f"CO2: {mass(kwh * 1.12 * 0.351)}, of 2 of 2 stages." in card
    assert f"Water: {volume(kwh * 1.12 * 3.1)}, of 2 of 2 stages." in card
    assert "lack" not in card


def test_a_card_without_a_stated_site_has_no_co2_and_says_why(tmp_path: Path):
    card, _ = card_of(tmp_path, watts={"default": 1e9}, site={"pue": 1.2, "water": 1.29})
    assert "No figure for CO2. Water: " in card
    assert "2 of 2 stages lack a stated execution.site.carbon." in card


def test_energy_that_is_not_known_has_no_co2(tmp_path: Path):
    bench = Bench(tmp_path, site={"pue": 1.2, "carbon": 0.332, "water": 1.29})
    record = bench.outcome(read, "collect", config=Source()).record.model_copy(update={"energy_joules": None})
    found = footprint([record])
    assert (found["co2_kg"], found["water_litres"]) == (None, None)
    assert found["missing"] == ["1 of 1 stages lack energy, which nothing counted and execution.watts does not state."]
