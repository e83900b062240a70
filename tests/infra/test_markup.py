"""Planted markup in what data, models and recipes give is shown as text. Oracles: a Markdown parser, and the bytes sent to a
terminal.
"""

import io
import re

import markdown
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.schemas.actions import ArtifactCreate
from rich.table import Table
from rich.text import Text

from flows.cli.plain_console import PlainConsole
from infra.execution.markdown import code, escaped, slug

PLANTED = (
    "<img src=x onerror=alert(1)>",
    "</td></tr></table><script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "<https://evil.example>",
    "| a | b |",
    "`</code><svg onload=alert(1)>`",
    "# heading\n\n* item\n\n```\nfence",
    "&lt;script&gt; &#60;b&#62;",
    "**bold** _it_ ~~gone~~",
)
MARKUP = st.text(alphabet=st.sampled_from("<>&[]()!`|*_#\\\n\r\t ab:/=\"'\x1b\u2028"), max_size=40)


def shown(text: str, wrapped: str) -> str:
    """A Markdown table with the text in its second cell as HTML."""
    return markdown.markdown(f"| fact | value |\n|---|---|\n| name | {wrapped} |\n", extensions=["tables"])


@pytest.mark.parametrize("make", [escaped, code])
@pytest.mark.parametrize("text", PLANTED)
def test_planted_markup_stays_text_in_a_table_of_markdown(text: str, make):
    page = shown(text, make(text))
    tags = set(re.findall(r"</?([a-z]+)", page))
    assert tags <= {"table", "thead", "tbody", "tr", "th", "td", "code"}, page
    assert page.count("<td>") == 2, page
    assert "href" not in page.replace("&quot;", "")


@given(MARKUP)
def test_no_text_makes_an_element_of_markdown(text: str):
    page = shown(text, escaped(text))
    assert set(re.findall(r"</?([a-z]+)", page)) <= {"table", "thead", "tbody", "tr", "th", "td"}, page


@pytest.mark.parametrize("text", ["collect:<b>", "Ärger/ß", "日本語", "", "anneal:42-artifact", "../../etc"])
def test_keys_of_the_dashboard_are_ones_that_it_takes(text: str):
    assert ArtifactCreate(key=slug(text)).key


@pytest.mark.parametrize("text", ["[/red]", "[link=https://evil.example]x[/link]", "[bold", "a [b] :smile:"])
def test_brackets_are_no_markup_in_the_terminal(text: str):
    out = io.StringIO()
    console = PlainConsole(file=out, width=120, force_terminal=True)
    table = Table("head", box=None)
    table.add_row(text)
    console.print(text, highlight=False)
    console.print(table)
    assert out.getvalue().count(text) == 2
    assert "evil.example\x1b" not in out.getvalue()


@given(st.text(alphabet=st.sampled_from("ab \x1b\x07\x08\x9b\r\x00\u202e[]0;mK"), max_size=30))
def test_no_text_reaches_the_terminal_as_a_control_sequence(text: str):
    out = io.StringIO()
    console = PlainConsole(file=out, width=400, color_system=None)
    table = Table("head", box=None)
    table.add_row(text)
    for item in (text, Text(text), table):
        console.print(item, highlight=False)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out.getvalue())
