"""What `data funnel` and the report say of a source's reading. Oracle: counts of the files that the test wrote."""

import io

from rich.console import Console

from flows.inspection.curated import curated
from flows.inspection.funnel import CurationStep, funnel, print_funnel, reading_line
from tasks.artifacts import ReadCounts
from tasks.data.collect import collect
from tasks.data.sources.local import LocalSource
from tests.tasks.data.conftest import Bench


def told(bench: Bench) -> tuple[list[CurationStep], str]:
    steps = funnel(curated(None, bench.store.url))
    out = io.StringIO()
    print_funnel(Console(file=out, force_terminal=True, width=300), steps)
    return steps, out.getvalue()


def test_the_funnel_says_what_was_read_and_in_red_when_rows_are_missing(tmp_path):
    bench = Bench(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n' * 97 + b'{"text": "cut\n' * 2 + b'{"no": "text"}\n')
    bench.run(collect, LocalSource(name="web", paths=(str(path),), max_bad_fraction=0.5).pinned())
    (step,), text = told(bench)
    reading = step["reading"]
    assert reading is not None
    assert {key: reading[key] for key in ("files", "bad_files", "rows", "read", "documents")} == {
        "files": 1,
        "bad_files": 0,
        "rows": 100,
        "read": 97,
        "documents": 97,
    }
    assert "1 files, 100 rows listed, 97 read (97.00 %), 97 kept; unusable: no_text 1, not_json 2" in text
    assert "\x1b[1;31m" in text


def test_a_source_that_was_read_whole_is_not_in_red(tmp_path):
    bench = Bench(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n' * 50)
    bench.run(collect, LocalSource(name="web", paths=(str(path),)).pinned())
    _, text = told(bench)
    assert "1 files, 50 rows listed, 50 read (100.00 %), 50 kept" in text
    assert "\x1b[1;31m" not in text


def test_less_than_everything_is_never_shown_as_everything():
    facts: ReadCounts = {
        "files": 2,
        "bad_files": 1,
        "rows": 1_000_000,
        "read": 999_999,
        "documents": 999_999,
        "bad": {"not_json": 1},
        "first_bad_files": ["a.jsonl"],
    }
    text, style = reading_line(facts)
    assert "(99.99 %)" in text
    assert style == ""
    assert reading_line({**facts, "read": 998_999})[1] == "bold red"
