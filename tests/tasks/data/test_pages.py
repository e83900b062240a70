"""HTML files, WARC and WET archives. Oracles: the texts and charsets that the pages were made from; the archives
are written here by the WARC 1.0 standard."""

import gzip
import zlib
from pathlib import Path

import pytest
import zstandard

from tasks.data.collect import collect, resolve
from tasks.data.sources.local import LocalSource

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
    options = {"name": "web", "max_bad_fraction": 1.0, **options}
    return resolve(LocalSource(paths=tuple(map(str, paths)), **options))  # type: ignore[return-value]


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


def test_garbage_ends_an_archive_and_what_came_before_is_kept(bench, tmp_path):
    gz = PACK[".warc.gz"](ENGLISH)
    flipped = bytearray(gz)
    flipped[len(gz) // 2] ^= 255
    negative = ENGLISH[1].replace(b"Content-Length: ", b"Content-Length: -", 1)
    long = ENGLISH[1].replace(b"Content-Length: ", b"Content-Length: 9", 1)
    files = {
        "garbage.warc": (b"hello world\n" * 100, 0),
        "packed_garbage.warc.gz": (gzip.compress(b"hello"), 0),
        "between.warc": (ENGLISH[0] + b"GARBAGE\r\n\r\n" + ENGLISH[1], 1),
        "negative_length.warc": (ENGLISH[0] + negative + ENGLISH[2], 1),
        "length_beyond_the_end.warc": (ENGLISH[0] + long, 1),
        "cut.warc": (b"".join(ENGLISH)[:-100], 5),
        "cut.warc.gz": (gz[:-100], 5),
        "flipped.warc.gz": (bytes(flipped), 3),
        "empty.warc.gz": (b"", 0),
    }
    for name, (data, expected) in files.items():
        (tmp_path / name).write_bytes(data)
        intact = tmp_path / f"intact-{name}.warc"
        intact.write_bytes(record(page("A page that is whole.").encode(), 99))
        made = bench.run(collect, local(tmp_path / name, intact, id_field=""))
        intact.unlink()
        found = [row["id"] for row in bench.rows(made, "documents/")]
        assert len(found) == expected + 1, name
        bad = [(Path(row["file"]).name, row["line"]) for row in bench.rows(made, "bad/")]
        # A record whose length makes no sense is told when the next one is looked for.
        line = expected + 2 if name == "negative_length.warc" else expected + 1
        assert bad == ([] if name == "empty.warc.gz" else [(name, line)])


def test_html_files_are_documents(bench, tmp_path):
    (tmp_path / "one.html").write_text(page(SENTENCE.format(1)))
    (tmp_path / "two.htm.gz").write_bytes(gzip.compress(page(GERMAN, "latin1").encode("latin1")))
    rows = bench.rows(bench.run(collect, local(tmp_path)), "documents/")
    assert [(row["id"], row["text"], row["metadata"]["language"]) for row in rows] == [
        ("one.html", SENTENCE.format(1).strip(), "en"),
        ("two.htm.gz", GERMAN.strip(), "de"),
    ]
