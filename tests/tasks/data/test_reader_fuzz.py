"""The reader against damaged files: every row is read or named unusable, or the stage ends with the file's name.

Files of all formats and compressions are made from a fixed seed, with rows of changing shapes and texts of several encodings,
then cut, joined, or with flipped bits or a hole of zeros. `OLMO2_FUZZ_FILES` sets how many (200 unless told); the oracle is the
number of rows written.
"""

import ast
import bz2
import gzip
import io
import json
import lzma
import os
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tasks.data.collect import collect
from tasks.data.sources.files import pin
from tasks.data.sources.files.listing import BrokenFileError, ChangedFileError
from tasks.data.sources.hub import HubSource
from tasks.data.sources.local import LocalSource
from tasks.data.sources.reading import lines
from tests.tasks.data.conftest import Bench
from tests.tasks.data.test_pages import page, record

FILES = int(os.environ.get("OLMO2_FUZZ_FILES", "200"))
GROUPS = 10
"""Tests that the files are dealt to, so that they run in parallel."""
WORDS = [
    "river",
    "stone",
    "garden",
    "Größe",
    "naïve",
    "東京",
    "привет",
    "😀",
    "J*",
    "word",
    "}{",
    "[1,2]",
    '"quoted"',
    "a\\b",
]
EXTRA = (
    {},
    {"n": 1},
    {"n": "one"},
    {"n": None},
    {"n": {"k": [1, "x"]}},
    {"metadata": {"a": 1}},
    {"metadata": "{}"},
    {"x}{": "}{"},
)
"""Fields that one row has and the next has not, or has in another type."""


def long_window(data: bytes) -> bytes:
    """As `zstd --long=30` writes it."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=30, enable_ldm=True)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return writer.compress(data) + writer.flush()


def members(data: bytes) -> bytes:
    """Two gzip members, as appending to a file makes them."""
    return gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])


PACKS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".GZ": members,
    ".zst": zstandard.compress,
    ".zstd": long_window,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


ENCODINGS: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    ("identity", bytes),
    ("gzip", gzip.compress),
    ("GZIP", members),
    ("deflate", zlib.compress),
    ("zstd", zstandard.compress),
    ("strange", bytes),
)
"""How a server encoded its answer, and one that nobody knows."""


class Made(NamedTuple):
    """A file and the rows that were written into it."""

    name: str
    data: bytes
    rows: int


def texts(rng: random.Random, count: int) -> list[str]:
    return [f"{number} " + " ".join(rng.choices(WORDS, k=rng.randrange(3, 60))) for number in range(count)]


def shaped(rng: random.Random, number: int, text: str) -> dict:
    """A row with other columns and types than its neighbours."""
    return {"id": f"{number}", "text": text, **rng.choice(EXTRA)}


def make_lines(rng: random.Random, count: int) -> bytes:
    rows = [
        json.dumps(shaped(rng, i, text), ensure_ascii=rng.random() < 0.5) for i, text in enumerate(texts(rng, count))
    ]
    end = rng.choice(["\n", "\n", "\r\n", "\r"])
    if rng.random() < 0.1:
        rows = [f"[{', '.join(rows)}]"]
    encoding = rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])
    return (end.join(rows) + rng.choice([end, ""])).encode(encoding, errors="replace")


def make_table(rng: random.Random, count: int, kind: str) -> bytes:
    columns = {"text": texts(rng, count)}
    for name in rng.sample(["stars", "when", "nested", "raw"], 2):
        columns[name] = {
            "stars": pa.array(range(count)),
            "when": pa.array([10**18 + i for i in range(count)], pa.timestamp("ns")),
            "nested": pa.array([{"a": [i]} for i in range(count)]),
            "raw": pa.array([b"\xff" * (i % 3) for i in range(count)]),
        }[name]
    table, out = pa.table(columns), io.BytesIO()
    if kind == ".parquet":
        pq.write_table(
            table, out, row_group_size=rng.choice([7, 50, 10_000]), compression=rng.choice(["snappy", "zstd", "none"])
        )
    else:
        new = pa.ipc.new_file if rng.random() < 0.5 else pa.ipc.new_stream
        with new(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=rng.choice([7, 50, 10_000]))
    return out.getvalue()


def make_archive(rng: random.Random, count: int) -> bytes:
    charsets = ["utf-8", "base64", "iso-8859-1", "nonsense", ""]
    records = []
    for number, text in enumerate(texts(rng, count)):
        name, encode = rng.choice(ENCODINGS)
        head = f"Content-Type: text/html; charset={rng.choice(charsets)}\r\nContent-Encoding: {name}"
        records.append(record(encode(page(text).encode()), number, head=head))
    return b"".join(records)


def make_file(seed: int) -> tuple[Made, str]:
    """One file by its seed, and what was done to it: `whole`, `cut` or `flipped`."""
    rng = random.Random(seed)
    count = rng.choice([1, 3, 40, 200])
    form = rng.choice([".jsonl", ".json", ".JSONL", ".parquet", ".arrow", ".warc", ".txt"])
    packed = rng.choice(sorted(PACKS)) if form not in (".parquet", ".arrow") else ""
    if form in (".parquet", ".arrow"):
        data = make_table(rng, count, form)
    elif form == ".warc":
        data = make_archive(rng, count)
    elif form == ".txt":
        count, data = 1, " ".join(texts(rng, count)).encode()
    else:
        data = make_lines(rng, count)
    data = PACKS[packed](data)
    harm = rng.choice(["whole", "whole", "cut", "flipped", "flipped", "hole", "joined"])
    # In a text without a checksum a cut or changed page is a page; what is asked there is that no row is lost.
    if harm == "cut":
        data = data[: rng.randrange(1, len(data))]
    if harm == "flipped":
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 3])):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        data = bytes(changed)
    if harm == "hole":
        start = rng.randrange(len(data))
        data = data[:start] + bytes(len(data[start : start + 700])) + data[start + 700 :]
    if harm == "joined":
        # A text is one document however it came about, and a list or row without an end makes one line with what follows.
        data, count = data + data, count * (1 if form == ".txt" else 2)
    return Made(f"train-{seed}{form}{packed}", data, count), harm


def is_undetectable(made: Made, harm: str) -> bool:
    """Whether the damage leaves a file that is whole by its format: an uncompressed one cut between two rows or records."""
    lower = made.name.lower()
    if harm != "cut":
        return False
    if lower.endswith((".jsonl", ".json")):
        return made.data.rstrip(b"\r\n").endswith(b"}")
    return lower.endswith(".txt") or (
        lower.endswith(".warc") and made.data.endswith(b"</html>\r\n\r\n"[: len(made.data)])
    )


def account(bench: Bench, folder: Path, made: Made, kind: str, shard_bytes: int) -> str:
    """Read one file in parts of `shard_bytes`; says how it went. AssertionError when a row is missing without a word."""
    path = folder / made.name
    path.write_bytes(made.data)
    options = {"name": "web", "max_bad_fraction": 1.0, "max_bad_file_fraction": 1.0, "shard_bytes": shard_bytes}
    source = (
        LocalSource(paths=(str(path),), **options)
        if kind == "local"
        else HubSource(path=str(folder), data_files=(made.name,), **options)
    )
    documents, error = attempt(bench, source)
    if isinstance(error, BrokenFileError):
        assert made.name in str(error)
        return "ended"
    if error is not None:
        # A source of one file that holds nothing usable says so, with the number of rows and the file.
        counts = re.search(r"(?:holds no usable document: |that are no documents \()(\{.*?\})", str(error))
        assert counts, error
        assert made.name in str(error)
        assert sum(ast.literal_eval(counts[1]).values()) == made.rows, (made.name, counts, made.rows)
        return "unusable"
    passed_over = sum(bench.json(documents, "collect.json")["passed_over"].values())
    found = documents.documents + sum(documents.dropped.values()) + passed_over
    assert found == made.rows, (made.name, found, made.rows, documents.dropped)
    return "read"


def attempt(bench: Bench, source: LocalSource | HubSource) -> tuple[Any, ValueError | None]:
    """What was made, or the error that ended the stage; another error than one of the input is the test's."""
    try:
        return bench.run(collect, source.pinned()), None
    except ValueError as error:
        return None, error


