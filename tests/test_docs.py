"""Documentation that cannot rot: citations of the facts page, links between files, pages that the site names, and the words."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FACTS = ROOT / "docs/recipe/index.md"
TRACKED = subprocess.run(
    ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
).stdout.splitlines()
PAGES = [name for name in TRACKED if name.endswith(".md") and (ROOT / name).is_file()]

CITATION = re.compile(r"\bRECIPE ((?:[A-K]|0)(?:\.\d+)?(?:, (?:[A-K]\.\d+|[A-K](?![\w.])))*)")
"""A letter, perhaps with a number, and more of them after commas: "RECIPE C.3, C.7, G"."""


def sections() -> set[str]:
    """Names by which the facts page can be cited: C, C.7, and 0.15 for a row of the table of disagreements."""
    text = FACTS.read_text()
    headings = re.findall(r"^#{2,3} (0|[A-K](?:\.\d+)?)\.? ", text, flags=re.MULTILINE)
    return {*headings, *(f"0.{number}" for number in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE))}


def test_the_facts_page_has_all_its_letters():
    assert {"0", *"ABCDEFGHIJK"} <= sections()


@pytest.mark.parametrize("name", [name for name in TRACKED if name.endswith((".py", ".yaml", ".md", ".j2"))])
def test_every_citation_resolves(name: str):
    path = ROOT / name
    if not path.is_file() or path == FACTS:
        return
    known = sections()
    for match in CITATION.finditer(path.read_text()):
        for cited in match[1].split(", "):
            assert cited in known, f"{name} cites RECIPE {cited}, which {FACTS.relative_to(ROOT)} has not"


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_leads_to_a_file(name: str):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)):
        if re.match(r"[a-z]+:|#", target):
            continue
        assert (page.parent / target.split("#")[0]).exists(), f"{name} links to {target}, which is not there"


class _SiteLoader(yaml.SafeLoader):
    """mkdocs.yml names a Python function by a tag that a safe loader does not know."""


_SiteLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)


def test_the_site_names_every_page():
    def pages(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        members = entry.values() if isinstance(entry, dict) else entry
        return [page for member in members for page in pages(member)]

    site = yaml.load((ROOT / "mkdocs.yml").read_text(), _SiteLoader)
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert set(pages(site["nav"])) == written


def decisions() -> dict[str, str]:
    """Sections of the page of decisions by their title."""
    _, *found = re.split(r"^## ", (ROOT / "docs/decisions.md").read_text(), flags=re.MULTILINE)
    return {title: text for title, _, text in (section.partition("\n") for section in found)}


@pytest.mark.parametrize("title", decisions())
def test_a_decision_is_context_decision_and_consequence_in_120_words(title: str):
    text = decisions()[title]
    parts = re.findall(r"^\*(\w+)\.\*", text, flags=re.MULTILINE)
    assert parts == ["Context", "Decision", "Consequence"]
    assert len(text.split()) <= 120, f"{title} has {len(text.split())} words"


def test_decisions_are_numbered_in_order():
    assert [title.partition(".")[0] for title in decisions()] == [str(number + 1) for number in range(len(decisions()))]


DIALECT = {
    r"\banew\b": "again",
    r"\bbeside\b": "next to, besides, together with or alongside",
    r"\b(weights|model|gradients|group's|stays?),? in parts\b|\bin parts \((fsdp|Holding)": "sharded",
    r"\bmatrix products?\b|\b(bf16|fp32|packed|batched) products?\b|\b(type|precision) of the products\b": "matmul",
    r"\bactivations and products\b": "activations and matmuls",
    r"\b(first worker|worker 0|first rank)\b": "rank 0",
    r"\bkey-value cache\b|\bcache of keys and values\b": "KV cache",
}
"""Words that this project once used for things that the field has a name for: pattern -> the word to use."""

FIELD_WORDS = (
    "all-reduce|gather|gradient accumulation|micro-batch|data parallel|rank 0|world size|sharded|matmul|prefill|decode|"
    "KV cache|straggler|back-pressure|heartbeat|fencing token"
)
"""Names that a newcomer searches for; each stands in prose where its thing is."""

PROSE = [name for name in TRACKED if name.endswith((".py", ".md")) and (ROOT / name).is_file()]


def prose(name: str) -> Iterator[tuple[int, str]]:
    """(line, text) of what people read: docstrings of modules, classes, functions and fields, comments, pages without code."""
    text = (ROOT / name).read_text()
    if name.endswith(".md"):
        for number, line in enumerate(re.sub(r"```.*?```", _blank, text, flags=re.DOTALL).splitlines(), 1):
            yield number, re.sub(r"`[^`]*`", "", line)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, " ".join(node.value.value.split())
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _blank(code: re.Match[str]) -> str:
    """As many empty lines as a block of code has, so that numbers of lines stay."""
    return "\n" * code[0].count("\n")


@pytest.mark.parametrize("name", PROSE)
def test_prose_has_the_words_of_the_field(name: str):
    found = [
        f"{name}:{line} says {match[0]!r}; write {better}"
        for line, text in prose(name)
        for pattern, better in DIALECT.items()
        if (match := re.search(pattern, text, flags=re.IGNORECASE))
    ]
    assert not found, "\n".join(found)


def test_what_a_newcomer_searches_for_is_found():
    text = " ".join(line for name in PROSE if not name.startswith("tests/") for _, line in prose(name)).lower()
    counts = {word: text.count(word.lower()) for word in FIELD_WORDS.split("|")}
    assert min(counts.values()) >= 5, counts


def test_the_page_on_published_recipes_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "published-recipes.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file} has no {name}"
