"""HTML files, WARC and WET archives. Oracles: the texts and charsets that the pages were made from; the archives
are written here by the WARC 1.0 standard."""

import codecs
import gzip
import zlib
from pathlib import Path

import pytest
import zstandard

from tasks.data.collect import collect
from tasks.data.sources.files.listing import BrokenFileError
from tasks.data.sources.local import LocalSource
from tasks.data.sources.reading import pages

SENTENCE = "The quick brown fox jumps over the lazy dog and goes home to sleep in the forest, number {}. "
GERMAN = "Größere Städte müssen täglich für ihre Bürger sorgen, und das kostet überall viel Geld. "


def page(text: str, charset: str = "") -> str:
    head = f"<meta charset={charset}>" if charset else ""
    return f"<html><head>{head}<title>t</title></head><body><nav><a href=x>menu</a></nav><p>{text}</p></body></html>"


def record(body: bytes, number: int, *, head: str = "Content-Type: text/html", kind: str = "response") -> bytes:
    if kind == "response":
        status = head if head.startswith("HTTP") else f"HTTP/1.1 200 OK\r\n{head}"
        body = status.encode() + b"\r\n\r\n" + body
    http = "application/http; msgtype=response" if kind == "response" else "text/plain"
    names = {
        "WARC-Type": kind,
        "WARC-Target-URI": f"http://example.org/{number}",
        "WARC-Date": "2024-03-01T00:00:00Z",
        "WARC-Record-ID": f"<urn:uuid:00000000-0000-0000-0000-{number:012d}>",
        "Content-Type": http,
        "Content-Length": str(len(body)),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in names.items())
    return b"WARC/1.0\r\n" + lines.encode() + b"\r\n" + body + b"\r\n\r\n"


def local(*paths: Path, **options) -> LocalSource:
    options = {"name": "web", "max_bad_fraction": 1.0, "max_bad_file_fraction": 1.0, **options}
    return LocalSource(paths=tuple(map(str, paths)), **options).pinned()  # type: ignore[return-value]


ENGLISH = [record(page(SENTENCE.format(number)).encode(), number) for number in range(6)]
PACK = {
    ".warc": b"".join,
    ".warc.gz": lambda records: b"".join(map(gzip.compress, records)),
    ".warc.zst": lambda records: b"".join(map(zstandard.compress, records)),
}


@pytest.mark.parametrize("suffix", PACK)
def test_archives_give_the_text_of_their_pages(bench, tmp_path, suffix):
    others = [
        record(b"q=1", 50, kind="request"),
        record(b"\x89PNG", 51, head="Content-Type: image/png"),
        record(page("Moved to another place.").encode(), 52, head="HTTP/1.1 301 Moved\r\nContent-Type: text/html"),
        record(b"Words already taken out of a page.", 53, kind="conversion"),
    ]
    path = tmp_path / f"crawl{suffix}"
    path.write_bytes(PACK[suffix](ENGLISH[:3] + others + ENGLISH[3:]))
    made = bench.run(collect, local(path))
    rows = bench.rows(made, "documents/")
    numbers = [0, 1, 2, 53, 3, 4, 5]
    assert [row["id"] for row in rows] == [f"urn:uuid:00000000-0000-0000-0000-{number:012d}" for number in numbers]
    assert [row["text"] for row in rows if row["id"][-2:] != "53"] == [SENTENCE.format(n).strip() for n in range(6)]
    assert rows[3]["text"] == "Words already taken out of a page."
    assert rows[0]["metadata"] == {
        "url": "http://example.org/0",
        "content_type": "text/html",
        "charset": "utf-8",
        "language": "en",
    }
    assert rows[0]["created"] == "2024-03-01T00:00:00Z"
    assert made.dropped == {}


@pytest.mark.parametrize(
    ("head", "declared", "written"),
    [
        ("Content-Type: text/html; charset=ISO-8859-1", "", "iso8859-1"),
        ("Content-Type: text/html; charset=nonsense", "windows-1252", "cp1252"),
        ("Content-Type: text/html", "iso-8859-15", "iso8859-15"),
        ("Content-Type: text/html", "", "utf-8"),
        ("Content-Type: text/html", "utf-16", "utf-8"),
    ],
)
def test_the_charset_is_the_servers_else_the_pages_else_detected(bench, tmp_path, head, declared, written):
    text = GERMAN.strip()
    path = tmp_path / "crawl.warc"
    path.write_bytes(record(page(text, declared).encode(written), 1, head=head))
    (row,) = bench.rows(bench.run(collect, local(path)), "documents/")
    assert row["text"] == text
    assert row["metadata"]["language"] == "de"
    assert "ü".encode(row["metadata"]["charset"]) == "ü".encode(written)


