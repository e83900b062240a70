"""Oracles: json and zlib for what is readable, counts done by hand, and the standard library for docstrings."""

import ast
import gzip
import inspect
import json
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.collect import collect
from tasks.data.sources.files.listing import BrokenFileError
from tasks.data.sources.hub import HubSource
from tasks.data.sources.intake import clean_text
from tasks.data.sources.local import LocalSource
from tasks.data.sources.python import PythonSource, docstrings


def lines(*rows: object) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def local(path: Path, **options) -> LocalSource:
    return LocalSource(name="web", paths=(str(path),), **options).pinned()  # type: ignore[return-value]


ROWS = [{"id": f"d{i}", "text": f"text number {i} " * (i % 7 + 1), "metadata": {"n": i}} for i in range(500)]


@pytest.mark.parametrize("kind", ["jsonl", "json.gz", "jsonl.zst", "parquet"])
def test_every_format_gives_the_same_documents(bench, tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    data = lines(*ROWS)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=100)
    else:
        packed = {"jsonl": data, "json.gz": gzip.compress(data), "jsonl.zst": zstandard.compress(data)}
        path.write_bytes(packed[kind])
    made = bench.run(collect, local(path, shard_bytes=2000))
    rows = bench.rows(made, "documents/")
    assert [(r["id"], r["text"], r["metadata"], r["source"]) for r in rows] == [
        (r["id"], r["text"], r["metadata"], "web") for r in ROWS
    ]
    assert made.documents == 500
    assert made.bytes == sum(len(r["text"]) for r in ROWS)
    assert len(bench.reader().files(made, "documents/")) > 5


@settings(max_examples=12)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=30), st.integers(1, 300))
def test_byte_ranges_give_each_line_once(tmp_path_factory, texts, shard_bytes):
    from tests.tasks.data.conftest import Bench

    bench = Bench(tmp_path_factory.mktemp("ranges"))
    path = bench.root / "rows.jsonl"
    path.write_bytes(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts))
    made = bench.run(collect, local(path, shard_bytes=shard_bytes))
    rows = bench.rows(made, "documents/")
    assert [row["text"] for row in rows] == [clean_text(text) for text in texts]
    assert len({row["id"] for row in rows}) == len(texts)


def test_bad_rows_are_counted_and_kept_with_file_and_line(bench, tmp_path):
    path = tmp_path / "bad.jsonl"
    good = lines(*ROWS[:200])
    bad = b'{"text": "cut off\n[1, 2]\n{"id": "x"}\n{"text": 5}\n{"text": "\xff"}\n\n'
    path.write_bytes(good + bad + lines(*ROWS[200:400]))
    made = bench.run(collect, local(path, shard_bytes=3000, max_bad_fraction=0.02))
    assert made.documents == 400
    assert made.dropped == {"no_text": 2, "not_json": 1, "not_object": 1, "not_utf8": 1}
    kept = bench.rows(made, "bad/")
    assert [(row["line"], row["reason"]) for row in kept] == [
        (201, "not_json"),
        (202, "not_object"),
        (203, "no_text"),
        (204, "no_text"),
        (205, "not_utf8"),
    ]
    assert all(row["file"] == str(path) for row in kept)
    with pytest.raises(ValueError, match=r"5 of 405 rows are unusable .*max_bad_fraction=0\.001.*bad\.jsonl:201"):
        bench.run(collect, local(path))


