"""The page of dropped documents. Oracle: what the rule matched, written out by hand, and texts that try to be HTML."""

import re
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.inspection.examples_page import SHOWN_CHARACTERS, marked
from tasks.data.filters.statistics.repetition import RepetitionRule
from tests.tasks.data.conftest import Bench

SCRIPT = "<script>alert(1)</script></pre></mark>"


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("a <b> c", [(2, 5)], "a <mark>&lt;b&gt;</mark> c"),
        ("abcdef", [(0, 2), (1, 4)], "<mark>ab</mark><mark>cd</mark>ef"),
        ("abc", [(1, 9)], "a<mark>bc</mark>"),
        ("abc", [], "abc"),
    ],
)
def test_spans_are_marked_and_all_else_is_escaped(text, spans, expected):
    assert str(marked(text, spans)) == expected


def test_a_long_text_is_shown_around_its_first_match():
    text = "x" * 10 * SHOWN_CHARACTERS
    place = 5 * SHOWN_CHARACTERS
    page = str(marked(text[:place] + "match" + text[place:], [(place, place + 5)]))
    assert "<mark>match</mark>" in page
    assert len(page) < SHOWN_CHARACTERS + 100


def test_the_command_writes_a_page_with_what_matched(tmp_path: Path):
    bench = Bench(tmp_path)
    run = "again and " * 60
    made = bench.documents([f"{SCRIPT} number {number}.\n{run}\nThe end." for number in range(5)] + ["a good text"])
    assert bench.filtered(made, RepetitionRule()).documents == 1
    page = tmp_path / "page.html"
    words = ["data", "look", "--dropped", "repetition", "--sample", "3", "--html", str(page)]
    result = CliRunner().invoke(app, [*words, "--store", bench.store.url])
    assert result.exit_code == 0, result.output
    html = page.read_text()
    assert html.count("<article") == 3
    assert "<script>" not in html
    found = [unescape(text) for text in re.findall(r"<mark>(.*?)</mark>", html, re.DOTALL)]
    assert len(found) == 3
    assert all(text.strip() in run for text in found)
    shown = CliRunner().invoke(
        app, ["data", "look", "--dropped-by", "repetition", "-n", "2", "--store", bench.store.url]
    )
    assert shown.output.count("again and again") >= 2