def test_bodies_are_decoded_and_broken_ones_kept_aside_by_record(bench, tmp_path):
    body = page(SENTENCE.format(1)).encode()
    chunked = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    gz, html = "Content-Encoding: gzip", "Content-Type: text/html\r\n"
    records = [
        record(gzip.compress(body), 1, head=f"{html}{gz}"),
        record(zlib.compress(body), 2, head=f"{html}Content-Encoding: deflate"),
        record(chunked, 3, head=f"{html}Transfer-Encoding: chunked"),
        record(gzip.compress(body)[:-20], 4, head=f"{html}{gz}"),
        record(b"no archive", 5, head=f"{html}{gz}"),
        record(b"zz\r\nno chunk", 6, head=f"{html}Transfer-Encoding: chunked"),
        record(gzip.compress(bytes(40_000_000)), 7, head=f"{html}{gz}"),
        record(b"<p>" + b" " * 17_000_000, 8),
        record(b"<div>" * 100_000 + b"deep", 9),
        record(b"<p>broken charset \xff\xfe here</p>", 10, head=f"{html}X: y; charset=utf-8"),
        record(b"<html></html>", 11),
        record(body, 12),
    ]
    path = tmp_path / "crawl.warc"
    path.write_bytes(b"".join(records))
    made = bench.run(collect, local(path))
    assert [int(row["id"][-2:]) for row in bench.rows(made, "documents/")] == [1, 2, 3, 10, 12]
    assert [(row["line"], row["reason"]) for row in bench.rows(made, "bad/")] == [
        (4, "unreadable"),
        (5, "unreadable"),
        (6, "unreadable"),
        (7, "too_long"),
        (8, "too_long"),
        (9, "too_deep"),
        (11, "no_text"),
    ]


