"""Fields of a row next to its text, wherever they stand, reach the rules. Oracle: the field as it was written."""

import json

import orjson
import pytest

from tasks.data.collect import collect
from tasks.data.filters.stars import StarsScorer, score_stars
from tasks.data.sources.intake import metadata_of
from tasks.data.sources.local import LocalSource


def test_stars_may_be_text():
    documents = [{"id": "a", "metadata": {"max_stars_count": count}} for count in ("12", 12, "", None, " 3.0 ")]
    assert score_stars(documents, StarsScorer()).values["count"] == [12.0, 12.0, 0.0, 0.0, 3.0]
    with pytest.raises(ValueError, match="'many' is not a number"):
        score_stars([{"id": "b", "metadata": {"max_stars_count": "many"}}], StarsScorer())


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "u"},
        {"metadata": {"url": "u"}},
        {"metadata": json.dumps({"url": "u"})},
        {"metadata": {"metadata": {"url": "u"}}},
        {"url": "outer", "metadata": {"url": "u"}},
    ],
)
def test_a_field_is_found_wherever_it_stands(fields):
    assert metadata_of({"id": "1", "text": "t", **fields}) == {"url": "u"}


def test_a_byte_order_mark_costs_no_row(bench, tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(orjson.dumps({"text": f"t{i}"}) + b"\n" for i in range(5)))
    assert bench.run(collect, LocalSource(name="web", paths=(str(path),)).pinned()).documents == 5