@pytest.mark.parametrize("group", range(GROUPS))
def test_every_row_is_read_or_named(bench, tmp_path, group):
    went = {"read": 0, "unusable": 0, "ended": 0}
    for seed in range(group, FILES, GROUPS):
        made, harm = make_file(seed)
        if not is_undetectable(made, harm):
            # Every fifth file is cut into a few byte ranges.
            shard_bytes = 64_000_000 if seed % 5 else max(1, len(made.data) // 7)
            went[account(bench, tmp_path, made, "hub" if seed % 3 == 0 else "local", shard_bytes)] += 1
    assert went["read"] >= 2, went
    assert went["ended"] > 0, went


def rewrite(path: Path, data: bytes, *, keep_time: bool) -> None:
    stat = path.stat()
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("seed", range(12))
def test_no_schedule_of_changes_makes_an_id_hold_another_text(bench, tmp_path, monkeypatch, seed):
    """A file of the same length changes, with its time of change set back or not, at random reads; and may change back."""
    rng = random.Random(seed)
    path = tmp_path / "rows.jsonl"
    first = b"".join(b'{"text": "first %04d"}\n' % number for number in range(3000))
    other = first.replace(b"first", b"other")
    path.write_bytes(first)
    config = LocalSource(name="web", paths=(str(path),), shard_bytes=20_000).pinned()
    if rng.random() < 0.3:
        rewrite(path, other, keep_time=rng.random() < 0.5)

    moments = {rng.randrange(4000): data for data in rng.sample([other, first, other], rng.randrange(1, 4))}
    original = lines.cut_lines
    count = iter(range(10**9))

    def changing(*arguments):
        for found in original(*arguments):
            data = moments.get(next(count))
            if data is not None:
                rewrite(path, data, keep_time=rng.random() < 0.5)
            yield found

    monkeypatch.setattr(lines, "cut_lines", changing)
    made, error = attempt(bench, config)  # type: ignore[arg-type]
    if error is not None:
        assert isinstance(error, ChangedFileError)
        assert "rows.jsonl changed" in str(error)
        return
    assert all(row["text"].startswith("first") for row in bench.rows(made, "documents/"))
    assert made.documents == 3000


def test_a_large_file_edited_where_no_sample_is_taken_is_another_file(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(pin, "WHOLE_BYTES", 1 << 16)
    monkeypatch.setattr(pin, "_SAMPLE_BYTES", 1 << 10)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "same"}\n' * 20_000)
    config = LocalSource(name="web", paths=(str(path),), id_field="").pinned()
    data = bytearray(path.read_bytes())
    data[17 * 5000 + 10 : 17 * 5000 + 14] = b"edit"
    path.write_bytes(data)
    assert LocalSource(name="web", paths=(str(path),), id_field="").pinned() != config
    with pytest.raises(
        ChangedFileError, match=r"rows\.jsonl changed since the stage was planned.*Run the same command again"
    ):
        bench.run(collect, config)
    path.unlink()
    with pytest.raises(ChangedFileError, match=r"rows\.jsonl is gone"):
        bench.run(collect, config)