def test_an_archive_whose_framing_breaks_ends_the_stage_by_name(bench, tmp_path):
    gz = PACK[".warc.gz"](ENGLISH)
    flipped = bytearray(gz)
    flipped[len(gz) // 2] ^= 255
    negative = ENGLISH[1].replace(b"Content-Length: ", b"Content-Length: -", 1)
    long = ENGLISH[1].replace(b"Content-Length: ", b"Content-Length: 9", 1)
    files = {
        "garbage.warc": b"hello world\n" * 100,
        "packed_garbage.warc.gz": gzip.compress(b"hello"),
        "between.warc": ENGLISH[0] + b"GARBAGE\r\n\r\n" + ENGLISH[1],
        "negative_length.warc": ENGLISH[0] + negative + ENGLISH[2],
        "length_beyond_the_end.warc": ENGLISH[0] + long,
        "cut.warc": b"".join(ENGLISH)[:-100],
        "cut.warc.gz": gz[:-100],
        "flipped.warc.gz": bytes(flipped),
        "no_archive.warc.gz": b"hello world\n" * 100,
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BrokenFileError, match=f"{name} breaks at row"):
            bench.run(collect, local(tmp_path / name))
    (tmp_path / "empty.warc.gz").write_bytes(b"")
    (tmp_path / "whole.warc").write_bytes(b"".join(ENGLISH))
    assert bench.run(collect, local(tmp_path / "empty.warc.gz", tmp_path / "whole.warc")).documents == 6


def test_a_record_of_no_known_type_is_told_and_others_are_counted(bench, tmp_path):
    path = tmp_path / "crawl.warc"
    odd = ENGLISH[1].replace(b"WARC-Type: response", b"WARC-Type: sesponse")
    image = record(b"\x89PNG", 51, head="Content-Type: image/png")
    path.write_bytes(ENGLISH[0] + odd + record(b"q=1", 50, kind="request") + image)
    made = bench.run(collect, local(path))
    assert (made.documents, made.dropped) == (1, {"unknown_record": 1})
    assert bench.json(made, "collect.json")["passed_over"] == {"not HTML": 1, "request": 1}


@pytest.mark.parametrize(
    "label", ["base64", "hex", "zip", "rot13", "idna", "undefined", "a\x00b", "unicode_escape", "\u00fc"]
)
def test_a_label_that_is_no_charset_falls_through(bench, tmp_path, label):
    path = tmp_path / "crawl.warc"
    page_ = page(GERMAN, "windows-1252").encode("cp1252")
    path.write_bytes(ENGLISH[0] + record(page_, 1, head=f"Content-Type: text/html; charset={label}") + ENGLISH[2])
    rows = bench.rows(bench.run(collect, local(path)), "documents/")
    assert [row["text"] for row in rows] == [SENTENCE.format(0).strip(), GERMAN.strip(), SENTENCE.format(2).strip()]


@pytest.mark.parametrize(
    ("label", "written", "text"),
    [
        ("iso-8859-1", "cp1252", "“Quotes” cost 5 € — and dashes"),
        ("gb2312", "gbk", "朱镕基 在 會議 上 講話"),
        ("shift_jis", "cp932", "①番 髙島屋 の 商品"),
        ("euc-kr", "cp949", "똠방각하 펲시콜라"),
        ("tis-620", "cp874", "ภาษาไทย … ไทย"),
    ],
)
def test_labels_mean_what_the_standard_says(bench, tmp_path, label, written, text):
    path = tmp_path / "crawl.warc"
    head = f"Content-Type: text/html; charset={label}"
    path.write_bytes(record(page(text).encode(written), 1, head=head) + record(page(text, label).encode(written), 2))
    rows = bench.rows(bench.run(collect, local(path)), "documents/")
    assert [row["text"] for row in rows] == [text, text]


def test_a_byte_order_mark_is_above_the_servers_word(bench, tmp_path):
    path = tmp_path / "crawl.warc"
    head = "Content-Type: text/html; charset=iso-8859-1"
    marked = [codecs.BOM_UTF8 + page(GERMAN).encode(), codecs.BOM_UTF16_BE + page(GERMAN).encode("utf-16-be")]
    path.write_bytes(b"".join(record(body, number, head=head) for number, body in enumerate(marked)))
    rows = bench.rows(bench.run(collect, local(path)), "documents/")
    assert [row["text"] for row in rows] == [GERMAN.strip()] * 2


SHALLOW = {
    "script": "<script>" + "<div>" * 600 + "</script>",
    "comment": "<!--" + "<div>" * 600 + "-->",
    "svg": "<svg>" + "<path d='M0'/>" * 600 + "</svg>",
    "links": "<a href=x>word " * 600,
    "fonts": "<font color=red>word " * 600,
    "paragraphs": "<p><font size=2>word " * 600,
    "closed": "<div><div>word</div></div>" * 600,
    "attribute": f"<img alt='{'<div>' * 600}'>",
}
DEEP = {
    "div": "<div>" * 600 + "word",
    "closed": "<section>" * 600 + "word" + "</section>" * 600,
    "cells": "<div><table><tr><td></div>" * 150 + "word",
    "lists": "<ul><li>" * 300 + "word",
    "stray ends": "<div></section></article>" * 600 + "word",
}


def test_depth_is_that_of_the_tree_a_browser_builds(bench, tmp_path):
    for folder, bodies in (("shallow", SHALLOW), ("deep", DEEP)):
        (tmp_path / folder).mkdir()
        for name, body in bodies.items():
            html = f"<html><body><p>{GERMAN}</p>{body}</body></html>"
            (tmp_path / folder / f"{name}.html").write_text(html)
    made = bench.run(collect, local(tmp_path / "shallow", tmp_path / "deep"))
    assert sorted(Path(row["file"]).stem for row in bench.rows(made, "bad/")) == sorted(DEEP)
    assert made.dropped == {"too_deep": len(DEEP)}
    assert made.documents == len(SHALLOW)


def test_a_page_may_make_a_library_raise_anything(bench, tmp_path, monkeypatch):
    path = tmp_path / "crawl.warc"
    path.write_bytes(b"".join(ENGLISH))
    extract = pages.extract_plain_text
    calls = iter(range(10))

    def failing(*args, **options):
        if next(calls) == 2:
            raise AssertionError("broken inside")
        return extract(*args, **options)

    monkeypatch.setattr(pages, "extract_plain_text", failing)
    made = bench.run(collect, local(path))
    assert (made.documents, made.dropped) == (5, {"page_error": 1})
    (bad,) = bench.rows(made, "bad/")
    assert (bad["line"], bad["detail"]) == (3, "AssertionError: broken inside")


def test_html_files_are_documents(bench, tmp_path):
    (tmp_path / "one.html").write_text(page(SENTENCE.format(1)))
    (tmp_path / "two.htm.gz").write_bytes(gzip.compress(page(GERMAN, "latin1").encode("latin1")))
    rows = bench.rows(bench.run(collect, local(tmp_path)), "documents/")
    assert [(row["id"], row["text"], row["metadata"]["language"]) for row in rows] == [
        ("one.html", SENTENCE.format(1).strip(), "en"),
        ("two.htm.gz", GERMAN.strip(), "de"),
    ]


@pytest.mark.parametrize("where", ["_page_of", "_row_of"])
def test_a_page_that_finds_no_memory_is_not_dropped(bench, tmp_path, monkeypatch, where):
    """What a page is must not depend on the memory of the machine that reads it."""

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(pages, where, full)
    (tmp_path / "a.warc").write_bytes(b"".join(ENGLISH))
    with pytest.raises(MemoryError):
        bench.run(collect, local(tmp_path / "a.warc"))
