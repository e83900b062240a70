"""Named mixes. Oracles: golden/dolmino_mix.json (paper Table 13 and the released file lists), golden/mid_training_candidates.json
(paper Table 10), Table 5's rows.
"""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from tasks.artifacts import Tokens
from tasks.data.documents.mix_presets import MATH_PARTS, PresetName, preset
from tasks.data.mix import MixConfig, plan_mix

GOLDEN = Path(__file__).parents[2] / "golden"
DOLMINO = json.loads((GOLDEN / "dolmino_mix.json").read_text())
CANDIDATES = json.loads((GOLDEN / "mid_training_candidates.json").read_text())
TABLE_13 = {
    "filtered_web": "Filtered DCLM",
    "flan": "Decontaminated FLAN",
    "stackexchange": "StackExchange Q&A",
    "papers": "peS2o",
    "wiki": "Wikipedia/Wikibooks",
    "math": "Dolmino Math",
}
# Our names in the order of the golden list's keys.
LISTED = {
    "persona_maths": "personahub_math_v5",
    "arithmetic": "basic_math",
    "gsm8k_numbers": "gsm8k-synth(resample 6x)",
    "gsm8k_mind": "gsm_MIND",
    "gsm8k_main": "gsm8k main train",
    "gsm8k_socratic": "gsm8k socratic train",
    "metamath": "owm-filtered metamath",
    "multi_addition": "basic_math multiadd",
    "books_ajibawa": "mathcoder2 ajibawa",
    "books_matrix": "mathcoder2 filtered-math",
    "tinygsm_solving": "tinyGSM mind (problem solving)",
    "tinygsm_students": "tinyGSM mind-2students",
    "persona_grade_school": "tulu-3 personas math grade",
    "persona_algebra": "tulu personahub interm algebra 20k",
}
COLUMNS = (
    "pt-mix",
    "web-ft7",
    "web-ft7-fw3",
    "web-ft7-fw2",
    "web-ft7-fw2-math",
    "web-ft7-fw2-ins",
    "web-ft7-fw2-math-ins",
)


def tokens(source: str, count: int) -> Tokens:
    files = {f"tokens/{index:05d}.npy": count // 100 for index in range(100)}
    return Tokens(
        stage="encode", id=source, address=f"encode/{source}", digest=source, source=source,
        tokens=count // 100 * 100, documents=1, ranks=300, files=files,
    )  # fmt: skip


@pytest.mark.parametrize("size", ["50B", "100B", "300B"])
def test_table_13_is_read_so_many_times(size: str):
    table = DOLMINO["table13"]
    column = table["columns"].index(f"{size}_source_pct")
    found = MixConfig.model_validate({"preset": f"dolmino-{size.lower()}"})
    assert found.part == "whole_files"
    passes = {TABLE_13[item.source]: item.passes for item in found.sources}
    assert passes == {row[0]: pytest.approx(row[column] / 100) for row in table["rows"]}


@pytest.mark.parametrize("size", ["50B", "100B", "300B"])
def test_listed_presets_hold_what_the_file_lists_hold(size: str):
    lists = DOLMINO["file_lists"]
    parts = {name: lists["math_unit_MT"][key] / 1000 for name, key in LISTED.items()}
    assert set(parts) == set(MATH_PARTS)
    listed = lists["50B" if size == "50B" else f"{size}_as_in_file_lists"]["tokens_B"]
    amounts = preset(f"dolmino-{size.lower()}-listed").amounts  # type: ignore[arg-type]
    assert sum(amounts[name] * parts[name] for name in parts) == pytest.approx(listed["math"], abs=0.001)
    for name, key in (("flan", "flan"), ("stackexchange", "stackexchange"), ("wiki", "wiki")):
        once = lists["100B_accounting_that_reproduces_Table13"]["tokens_B"][key] / preset("dolmino-100b").amounts[name]
        assert amounts[name] * once == pytest.approx(listed[key], abs=0.005)


@pytest.mark.parametrize("column", range(7))
def test_candidates_have_the_shares_of_table_10(column: int):
    printed = [row[column + 1] for row in CANDIDATES["rows"] if row[column + 1] is not None]
    assert sum(printed) == pytest.approx(100, abs=0.25)
    found = MixConfig.model_validate({"preset": COLUMNS[column]})
    assert found.requested_tokens == 50_000_000_000
    assert [100 * (item.ratio or 0) for item in found.sources] == pytest.approx(printed, abs=0.15)


def test_a_candidate_mix_realises_its_shares():
    config = MixConfig.model_validate({"preset": "web-ft7-fw2-ins", "requested_tokens": 500_000, "sequence_length": 10,
                                       "batch_size": 10})  # fmt: skip
    entries = plan_mix({item.source: tokens(item.source, 400_000) for item in config.sources}, config)
    total = sum(entry.tokens for entry in entries)
    assert total == 500_000
    for item in config.sources:
        own = sum(entry.tokens for entry in entries if entry.source == item.source)
        assert own / total == pytest.approx(item.ratio, abs=0.002)


def test_table_5_once():
    """Its two halves: 832.6B tokens of high quality and 10.7B of mathematics, in billions by row."""
    rows = {"filtered_web": 752, "flan": 17.0, "papers": 58.6, "wiki": 3.7, "stackexchange": 1.26}
    assert preset("dolmino-high-quality").amounts == dict.fromkeys(rows, 1.0)
    assert sum(rows.values()) == pytest.approx(832.6, abs=0.1)
    assert set(preset("dolmino-math").amounts) == {*MATH_PARTS, "codesearchnet"}


@pytest.mark.parametrize("name", get_args(PresetName))
def test_a_preset_is_a_mix_and_no_part_of_its_identity(name: Any):
    config = MixConfig(preset=name)
    spelt = MixConfig.model_validate(config.model_dump())
    assert "preset" not in config.model_dump(mode="json")
    assert spelt.model_dump() == config.model_dump()
    assert MixConfig.model_validate(config.model_dump() | {"preset": name}).model_dump() == config.model_dump()


def test_a_preset_and_other_sources_are_refused():
    with pytest.raises(ValueError, match="preset='dolmino-50b' names the sources, and `sources` names others"):
        MixConfig.model_validate({"preset": "dolmino-50b", "sources": [{"source": "web"}]})
    with pytest.raises(ValueError, match="dolmino-100b"):
        MixConfig.model_validate({"preset": "dolmino-500b"})
