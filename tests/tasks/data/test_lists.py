"""Word and URL lists, and the files that rules read. Oracles: entries and addresses by hand, hashlib, a web server."""

import hashlib
import threading
import tracemalloc
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tasks.data.filters.lists.url_entries import Entries, entries_of
from tasks.data.filters.lists.url_list import URLLists, URLRule, URLScorer, listed_parts, score_urls
from tasks.data.filters.lists.word_list import WordListRule, WordListScorer
from tasks.data.filters.pinned import PinnedFile, list_entries
from tasks.data.filters.rules import load_scorer_model, pin_rule
from tasks.data.filters.stars import StarsScorer, score_stars
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
    rule = pin_rule(URLRule(scorer=URLScorer(domains=(domains,), words=(words,))))
    assert rule.scorer.domains[0].sha256 == hashlib.sha256((tmp_path / "domains").read_bytes()).hexdigest()
    pages = [page(url) for url in ("https://bad.com/x", "https://a.org/best-casino", "https://a.org/casinos", None)]
    model = load_scorer_model(bench.reader(), rule.scorer, {})
    assert refusals(rule, pages, model) == ["listed is 1, at most 0 wanted", "words is 1, at most 0 wanted", "", ""]
    assert refusals(rule.model_copy(update={"max_words": 1}), pages, model)[1] == ""


def test_words_and_phrases_are_whole_words_in_any_case(bench, tmp_path):
    (tmp_path / "list").write_text("dirty\nvery naughty word\n")
    rule = pin_rule(WordListRule(scorer=WordListScorer(lists=(PinnedFile(path=str(tmp_path / "list")),))))
    model = load_scorer_model(bench.reader(), rule.scorer, {})
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
    rule = pin_rule(WordListRule(scorer=WordListScorer(lists=(PinnedFile(path=str(file)),))))
    documents = bench.documents(["one two", "two"])
    assert bench.filtered(documents, rule).dropped == {"word_list": 1}
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = PinnedFile(path=f"http://127.0.0.1:{server.server_port}/list")
        assert list_entries((url.pinned(),)) == ["one"]
        server.shutdown()
    file.write_text("two\n")
    with pytest.raises(ValueError, match=r"has sha256 .*, pinned was .*: the file changed"):
        bench.filtered(bench.documents(["three"], "others"), rule)
    with pytest.raises(ValueError, match="does not exist"):
        PinnedFile(path=str(tmp_path / "none")).pinned()
    with pytest.raises(ValueError, match="has no sha256; pin the recipe"):
        list_entries((PinnedFile(path=str(file)),))
    with pytest.raises(ValueError, match="url_list has no lists"):
        URLScorer()


FORMATS = {
    "plain": "bad.com",
    "comment behind": "bad.com  # why",
    "upper case and closing dot": "BAD.Com.",
    "address": "https://www.bad.com/",
    "hosts": "0.0.0.0 bad.com",
    "hosts with tabs, names and a comment": "127.0.0.1\tother.org bad.com # ads",
    "hosts of IPv6": "::1 bad.com",
    "adblock": "||bad.com^",
    "adblock with options": "||bad.com^$third-party,popup",
    "adblock, anchored": "|https://bad.com|",
    "wildcard": "*.bad.com",
    "leading dot": ".bad.com",
    "wildcard of addresses": "bad.com/*",
    "dnsmasq": "address=/bad.com/0.0.0.0",
    "unbound": 'local-zone: "bad.com" always_nxdomain',
    "rpz": "bad.com CNAME .",
    "bind": 'zone "bad.com" { type master; };',
    "extension": "*://*.bad.com/*",
    "extension with a scheme": "https://*.bad.com/*",
    "any http": "http*://bad.com/*",
    "proxy": "DOMAIN-SUFFIX,bad.com",
    "proxy with an action": "  - DOMAIN,bad.com,REJECT",
    "proxy with a plus": "+.bad.com",
    "v2ray": "domain:bad.com",
    "columns": "bad.com\tadult\t2024",
    "columns with commas": "bad.com,adult",
    "quoted": '"bad.com",',
    "adblock option without an end": "||bad.com$important",
    "full-width": "ｂａｄ．com",
    "carriage return": "bad.com\r",
    "byte order mark": "\ufeffbad.com",
}


