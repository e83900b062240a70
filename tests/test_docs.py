"""Documentation that cannot rot: citations of the facts page, links between files, and pages that the site names."""

import re
import subprocess
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