def test_surrogates_and_nul_are_repaired(bench, tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_bytes(
        b'{"text": "a\\ud800b\\u0000c"}\n{"text": "\\ud83d\\ude00"}\n{"text": "x", "metadata": {"n": NaN}}\n'
    )
    made = bench.run(collect, local(path))
    assert [row["text"] for row in bench.rows(made, "documents/")] == ["a\ufffdbc", "\U0001f600", "x"]
    assert bench.json(made, "collect.json")["repaired"] == 2


@given(st.text(alphabet=st.characters(), max_size=30))
def test_clean_text_is_writable_and_changes_nothing_else(text):
    clean = clean_text(text)
    clean.encode("utf-8")
    assert "\x00" not in clean
    assert clean_text(clean) is clean


def test_a_document_longer_than_a_shard_is_whole(bench, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_bytes(lines({"text": "a " * 50_000}, {"text": "b"}))
    made = bench.run(collect, local(path, shard_bytes=1000))
    assert sorted(len(row["text"]) for row in bench.rows(made, "documents/")) == [1, 100_000]


def test_a_line_beyond_the_limit_is_kept_aside_without_reading_it_whole(bench, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_bytes(lines({"text": "a"}, {"text": "b" * 5000}, {"text": "c"}))
    made = bench.run(collect, local(path, max_document_bytes=1000, max_bad_fraction=0.5))
    assert [row["text"] for row in bench.rows(made, "documents/")] == ["a", "c"]
    assert made.dropped == {"too_long": 1}


def test_an_archive_bomb_is_cut_off(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.data.sources.reading.lines.MAX_EXPANSION_FROM", 1 << 16)
    path = tmp_path / "bomb.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"text": "a"}\n' * 400_000))
    with pytest.raises(BrokenFileError, match=r"bomb\.jsonl\.zst breaks at row .*archive_bomb"):
        bench.run(collect, local(path, max_bad_fraction=0.5))


def test_plain_text_whole_or_cut(bench, tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("one\n\n\ntwo\n\n\n\n\n\nthree")
    assert bench.run(collect, local(path)).documents == 1
    made = bench.run(collect, local(path, text_separator="\n\n\n"))
    assert [row["text"] for row in bench.rows(made, "documents/")] == ["one", "two", "three"]


def test_other_columns_and_sources_go_to_metadata(bench, tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"content": "t", "key": 7, "stars": 3, "source": "gh"}]), path)
    made = bench.run(collect, local(path, text_field="content", id_field="key"))
    assert bench.rows(made, "documents/") == [
        {"id": "7", "text": "t", "source": "web", "metadata": {"stars": 3, "original_source": "gh"}}
    ]


def test_globs_folders_and_what_is_not_there(tmp_path):
    for name in ("a/x.jsonl", "a/b/y.jsonl", "a/b/z.txt", "a/b/skip.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(lines({"text": name}))
    found = {
        pattern: [file.name for file in local(tmp_path / pattern, exclude=("*.bin",)).files]
        for pattern in ("a", "a/**/*.jsonl", "a/*")
    }
    assert found == {
        "a": ["b/y.jsonl", "b/z.txt", "x.jsonl"],
        "a/**/*.jsonl": ["b/y.jsonl", "x.jsonl"],
        "a/*": ["x.jsonl"],
    }
    with pytest.raises(ValueError, match=r"nothing\.jsonl' does not exist"):
        local(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match="matches no file"):
        local(tmp_path / "*.parquet")
    with pytest.raises(
        ValueError, match=r"holds files that no reader knows: b/skip\.bin\. Leave them out with .*\*\.bin"
    ):
        local(tmp_path / "a")
    assert [file.name for file in local(tmp_path / "a", include=("b/**",), exclude=("*.bin", "**/y*")).files] == [
        "b/z.txt"
    ]
    with pytest.raises(ValueError, match=r"skip\.bin: no known document format"):
        local(tmp_path / "a/b/skip.bin")


def test_identity_follows_the_content_of_files(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines({"text": "one"}))
    before = local(path)
    assert local(path) == before
    path.write_bytes(lines({"text": "two"}))
    assert local(path) != before


def test_empty_sources_and_unresolved_configs_say_so(bench, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="source 'web' is empty"):
        bench.run(collect, local(tmp_path / "empty.jsonl"))
    with pytest.raises(ValueError, match=r"call its method `pinned`"):
        bench.run(collect, PythonSource(name="docs"))


@pytest.mark.slow
def test_a_local_folder_is_streamed_as_a_dataset(bench, tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    for part in range(3):
        (folder / f"train-{part}.jsonl").write_bytes(lines(*({"text": f"{part}-{i}", "url": "u"} for i in range(10))))
    config = HubSource(name="hub", path=str(folder), max_documents=20).pinned()
    made = bench.run(collect, config)
    rows = bench.rows(made, "documents/")
    assert [row["text"] for row in rows] == [
        f"{part}-{i}" for part, share in enumerate((7, 7, 6)) for i in range(share)
    ]
    assert rows[0]["metadata"] == {"url": "u"}


def test_docstrings_are_those_that_inspect_finds():
    source = Path(inspect.getsourcefile(json.JSONDecoder) or "").read_bytes()
    found = {name: text for name, _, _, text in docstrings(source)}
    assert found["JSONDecoder.decode"] == inspect.getdoc(json.JSONDecoder.decode)
    assert found[""] == inspect.getdoc(json.decoder)
    assert len(found) == sum(
        isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
        for node in ast.walk(ast.parse(source))
    )


def test_python_source_is_deterministic_within_budget_and_licensed(bench, new_bench):
    config = PythonSource(name="docs", packages=("numpy",), max_bytes=300_000, shard_bytes=100_000).pinned()
    made = bench.run(collect, config)
    again = new_bench("other").run(collect, config)
    assert made.digest == again.digest
    assert 250_000 < made.bytes <= 300_000
    rows = bench.rows(made, "documents/")
    assert len({row["id"] for row in rows}) == len(rows) == made.documents
    assert {row["metadata"]["package"] for row in rows} == {"python", "numpy"}
    assert all(row["metadata"]["license"] and row["metadata"]["version"] for row in rows)
    with pytest.raises(ValueError, match=r"pins other versions than are installed .*numpy: recipe 0\.1"):
        config.model_copy(update={"versions": {**config.versions, "numpy": "0.1"}}).pinned()
    with pytest.raises(ValueError, match="'no-such-package' is not installed"):
        PythonSource(name="docs", packages=("no-such-package",)).pinned()


def test_assets_take_their_share_of_the_bytes_and_no_more(bench):
    config = PythonSource(name="docs", packages=("ray",), max_bytes=300_000, assets=0.2).pinned()
    rows = bench.rows(bench.run(collect, config), "documents/")
    sizes = {True: 0, False: 0}
    for row in rows:
        sizes[row["metadata"]["object"] == "asset"] += len(row["text"].encode())
    assert 50_000 < sizes[True] <= 60_000
    assert 200_000 < sizes[False] <= 240_000
    assets = [row for row in rows if row["metadata"]["object"] == "asset"]
    assert {row["metadata"]["name"].rsplit(".")[-1] for row in assets} <= {"js", "css", "svg"}
    assert max(len(row["text"]) for row in assets) <= 2_000


def test_code_is_whole_files(bench):
    config = PythonSource(name="code", content="code", packages=(), max_bytes=200_000).pinned()
    rows = bench.rows(bench.run(collect, config), "documents/")
    assert all(row["metadata"]["file"].endswith(".py") for row in rows)
    path = Path(inspect.getsourcefile(json) or "").parents[1] / rows[0]["metadata"]["file"]
    assert rows[0]["text"] == path.read_text()
