"""The audit of curation on a finished smoke run. Oracle: the payloads themselves, counted and read one by one here."""

import json
from collections import Counter
from pathlib import Path

import pytest

from flows.inspection.curated import Curated, curated
from flows.inspection.documents import look, matched_spans, why
from flows.inspection.funnel import funnel
from infra.storage.store import Store
from tasks.data.documents.dolma_files import written_rows
from tests.flows.conftest import olmo2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def asked(finished_smoke: Path) -> Curated:
    return curated(None, str(finished_smoke))


def rows_of(store: Path, pattern: str) -> list[dict]:
    return [row for path in sorted(store.glob(pattern)) for row in written_rows(path)]


def test_the_funnel_counts_what_the_files_hold(asked: Curated, finished_smoke: Path):
    steps = {step["step"]: step for step in funnel(asked)}
    web, raw = steps["filter:web"], steps["collect:web"]
    folder = f"filter/{web['id']}/g0001"
    kept, dropped = rows_of(finished_smoke, f"{folder}/documents/*"), rows_of(finished_smoke, f"{folder}/dropped/*")
    assert (
        (web["documents_in"], web["documents"])
        == (raw["documents"], len(kept))
        == (len(kept) + len(dropped), len(kept))
    )
    assert web["bytes"] == sum(len(row["text"].encode()) for row in kept)
    assert web["bytes_in"] == raw["bytes"]
    assert web["dropped"] == dict(Counter(row["reason"] for row in dropped).most_common()) != {}
    assert steps["encode:web"]["documents_in"] == steps["decontaminate"]["sources"]["web"]
    assert steps["encode:web"]["tokens"] * 4 == sum(
        path.stat().st_size for path in finished_smoke.glob(f"encode/{steps['encode:web']['id']}/g0001/tokens/*.npy")
    )


def test_a_recipe_and_what_was_made_of_it_have_the_same_funnel(finished_smoke: Path):
    told = {step["step"]: step for step in json.loads(olmo2("data", "funnel", "smoke", "--json", store=finished_smoke))}
    mixes = [path.name for path in (finished_smoke / "mix").iterdir()]
    above = json.loads(olmo2("data", "funnel", mixes[0], "--json", store=finished_smoke))
    assert above
    assert all(told[step["step"]] == step for step in above)


def test_look_shows_documents_that_were_dropped_for_the_reason(asked: Curated, finished_smoke: Path):
    by_id = {row["id"]: row for row in rows_of(finished_smoke, "filter/*/g0001/dropped/*")}
    reason = next(iter(Counter(row["reason"] for row in by_id.values())))
    examples = look(asked, reason, 3)
    assert len(examples) == 3
    for example in examples:
        assert by_id[example["id"]]["reason"] == reason
        assert example["excerpt"] in by_id[example["id"]]["text"]
    assert look(asked, reason, 3) == examples
    with pytest.raises(ValueError, match=rf"for 'nonsense'; reasons and their documents: .*{reason}"):
        look(asked, "nonsense", 3)


def test_why_follows_a_document_to_its_end(asked: Curated, finished_smoke: Path):
    dropped = next(row for row in rows_of(finished_smoke, "filter/*/g0001/dropped/*") if row["source"] == "web")
    steps = why(asked, dropped["id"])
    assert (steps[0]["step"], steps[0]["decision"]) == ("collect:web", "kept")
    assert (steps[-1]["decision"], steps[-1]["detail"]) == ("dropped", dropped["detail"])
    kept = rows_of(finished_smoke, "decontaminate/*/g0001/documents/*")[0]
    # The trial of curation reads it a second time, or sets it aside.
    steps = [step for step in why(asked, kept["id"]) if "trial" not in step["step"] and "set_aside" not in step["step"]]
    decisions = [step["decision"] for step in steps]
    assert decisions[0] == "kept"
    assert decisions[-1] == "encoded"
    assert "dropped" not in decisions
    scored = [step for step in why(asked, kept["id"]) if step.get("scores")]
    assert scored
    with pytest.raises(ValueError, match=r"no data stage .* has a document 'nobody'"):
        why(asked, "nobody")


def test_matched_spans_are_what_the_reason_points_at():
    row = {
        "id": "1", "source": "web", "reason": "repetition", "detail": "x", "text": "abc abc abc end",
        "attributes": {"olmo2__repetition__repeats": [[0, 11, 3.0]], "olmo2__length__chars": [[0, 15, 15.0]]},
    }  # fmt: skip
    assert matched_spans(row) == [(0, 11)]
    assert matched_spans(row | {"reason": "length"}) == []
    quoted = row | {
        "reason": "contaminated",
        "detail": "0.5 of n-grams, limit 0.1: 'abc end'",
        "text": "Is ABC --\n end?",
    }
    assert [quoted["text"][start:end] for start, end in matched_spans(quoted)] == ["ABC --\n end"]


def test_a_store_without_data_is_told(tmp_path: Path):
    Store(str(tmp_path)).write("x", b"")
    with pytest.raises(ValueError, match="no finished data stage"):
        curated(None, str(tmp_path))
