"""Stack Exchange dumps. Oracles: RECIPE C.5's selection and separator on posts written by hand; hypothesis for the separator."""

import gzip
import re
from html import escape
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.collect import collect
from tasks.data.sources.stackexchange import StackExchangeSource, is_good_pair, join_pair, plain_text


def row(**attributes: Any) -> str:
    # As the dumps have it: one row per line, line breaks of a text as character references.
    shown = {name: escape(str(value)).replace("\n", "&#xA;") for name, value in attributes.items()}
    return "  <row " + " ".join(f'{name}="{value}"' for name, value in shown.items()) + " />"


def question(id: int, score: int, accepted: int | None, body: str = "<p>Why?</p>", **more: Any) -> str:
    answer = {} if accepted is None else {"AcceptedAnswerId": accepted}
    return row(Id=id, PostTypeId=1, **answer, Score=score, Title=f"Title &nbsp; {id}", Body=body, **more)


def answer(id: int, parent: int, score: int, body: str = "<p>Because.</p>") -> str:
    return row(Id=id, PostTypeId=2, ParentId=parent, Score=score, Body=body)


CODE = "<p>Use <code>a &lt; b</code>:</p>\n\n<pre><code>if a:\n\n\n    b\n</code></pre>"
POSTS = [
    '<?xml version="1.0" encoding="utf-8"?>',
    "<posts>",
    question(1, 3, 11, Tags="<xml>", CreationDate="2010-07-01T00:00:00.000"),
    question(2, 2, 12),
    question(3, 9, None),
    question(4, 9, 14),
    question(5, 9, 99),
    row(Id=6, PostTypeId=4, Score=50, Body="a wiki page"),
    answer(10, 1, 500),
    answer(11, 1, 5, CODE),
    answer(12, 2, 90),
    answer(13, 3, 90),
    answer(14, 4, 4),
    "</posts>",
]


def test_pairs_are_selected_and_joined_as_published(bench):
    sites = bench.root / "dump"
    for site, posts in (("math.stackexchange.com", POSTS), ("cooking.stackexchange.com", POSTS[:3] + POSTS[9:10])):
        folder = sites / site
        folder.mkdir(parents=True)
        (folder / "Posts.xml.gz").write_bytes(gzip.compress("\n".join(posts).encode()))
    (sites / "math.stackexchange.com" / "Comments.xml").write_text("<comments/>")
    made = bench.run(collect, StackExchangeSource(name="stackexchange", paths=(str(sites),)).pinned())
    rows = bench.rows(made, "documents/")
    assert [row["id"] for row in rows] == ["cooking.stackexchange.com/1", "math.stackexchange.com/1"]
    # The answer's longest run has three newlines, so the separator has four.
    asked = "Title &nbsp; 1\n\nWhy?"
    assert rows[0]["text"] == asked + "\n" * 4 + plain_text(CODE)
    assert "if a:\n\n\n    b" in rows[0]["text"] and "a < b" in rows[0]["text"]
    assert rows[0]["metadata"] == {
        "site": "cooking.stackexchange.com", "question_id": "1", "answer_id": "11", "question_votes": 3, "answer_votes": 5,
        "tags": "<xml>", "url": "https://cooking.stackexchange.com/questions/1",
    }  # fmt: skip
    selection = bench.json(made, "selection/00001.json")
    assert selection == {
        "site": "math.stackexchange.com", "questions": 5, "pairs": 1, "few question votes": 1, "no accepted answer": 1,
        "few answer votes": 1, "accepted answer is missing": 1,
    }  # fmt: skip


def test_a_broken_line_is_kept_aside_and_the_rest_is_read(bench):
    folder = bench.root / "a.stackexchange.com"
    folder.mkdir()
    (folder / "Posts.xml").write_text("\n".join([*POSTS[:3], '  <row Id="7" Body="cut', *POSTS[3:]]))
    source = StackExchangeSource(name="stackexchange", paths=(str(folder / "Posts.xml"),), max_bad_fraction=0.6)
    made = bench.run(collect, source.pinned())
    assert (made.documents, made.dropped) == (1, {"not_xml": 1})
    (bad,) = bench.rows(made, "bad/")
    assert bad["line"] == 4
    with pytest.raises(ValueError, match="matches no file"):
        StackExchangeSource(name="stackexchange", paths=(str(bench.root / "empty*"),)).pinned()


def test_good_pairs_by_votes():
    assert is_good_pair(3, 5)
    assert not any([is_good_pair(2, 5), is_good_pair(3, 4)])


@given(st.text(alphabet="a\n", max_size=12), st.text(alphabet="b\n", max_size=12))
def test_the_separator_is_longer_than_any_run_inside(question: str, answer: str):
    joined = join_pair(question, answer)
    assert joined.startswith(question) and joined.endswith(answer)
    longest = max((len(run) for run in re.findall("\n+", question) + re.findall("\n+", answer)), default=0)
    assert len(joined) == len(question) + len(answer) + longest + 1
