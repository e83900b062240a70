"""Word and URL lists, and the files that rules read. Oracles: entries and addresses by hand, hashlib, a web server."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tasks.data.filters.pinned import PinnedFile, pin, read_lines
from tasks.data.filters.rules import load_model, resolved_rule
from tasks.data.filters.url_list import URLRule, URLScorer, listed_parts
from tasks.data.filters.word_list import WordListRule, WordListScorer
from tests.tasks.data.conftest import refusals


def page(url: str | None) -> dict:
    return {"id": "", "source": "", "text": "", "metadata": {} if url is None else {"url": url}}


@pytest.mark.parametrize(
    ("url", "listed"),
    [
        ("https://bad.com", 1),
        ("http://www.BAD.com/any?q=1", 1),
        ("https://sub.bad.com:8080/x", 1),
        ("https://notbad.com", 0),
        ("https://bad.com.evil.org", 0),
        ("https://blog.example/spam/today", 1),
        ("https://blog.example/spammer", 0),
        ("https://user@bad.com/", 1),
        ("http://[::1", 0),
        ("", 0),
    ],
)
def test_listed_domains_stand_for_what_is_below_them(url, listed):
    assert listed_parts(url, frozenset({"bad.com", "blog.example/spam"})) == listed


def test_urls_are_refused_by_domain_and_by_word(bench, tmp_path):
    (tmp_path / "domains").write_text("# a comment\nhttps://www.Bad.com/\n\nblog.example/spam\n")
    (tmp_path / "words").write_text("casino\npoker # games\n")
    domains, words = (PinnedFile(path=str(tmp_path / name)) for name in ("domains", "words"))
    rule = resolved_rule(URLRule(scorer=URLScorer(domains=(domains,), words=(words,))))
    assert rule.scorer.domains[0].sha256 == hashlib.sha256((tmp_path / "domains").read_bytes()).hexdigest()
    pages = [page(url) for url in ("https://bad.com/x", "https://a.org/best-casino", "https://a.org/casinos", None)]
    model = load_model(bench.reader(), rule.scorer, {})
    assert refusals(rule, pages, model) == ["listed is 1, at most 0 wanted", "words is 1, at most 0 wanted", "", ""]
    assert refusals(rule.model_copy(update={"max_words": 1}), pages, model)[1] == ""


def test_words_and_phrases_are_whole_words_in_any_case(bench, tmp_path):
    (tmp_path / "list").write_text("dirty\nvery naughty word\n")
    rule = resolved_rule(WordListRule(scorer=WordListScorer(lists=(PinnedFile(path=str(tmp_path / "list")),))))
    model = load_model(bench.reader(), rule.scorer, {})
    texts = [
        "a Dirty thing, dirty!",
        "dirtying it",
        "a very, NAUGHTY word",
        "very naughty",
        "",
        "the end: very naughty",
    ]
    assert [bool(detail) for detail in refusals(rule, texts, model)] == [True, False, True, False, False, False]
    lenient = rule.model_copy(update={"max_words": 5, "max_fraction": 0.3})
    assert refusals(lenient, texts[:1], model) == ["share is 0.5, at most 0.3 wanted"]


def test_a_list_that_changed_is_refused_and_urls_can_be_lists(bench, tmp_path):
    file = tmp_path / "list"
    file.write_text("one\n")
    rule = resolved_rule(WordListRule(scorer=WordListScorer(lists=(PinnedFile(path=str(file)),))))
    documents = bench.documents(["one two", "two"])
    assert bench.filtered(documents, rule).dropped == {"word_list": 1}
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = PinnedFile(path=f"http://127.0.0.1:{server.server_port}/list")
        assert read_lines((pin(url),)) == ["one"]
        server.shutdown()
    file.write_text("two\n")
    with pytest.raises(ValueError, match=r"has sha256 .*, pinned was .*: the file changed"):
        bench.filtered(bench.documents(["three"], "others"), rule)
    with pytest.raises(ValueError, match="does not exist"):
        pin(PinnedFile(path=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="has no sha256; resolve the recipe"):
        read_lines((PinnedFile(path=str(file)),))
    with pytest.raises(ValueError, match="url_list has no lists"):
        URLScorer()