@pytest.mark.parametrize("line", FORMATS.values(), ids=FORMATS)
def test_lists_in_every_format_mean_their_domain(bench, tmp_path, line):
    (tmp_path / "one").write_text("! title\n[Adblock Plus 2.0]\n# comment\n\n" if "\ufeff" not in line else "")
    with (tmp_path / "one").open("a") as file:
        file.write(f"{line}\n@@||good.org^\ngood.org##.banner\n")
    (tmp_path / "two").write_text("0.0.0.0 second.net\n127.0.0.1 localhost\n")
    files = tuple(PinnedFile(path=str(tmp_path / name)) for name in ("one", "two"))
    rule = pin_rule(URLRule(scorer=URLScorer(domains=files)))
    model = load_scorer_model(bench.reader(), rule.scorer, {})
    urls = [
        "https://bad.com/x",
        "http://a.BAD.com.:8080/",
        "https://second.net",
        "https://good.org",
        "http://localhost/",
    ]
    assert [bool(detail) for detail in refusals(rule, [page(url) for url in urls], model)] == [True] * 3 + [False] * 2


@pytest.mark.parametrize("entry", ["bücher.example", "xn--bcher-kva.example", "BÜCHER.example.", "||bücher.example^"])
@pytest.mark.parametrize(
    "url", ["https://bücher.example/1", "https://xn--bcher-kva.example", "http://shop.BÜCHER.example."]
)
def test_internationalised_names_match_in_either_form(entry, url):
    assert listed_parts(url, Entries(iter(entries_of(entry)))) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "https://bad.com"},
        {"metadata": {"url": "https://bad.com"}},
        {"metadata": '{"url": "https://bad.com"}'},
        {"metadata": {"metadata": '{"url": "https://bad.com"}'}},
        {"metadata": {"warc": {"url": "https://bad.com"}}},
        {"metadata": {"url": None}, "url": "https://bad.com"},
    ],
)
def test_an_address_is_found_wherever_it_stands(fields):
    scorer = URLScorer(domains=(PinnedFile(path="unread"),))
    scores = score_urls([{"id": "", "text": "url", **fields}], scorer, URLLists(frozenset({"bad.com"}), frozenset()))
    assert scores.values["listed"] == [1]


def test_words_are_parts_of_an_address_where_asked():
    lists = URLLists(frozenset(), frozenset({"casino"}))
    documents = [page("https://a.org/MyCasinoS"), page("https://a.org/casino"), page("https://casa.org")]
    for match, found in (("words", [0, 1, 0]), ("substrings", [1, 1, 0])):
        scorer = URLScorer(words=(PinnedFile(path="unread"),), match=match)
        assert score_urls(documents, scorer, lists).values["words"] == found


def test_entries_take_little_memory():
    """Sixty bytes an entry while they are read, for 300 MB at 5 million."""
    tracemalloc.start()
    entries = Entries(f"site-{number}.example" for number in range(400_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(entries) == 400_000
    assert "site-7.example" in entries and "site-x.example" not in entries
    assert peak < 400_000 * 60


@pytest.mark.parametrize(("stars", "read"), [("12", 12), (12, 12), ("1,204", 1204), (None, 0), ("", 0), (3.0, 3)])
def test_star_counts_may_be_text(stars, read):
    document = {"id": "", "metadata": {"max_stars_count": stars}}
    assert score_stars([document], StarsScorer()).values["count"] == [read]


def test_a_hash_sign_belongs_to_a_word(bench, tmp_path):
    (tmp_path / "list").write_text("C#\nc++  # both of them\n# none\n")
    rule = pin_rule(WordListRule(scorer=WordListScorer(lists=(PinnedFile(path=str(tmp_path / "list")),))))
    model = load_scorer_model(bench.reader(), rule.scorer, {})
    texts = ["written in C#.", "written in C.", "C++ and others", "C #1", "item c#4", "Bc#"]
    assert [bool(detail) for detail in refusals(rule, texts, model)] == [True, False, True, False, False, False]
