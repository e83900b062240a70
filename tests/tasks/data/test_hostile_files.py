"""Files as people have them, one test a kind: every row is read or counted as unusable, or the stage ends with the file's name.

The oracle is the number of rows that were written. `test_reader_fuzz.py` does the same with random damage.
"""

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tasks.data.collect import collect
from tasks.data.sources.local import LocalSource
from tests.tasks.data.test_reader_fuzz import long_window

TEXTS = [f"text {number} of some rows" for number in range(50)]
MARK = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for the input."""
    (tmp_path / "input").mkdir()
    return tmp_path / "input"


def lines(texts: Iterable[str] = TEXTS) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def read(bench, folder: Path, **options: Any) -> tuple[int, dict[str, int], dict[str, int]]:
    """Documents, unusable rows by reason, records passed over."""
    source = LocalSource(name="web", paths=(str(folder),), max_bad_fraction=1.0, max_bad_file_fraction=1.0, **options)
    made = bench.run(collect, source.pinned())
    return made.documents, dict(made.dropped), bench.json(made, "collect.json")["passed_over"]


PACKS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".zstd": long_window,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


@pytest.mark.parametrize("form", [".jsonl", ".JSON", ".ndjson"])
def test_every_compression_in_any_letter_case_and_joined_files(bench, folder, form):
    """Each file is two compressed files, one after the other, as `cat` joins them, with a byte order mark in each."""
    for pack, compress in PACKS.items():
        for ending in {pack, pack.upper()}:
            half = json.dumps({"text": f"of {ending}"}).encode() + b"\n"
            (folder / f"a{form}{ending}").write_bytes(compress(MARK + half) + compress(MARK + half))
    count = 2 * len({ending for pack in PACKS for ending in (pack, pack.upper())})
    assert read(bench, folder) == (count, {}, {})


@pytest.mark.parametrize("pack", [pack for pack in PACKS if pack])
def test_a_joined_file_whose_second_part_is_damaged_ends_the_stage(bench, folder, pack):
    """No reader may take a broken second part for the end of the file."""
    second = bytearray(PACKS[pack](lines()))
    for at in (0, 1, 2):
        broken = bytes(second[:at]) + bytes([second[at] ^ 1]) + bytes(second[at + 1 :])
        path = folder / f"rows.jsonl{pack}"
        path.write_bytes(PACKS[pack](lines()) + broken)
        with pytest.raises(ValueError, match=rf"rows\.jsonl{pack} breaks at row"):
            read(bench, folder)


@pytest.mark.parametrize("pack", list(PACKS))
def test_a_file_of_no_bytes_holds_no_rows(bench, folder, pack):
    (folder / f"a.jsonl{pack}").write_bytes(b"")
    (folder / "b.jsonl").write_bytes(lines())
    assert read(bench, folder) == (50, {}, {})


def test_padding_between_xz_streams_is_passed(bench, folder):
    (folder / "a.jsonl.xz").write_bytes(lzma.compress(lines()) + bytes(8) + lzma.compress(lines()) + bytes(4))
    assert read(bench, folder)[0] == 100


ENDS = {
    "gzip.jsonl": (gzip.compress(lines()), r"it is a gzip \(\.gz\) file, and its name does not end so"),
    "parquet.json": (b"PAR1" + bytes(100), "it is a Parquet"),
    "plain.jsonl.gz": (lines(), "unreadable"),
    "zstd.jsonl.gz": (zstandard.compress(lines()), "unreadable"),
    "utf16.jsonl": (lines().decode().encode("utf-16"), "its text is UTF-16"),
    "list.json": (json.dumps([{"text": "x"}] * 9, indent=1).encode(), "one JSON list over several lines"),
    "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\nsize 12\n", "its footer cannot be read"),
    "empty.parquet": (b"", "its footer cannot be read"),
}


@pytest.mark.parametrize("name", list(ENDS))
def test_files_that_are_no_rows_end_the_stage_by_name(bench, folder, name):
    data, problem = ENDS[name]
    (folder / name).write_bytes(data)
    (folder / "whole.jsonl").write_bytes(lines())
    with pytest.raises(ValueError, match=rf"{name} breaks at row 1: .*{problem}"):
        read(bench, folder)


LINES = {
    "sequence": (b"".join(b"\x1e" + line + b"\n" for line in lines().splitlines()), 50, {}),
    "marks": (MARK + lines() + MARK + lines(), 100, {}),
    "carriage_returns": (lines().replace(b"\n", b"\r\n"), 50, {}),
    "blank": (lines().replace(b"\n", b"\n \n\n"), 50, {}),
    "no_last_newline": (lines().rstrip(), 50, {}),
    "one_list": (json.dumps([{"text": text} for text in TEXTS]).encode(), 50, {}),
    "commas": (lines() + lines().replace(b"\n", b",\n"), 50, {"not_json": 50}),
    "two_a_line": (lines() + b"".join(line + line + b"\n" for line in lines().splitlines()), 50, {"not_json": 100}),
    "no_text": (lines() + b'{"text": null}\n{"text": 5}\n{"text": ["x"]}\n{"content": "x"}\n', 50, {"no_text": 4}),
    "no_object": (lines() + b'5\n"x"\nnull\n[]\n', 50, {"not_object": 4}),
    "deep": (lines() + b'{"text": "x", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", 50, {"not_json": 1}),
    "long_number": (lines() + b'{"text": "x", "n": ' + b"9" * 5000 + b"}\n", 51, {}),
    "long_ids": (lines() + b"".join(b'{"text": "x", "id": %d}\n' % (10**29 + n) for n in range(9)), 59, {}),
    "carriage_returns_alone": (lines().replace(b"\n", b"\r"), 50, {}),
    "one_broken_of_carriage_returns_alone": (
        lines().replace(b"\n", b"\r").replace(b"7 of", b'7" of', 1),
        49,
        {"not_json": 1},
    ),
    "list_with_others": (lines() + b'[{"text": "x"}, 5, null, {"text": "y"}]\n', 52, {"not_object": 2}),
    "feeds_within_rows": (lines().replace(b"some rows", b"some\nrows", 9), 41, {"not_json": 9}),
    "other_line_ends": ('{"text": "a\u2028b\u2029c\x85d"}\n'.encode() * 9, 9, {}),
    "not_finite": (lines() + b'{"text": "x", "n": NaN}\n{"text": "y", "n": -Infinity}\n', 52, {}),
    "surrogate": (lines() + b'{"text": "x \\ud800 y"}\n', 51, {}),
    "ids": (lines() + b'{"text": "a", "id": 1}\n{"text": "b", "id": [1]}\n{"text": "c", "id": ""}\n', 53, {}),
}


# A long file in shards of 97 bytes is thousands of them, which show no more.
@pytest.mark.parametrize(
    ("name", "shard_bytes"),
    [(name, size) for name in LINES for size in (64_000_000, 97) if size > 97 or len(LINES[name][0]) <= 10_000],
)
def test_every_row_of_odd_lines_is_read_or_counted(bench, folder, name, shard_bytes):
    """Also where a row is cut at a border between byte ranges."""
    data, documents, dropped = LINES[name]
    (folder / "rows.jsonl").write_bytes(data)
    assert read(bench, folder, shard_bytes=shard_bytes) == (documents, dropped, {})


def test_ids_keep_all_their_digits_and_bytes(bench, folder):
    """Hashes as whole numbers of 128 bits, or as bytes: rounded or repaired, different ones would be the same."""
    numbers = [2**127 + n for n in range(9)]
    (folder / "a.jsonl").write_bytes(b"".join(b'{"text": "x", "id": %d, "n": [%d]}\n' % (n, n) for n in numbers))
    digests = [bytes([255, n]) * 8 for n in range(9)]
    pq.write_table(pa.table({"text": ["y"] * 9, "id": digests}), folder / "b.parquet")
    made = bench.run(collect, LocalSource(name="web", paths=(str(folder),)).pinned())
    rows = bench.rows(made, "documents/")
    assert [row["id"] for row in rows] == [*map(str, numbers), *(digest.hex() for digest in digests)]
    assert rows[8]["metadata"]["n"] == [str(numbers[8])]


UNTOLD = {
    "pretty": (
        json.dumps({"a": {"b": [1, 2]}, "text": "x"}, indent=2).encode() + b"\n",
        "a row stands over several lines",
    ),
    "zeros_at_the_end": (lines() + bytes(4096), "zeros stand where rows were"),
    "zeros_within": (lines()[:500] + bytes(4096) + lines()[500:], "zeros stand where rows were"),
    "list_cut": (json.dumps([{"text": text} for text in TEXTS]).encode()[:-30], "a list of rows cannot be read"),
    "list_broken": (
        json.dumps([{"text": text} for text in TEXTS]).encode().replace(b"7 of", b'7" of'),
        "a list of rows",
    ),
    "list_too_long": (json.dumps([{"text": "x" * 90}] * 9).encode() + b"\n", "too_long.*the line holds several rows"),
    "glued_and_too_long": (lines().replace(b"\n", b"") * 2, "too_long.*the line holds several rows"),
    "carriage_returns_and_too_long": (lines().replace(b"\n", b"\r"), "too_long.*the line holds several rows"),
}


@pytest.mark.parametrize("name", list(UNTOLD))
def test_a_line_that_held_nobody_knows_how_many_rows_ends_the_stage(bench, folder, name):
    data, problem = UNTOLD[name]
    (folder / "rows.jsonl").write_bytes(data)
    limit = 600 if "too_long" in name else 64_000_000
    with pytest.raises(ValueError, match=rf"rows\.jsonl breaks at row \d+: .*{problem}"):
        read(bench, folder, max_document_bytes=limit)


@pytest.mark.parametrize(
    "metadata",
    [
        '{"url": "u"}',
        {"url": "u"},
        {"metadata": {"url": "u"}},
        '{"metadata": "{\\"url\\": \\"u\\"}"}',
        "{",
        "[1]",
        5,
        None,
    ],
)
def test_metadata_of_any_form(bench, folder, metadata):
    """An object, a JSON string that holds one, one in the other, or something else that is kept as it is."""
    row = {"text": "one", "license": "mit", "metadata": metadata}
    (folder / "rows.jsonl").write_bytes(json.dumps(row).encode())
    made = bench.run(collect, LocalSource(name="web", paths=(str(folder),)).pinned())
    (found,) = bench.rows(made, "documents/")
    holds_url = "url" in str(metadata)
    kept = {"url": "u"} if holds_url else {"metadata": metadata} if metadata is not None else {}
    assert found["metadata"] == {"license": "mit", **kept}


COLUMNS: dict[str, tuple[Any, Any]] = {
    "nested": (pa.array([{"a": {"b": [{"c": 1}]}}] * 50), {"a": {"b": [{"c": 1}]}}),
    "dictionary": (pa.array(["x"] * 50).dictionary_encode(), "x"),
    "large_list": (pa.array([[1]] * 50, pa.large_list(pa.int64())), [1]),
    "map": (pa.array([[("a", 1)]] * 50, pa.map_(pa.string(), pa.int64())), [["a", 1]]),
    "far_date": (pa.array([5_000_000] * 50, pa.date32()), "15659-07-15"),
    "far_time": (pa.array([2**62] * 50, pa.timestamp("us")), "<value out of range: 4611686018427387904>"),
    "far_duration": (pa.array([2**62] * 50, pa.duration("s")), "4611686018427387904"),
    "no_zone": (pa.array([10**15] * 50, pa.timestamp("us", "Mars/Base")), "[2001-09-09 01:46:40.000000Z]"),
    "same_names": (pa.StructArray.from_arrays([pa.array(range(50))] * 2, names=["a", "a"]), None),
    "half": (pa.array(np.ones(50, dtype=np.float16)), 1.0),
    "unsigned": (pa.array([2**64 - 1] * 50, pa.uint64()), 2**64 - 1),
    "bytes": (pa.array([b"\xff"] * 50), "\ufffd"),
    "nulls": (pa.nulls(50), None),
}


def written(table: pa.Table, form: str) -> bytes:
    """A table as a Parquet file, an Arrow file or an Arrow stream, in blocks of 20 rows."""
    out = io.BytesIO()
    if form == "parquet":
        pq.write_table(table, out, row_group_size=20)
    else:
        make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
        with make(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
    return out.getvalue()


@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
def test_columns_of_any_type_cost_no_row(bench, folder, form):
    kept = dict(COLUMNS)
    if form == "parquet":
        kept["far_duration"] = (kept["far_duration"][0].cast(pa.int64()), 2**62)
    table = pa.table({"text": TEXTS, **{name: column for name, (column, _) in kept.items()}})
    (folder / f"rows.{'PARQUET' if form == 'parquet' else 'Arrow'}").write_bytes(written(table, form))
    made = bench.run(collect, LocalSource(name="web", paths=(str(folder),)).pinned())
    rows = bench.rows(made, "documents/")
    assert [row["text"] for row in rows] == TEXTS
    for name, (_, expected) in kept.items():
        if expected is not None:
            assert rows[7]["metadata"][name] == expected, name


@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS).dictionary_encode(),
        pa.array(TEXTS, pa.string_view()),
        pa.array([text.encode() for text in TEXTS], pa.large_binary()),
    ],
    ids=["large", "dictionary", "view", "bytes"],
)
def test_text_of_any_string_type(bench, folder, form, column):
    name = "rows.parquet" if form == "parquet" else "rows.arrow"
    (folder / name).write_bytes(written(pa.table({"text": column}), form))
    made = bench.run(collect, LocalSource(name="web", paths=(str(folder),)).pinned())
    assert [row["text"] for row in bench.rows(made, "documents/")] == TEXTS


def test_a_stream_whose_dictionary_changes_between_batches(bench, folder):
    schema = pa.schema([("text", pa.dictionary(pa.int32(), pa.string()))])
    out = io.BytesIO()
    with pa.ipc.new_stream(out, schema) as writer:
        for start in range(0, 50, 10):
            column = pa.array(TEXTS[start : start + 10]).dictionary_encode()
            writer.write_batch(pa.record_batch([column], schema=schema))
    (folder / "rows.arrow").write_bytes(out.getvalue())
    assert read(bench, folder) == (50, {}, {})


def record(body: bytes, kind: str = "response", length: object = None, version: str = "1.0") -> bytes:
    said = len(body) if length is None else length
    head = f"WARC/{version}\r\nWARC-Type: {kind}\r\nContent-Type: application/http; msgtype=response\r\n"
    return head.encode() + f"Content-Length: {said}\r\n\r\n".encode() + body + b"\r\n\r\n"


def answer(body: bytes = b"<p>some text of a page</p>", head: str = "") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + head.encode() + b"\r\n" + body


@pytest.mark.parametrize("length", [-5, "many", 10**14, 20, 700, "5\r\nContent-Length: 6"])
def test_a_record_with_a_wrong_length_ends_the_stage(bench, folder, length):
    (folder / "a.warc").write_bytes(record(answer()) * 3 + record(answer(), length=length) + record(answer()) * 3)
    with pytest.raises(ValueError, match=r"a\.warc breaks at row [45]: "):
        read(bench, folder)


BODIES = {
    "no_bytes": (b"", "bad_http"),
    "zeros": (bytes(9), "bad_http"),
    "no_status": (b"HTTP/1.1\r\n\r\n", "bad_http"),
    "long_head": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 30_000 + b"\r\n<p>x</p>", "unreadable"),
    "cut_gzip": (answer(gzip.compress(b"<p>text</p>")[:-9], "Content-Encoding: gzip\r\n"), "unreadable"),
    "no_gzip": (answer(b"<p>text</p>", "Content-Encoding: gzip\r\n"), "unreadable"),
    "no_chunks": (answer(b"<p>text</p>", "Transfer-Encoding: chunked\r\n"), "unreadable"),
    "cut_chunk": (answer(b"5\r\n<p>te\r\n9\r\nxt", "Transfer-Encoding: chunked\r\n"), "unreadable"),
    "no_deflate": (answer(b"<p>text</p>", "Content-Encoding: deflate\r\n"), "unreadable"),
    "cut_zstd": (answer(zstandard.compress(b"<p>text</p>" * 9)[:-3], "Content-Encoding: zstd\r\n"), "unreadable"),
    "no_zstd": (answer(b"<p>text</p>", "Content-Encoding: zstd\r\n"), "unreadable"),
    "unknown_encoding": (answer(b"<p>text</p>", "Content-Encoding: compress\r\n"), "unreadable"),
    "zstd_bomb": (answer(zstandard.compress(bytes(40_000_000)), "Content-Encoding: zstd\r\n"), "too_long"),
    "bomb": (answer(gzip.compress(bytes(40_000_000)), "Content-Encoding: gzip\r\n"), "too_long"),
    "deep": (answer(b"<div>" * 600 + b"text"), "too_deep"),
    "no_text": (answer(b"<script>x</script>"), "no_text"),
}


@pytest.mark.parametrize("name", list(BODIES))
def test_a_record_that_gives_no_text_is_one_row(bench, folder, name):
    body, reason = BODIES[name]
    (folder / "a.WARC.GZ").write_bytes(
        b"".join(map(gzip.compress, [record(answer()) * 3, record(body), record(answer())]))
    )
    assert read(bench, folder) == (4, {reason: 1}, {})


def raw_deflate(data: bytes) -> bytes:
    """As some servers send it, without the head of zlib."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def chunks(data: bytes) -> bytes:
    parts = [data[at : at + 7] for at in range(0, len(data), 7)]
    return b"".join(b"%X;of=seven\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: x\r\n\r\n"


PAGE = b"<p>some text of a page</p>"
ANSWERS = {
    "two_members": answer(gzip.compress(PAGE[:9]) + gzip.compress(PAGE[9:]), "Content-Encoding: gzip\r\n"),
    "bytes_after_gzip": answer(gzip.compress(PAGE) + b"junk", "content-encoding: X-GZIP\r\n"),
    "twice": answer(gzip.compress(gzip.compress(PAGE)), "Content-Encoding: gzip, gzip\r\n"),
    "zlib": answer(zlib.compress(PAGE), "Content-Encoding: deflate\r\n"),
    "raw_deflate": answer(raw_deflate(PAGE), "Content-Encoding: deflate\r\n"),
    "zstd": answer(zstandard.compress(PAGE), "Content-Encoding: zstd\r\n"),
    "brotli": answer(pa.compress(PAGE, codec="brotli", asbytes=True), "Content-Encoding: br\r\n"),
    "chunked": answer(chunks(PAGE), "Transfer-Encoding: chunked\r\n"),
    "gzip_in_chunks": answer(chunks(gzip.compress(PAGE)), "Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n"),
    "gzip_as_transfer": answer(chunks(gzip.compress(PAGE)), "Transfer-Encoding: gzip, chunked\r\n"),
    "no_encoding": answer(PAGE, "Content-Encoding: identity\r\nTransfer-Encoding: Identity\r\n"),
    "charset_as_encoding": answer(PAGE, "Content-Encoding: UTF-8\r\n"),
    "line_feeds": answer(PAGE).replace(b"\r\n", b"\n"),
    "http_2": answer(PAGE).replace(b"HTTP/1.1 200 OK", b"HTTP/2 200"),
    "type_twice": answer(PAGE).replace(b"text/html", b"Text/HTML; Charset=x, text/html"),
    "utf_16_that_is_none": answer(PAGE).replace(b"text/html", b"text/html; charset=utf-16"),
}


@pytest.mark.parametrize("name", list(ANSWERS))
def test_answers_of_any_encoding_give_the_text_of_their_page(bench, folder, name):
    (folder / "a.warc").write_bytes(record(answer()) + record(ANSWERS[name]) + record(answer()))
    made = bench.run(collect, LocalSource(name="web", paths=(str(folder),)).pinned())
    assert [row["text"] for row in bench.rows(made, "documents/")] == ["some text of a page"] * 3


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-32-be"])
def test_a_page_with_any_byte_order_mark(bench, folder, encoding):
    text = "Größe und 東京"
    data = f"\ufeff<p>{text}</p>".encode(encoding) if encoding.endswith("be") else f"<p>{text}</p>".encode(encoding)
    (folder / "a.HTM").write_bytes(data)
    made = bench.run(collect, LocalSource(name="web", paths=(str(folder),)).pinned())
    assert [row["text"] for row in bench.rows(made, "documents/")] == [text]


@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
@pytest.mark.parametrize("last", [50, 0])
def test_tables_that_were_joined_end_the_stage(bench, folder, form, last):
    """The last file's footer is all that a reader sees, so that the first file's rows would be missing without a word."""
    table = pa.table({"text": TEXTS})
    name = "rows.parquet" if form == "parquet" else "rows.arrow"
    (folder / name).write_bytes(written(table, form) + written(table.slice(0, last), form))
    with pytest.raises(ValueError, match=rf"{name} breaks at row 1: .*(joined|ends at byte)"):
        read(bench, folder)


def test_archives_of_old_versions_and_records_that_are_no_pages(bench, folder):
    records = [record(answer(), version=version) for version in ("0.17", "0.18", "1.0", "1.1")]
    records += [record(b"x: y\r\n", kind) for kind in ("warcinfo", "request", "metadata", "revisit")]
    records += [record(answer(), "bogus"), record(answer(), "")]
    (folder / "a.warc.zst").write_bytes(b"".join(map(zstandard.compress, records)))
    passed_over = {"warcinfo": 1, "request": 1, "metadata": 1, "revisit": 1}
    assert read(bench, folder) == (4, {"unknown_record": 2}, passed_over)


def test_names_of_files_are_no_patterns(bench, folder):
    names = ["a b", "ä", "x#y", "q?", "[z]", "p%20", "new\nline", "-dash", "日本", "*"]
    for name in names:
        (folder / f"{name}.jsonl").write_bytes(lines([name]))
    assert read(bench, folder) == (10, {}, {})


def test_a_path_that_is_there_is_no_pattern(bench, folder):
    inner = folder / "[z] *"
    inner.mkdir()
    (inner / "a?.jsonl").write_bytes(lines())
    for place in (inner, inner / "a?.jsonl"):
        assert bench.run(collect, LocalSource(name="web", paths=(str(place),)).pinned()).documents == 50


def test_a_link_to_a_folder_is_named_and_hidden_folders_are_no_data(bench, folder):
    (folder / "a.jsonl").write_bytes(lines())
    for name in (".git", ".cache/huggingface"):
        (folder / name).mkdir(parents=True)
        (folder / name / "b.lock").write_bytes(b"x")
    assert read(bench, folder)[0] == 50
    (folder / "linked").symlink_to(folder / ".git")
    for place in (folder, folder / "*.jsonl"):
        with pytest.raises(ValueError, match=r"/linked is a link to a folder.*give the folder"):
            LocalSource(name="web", paths=(str(place),)).pinned()


def test_a_link_to_nothing_is_named(bench, folder):
    (folder / "a.jsonl").write_bytes(lines())
    (folder / "b.jsonl").symlink_to(folder / "nowhere")
    with pytest.raises(ValueError, match=r"b\.jsonl is listed there but does not exist: it is a link to nothing"):
        read(bench, folder)
