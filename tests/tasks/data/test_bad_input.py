"""Broken input of every kind: counted and kept aside with file and line, never more memory than a worker may have, and
told apart from a machine that fails. Oracles: counts done by hand, and the kernel's peak of resident memory."""

import bz2
import errno
import gzip
import io
import lzma
import random
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from infra.storage.store import Store
from tasks.data.collect import collect
from tasks.data.documents.dolma_files import LineWriter
from tasks.data.sources import repeated
from tasks.data.sources.files.listing import BrokenFileError, SourceFailureError
from tasks.data.sources.hub import HubSource
from tasks.data.sources.local import LocalSource
from tasks.data.sources.reading import lines as lines_module
from tasks.data.sources.reading import tables
from tasks.data.sources.reading.lines import count_lines
from tasks.data.sources.reading.texts import cut_parts
from tasks.data.sources.rows import RowSource, read_rows


def local(*paths: Path, **options) -> LocalSource:
    options = {"name": "web", "max_bad_fraction": 0.9, "max_bad_file_fraction": 1.0, **options}
    return LocalSource(paths=tuple(map(str, paths)), **options).pinned()  # type: ignore[return-value]


def lines(*rows: object) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


@pytest.fixture
def small_partitions(bench):
    """Several pieces per shard and several partitions, so that nothing is found within one of them only."""
    bench.set(shuffle_bytes=2000)


@pytest.mark.parametrize("shard_bytes", [300, 1_000_000])
def test_repeated_ids_are_kept_aside_across_shards_with_their_lines(
    bench, tmp_path, monkeypatch, small_partitions, shard_bytes
):
    counted = []
    monkeypatch.setattr(
        repeated, "count_lines", lambda file, end: counted.append((file.url, end)) or count_lines(file, end)
    )
    rng = random.Random(1)
    rows = [{"id": f"id{rng.randrange(60)}", "text": f"text {number}"} for number in range(150)]
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl.gz"
    one.write_bytes(lines(*rows[:100]))
    two.write_bytes(gzip.compress(lines(*rows[100:])))
    made = bench.run(collect, local(one, two, shard_bytes=shard_bytes))
    first = {row["id"]: number for number, row in reversed(list(enumerate(rows)))}
    kept = bench.rows(made, "documents/")
    assert [row["text"] for row in kept] == [row["text"] for n, row in enumerate(rows) if first[row["id"]] == n]
    places = [(str(one), n + 1) if n < 100 else (str(two), n - 99) for n in range(150)]
    assert made.dropped == {"repeated_id": 150 - len(first)}
    bad = bench.rows(made, "bad/")
    assert [(row["file"], row["line"], row["document"]["text"]) for row in bad] == [
        (*places[n], row["text"]) for n, row in enumerate(rows) if first[row["id"]] != n
    ]
    assert made.documents == len(kept) and made.bytes == sum(len(row["text"]) for row in kept)
    assert bool(counted) == (shard_bytes == 300)
    assert len(set(counted)) == len(counted), "what stands before a byte range is read once, not for every row"
    stored = [name for name in bench.store.walk(made.address) if "documents/" in name]
    assert len(stored) == len(bench.reader().files(made, "documents/")), "replaced files are removed"


def test_too_many_repeated_ids_say_how_to_name_documents(bench, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_bytes(lines({"id": 0, "text": f"{name}0"}, {"id": 1, "text": f"{name}1"}))
    paths = (tmp_path / "a" / "x.jsonl", tmp_path / "b" / "x.jsonl")
    with pytest.raises(ValueError, match=r"2 of 4 rows .*b/x\.jsonl:1: repeated_id .* set id_field to ''"):
        bench.run(collect, local(*paths, max_bad_fraction=0.1))
    made = bench.run(collect, local(*paths, id_field=""))
    assert [row["id"] for row in bench.rows(made, "documents/")] == [
        f"{file}/x.jsonl:{offset}" for file in (0, 1) for offset in (0, 21)
    ]


PACKED = {
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".zstd": zstandard.compress,
    ".XZ": lzma.compress,
    ".bz2": bz2.compress,
}


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("kind", [".jsonl", ".txt"])
def test_compressed_files_cut_corrupt_or_in_several_streams(bench, tmp_path, suffix, kind):
    pack = PACKED[suffix]
    rng = random.Random(0)
    rows = [{"text": f"{rng.random()} {number}"} for number in range(6000)]
    whole, half = tmp_path / f"whole{kind}{suffix}", tmp_path / f"half{kind}{suffix}"
    junk, empty = tmp_path / f"junk{kind}{suffix}", tmp_path / f"empty{kind}{suffix}"
    whole.write_bytes(pack(lines(*rows[:3000])) + pack(lines(*rows[3000:])))
    half.write_bytes(pack(lines(*rows))[:-2000])
    junk.write_bytes(b"this is no archive at all" * 10)
    empty.write_bytes(pack(b""))
    if kind == ".txt":
        # A text is one document, so a broken one is one row that is known to be lost.
        made = bench.run(collect, local(whole, half, junk, empty))
        assert made.dropped == {"unreadable": 2}
        assert [Path(row["file"]).name.split(".")[0] for row in bench.rows(made, "bad/")] == ["half", "junk"]
        assert [row["text"] for row in bench.rows(made, "documents/")] == [lines(*rows).decode()]
        with pytest.raises(ValueError, match="2 of 4 files are unusable in part or whole"):
            bench.run(collect, local(whole, half, junk, empty, max_bad_file_fraction=0.4))
        return
    made = bench.run(collect, local(whole, empty))
    assert [row["text"] for row in bench.rows(made, "documents/")] == [row["text"] for row in rows]
    for broken in (half, junk):
        with pytest.raises(BrokenFileError, match=f"{broken.name} breaks at row .* rows it still holds is unknown"):
            bench.run(collect, local(whole, broken, empty))


def test_a_full_disk_fails_the_stage_and_is_no_bad_row(bench, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines({"text": "one"}, {"text": "two"})))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LineWriter, "write", full)
    with pytest.raises(OSError, match="No space left"):
        bench.run(collect, local(path))


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl", "rows.parquet", "rows.txt.gz", "rows.warc.gz"])
def test_a_medium_that_fails_is_no_bad_row(bench, tmp_path, monkeypatch, name):
    path = tmp_path / name
    pq.write_table(pa.table({"text": ["x" * 1000] * 5000}), path)
    config = local(path)

    class Broken(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    opened = Store.open
    monkeypatch.setattr(Store, "open", lambda store, at: Broken(path.read_bytes()) if at == name else opened(store, at))
    with pytest.raises(SourceFailureError, match=f"cannot read .*{name}.*Input/output error.* run the same command"):
        bench.run(collect, config)


def test_parquet_rows_that_are_broken_odd_or_cut_off(bench, tmp_path):
    odd, cut = tmp_path / "odd.parquet", tmp_path / "cut.parquet"
    texts = pa.array([b"good", b"\xff\xfe", None, b"also good"], pa.binary()).view(pa.string())
    raw = pa.array([b"\x00\xff", None, b"", b"x"])
    number = pa.array([1, 2, 3, 4]).cast(pa.decimal128(30, 2))
    pq.write_table(pa.table({"text": texts, "raw": raw, "price": number}), odd)
    pq.write_table(pa.table({"text": ["a"] * 10_000}), cut)
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(BrokenFileError, match=r"cut\.parquet breaks at row 1: its footer cannot be read"):
        bench.run(collect, local(odd, cut))
    made = bench.run(collect, local(odd))
    assert made.dropped == {"no_text": 1, "not_utf8": 1}
    assert [(row["text"], row["metadata"]) for row in bench.rows(made, "documents/")] == [
        ("good", {"raw": "\ufffd", "price": "1.00"}),
        ("also good", {"raw": "x", "price": "4.00"}),
    ]
    assert [(row["group"], row["line"]) for row in bench.rows(made, "bad/")] == [(0, 2), (0, 3)]


def test_all_rows_of_a_broken_row_group_are_unusable_and_the_others_are_read(bench, tmp_path):
    path = tmp_path / "rows.parquet"
    rng = random.Random(5)
    texts = [f"{rng.random()} {number}" for number in range(3000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1000, compression="snappy")
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    at = column.data_page_offset
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)
    made = bench.run(collect, local(path))
    assert made.documents + sum(made.dropped.values()) == 3000
    assert made.dropped["unreadable"] == 1000
    (bad,) = bench.rows(made, "bad/")
    assert (bad["group"], bad["line"], bad["rows"]) == (1, 1, 1000)
    facts = bench.json(made, "collect.json")
    assert (facts["files"], facts["bad_files"], facts["rows"], facts["read"]) == (1, 1, 3000, 2000)
    with pytest.raises(ValueError, match=r"1 of 1 files are unusable.*rows\.parquet"):
        bench.run(collect, local(path, max_bad_file_fraction=0.5))


@pytest.mark.parametrize("held_bytes", [1 << 10, 32 << 20])
@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_page_that_breaks_within_a_row_group_makes_all_its_rows_unusable(
    bench, tmp_path, monkeypatch, place, held_bytes
):
    """The rows before the page are not kept either: half a block would be a sample that nobody chose."""
    monkeypatch.setattr(tables, "_HELD_BYTES", held_bytes)
    path = tmp_path / "rows.parquet"
    rng = random.Random(6)
    texts = [f"{rng.random()} {number}" for number in range(4000)]
    pq.write_table(
        pa.table({"text": texts}),
        path,
        row_group_size=2000,
        compression="zstd",
        data_page_size=2000,
        use_dictionary=False,
    )
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    at = column.data_page_offset + int(column.total_compressed_size * place)
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)
    made = bench.run(collect, local(path))
    assert (made.documents, made.dropped) == (2000, {"unreadable": 2000})
    assert [row["text"] for row in bench.rows(made, "documents/")] == texts[2000:]
    (bad,) = bench.rows(made, "bad/")
    assert (bad["group"], bad["line"], bad["rows"]) == (0, 1, 2000)
    rows = list(read_rows(RowSource(paths=(str(path),)).pinned()))
    assert [row is None for _, row in rows] == [True] * 2000 + [False] * 2000


def test_a_page_whose_checksum_is_wrong_is_broken(bench, tmp_path):
    """A changed bit in an uncompressed page would otherwise be another text without a word."""
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.table({"text": ["a fine text"] * 9}),
        path,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
        write_statistics=False,
    )
    path.write_bytes(path.read_bytes().replace(b"fine", b"fime", 1))
    with pytest.raises(ValueError, match=r"no usable document: \{'unreadable': 9\}"):
        bench.run(collect, local(path, max_bad_fraction=1.0))


def test_bombs_end_at_a_bounded_size(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "MAX_EXPANSION_FROM", 1 << 20)
    monkeypatch.setattr(lines_module, "MAX_EXPANSION", 10)
    zeros = zstandard.compress(bytes(60_000_000))
    for name in ("line.jsonl.zst", "text.txt.zst", "page.html.zst"):
        (tmp_path / name).write_bytes(zeros)
    pq.write_table(pa.table({"text": ["x" * 100_000] * 300}), tmp_path / "rows.parquet")
    for name in ("line.jsonl.zst", "rows.parquet"):
        with pytest.raises(BrokenFileError, match=f"{name} breaks at row .*archive_bomb"):
            bench.run(collect, local(tmp_path / name, max_document_bytes=500_000, max_bad_fraction=1.0))
    (tmp_path / "good.txt").write_text("a text")
    paths = [tmp_path / name for name in ("text.txt.zst", "page.html.zst", "good.txt")]
    made = bench.run(collect, local(*paths, max_document_bytes=500_000, max_bad_fraction=1.0))
    reasons = {Path(row["file"]).name: row["reason"] for row in bench.rows(made, "bad/")}
    assert reasons == {"page.html.zst": "too_long", "text.txt.zst": "archive_bomb"}


@pytest.mark.parametrize("separator", [b"\n\n", b"<cut>", b""])
def test_parts_of_a_text_are_those_of_split(separator):
    rng = random.Random(3)
    pieces = [b"x" * rng.randrange(6) + b"\n" * rng.randrange(2) for _ in range(4000)]
    data = separator.join(pieces) if separator else b"".join(pieces)
    expected = data.split(separator) if separator else [data]
    for block in (1, 3, 7, 1 << 20):
        stream = io.BufferedReader(_Slow(data, block))  # type: ignore[arg-type]
        found = list(cut_parts(stream, separator, 1 << 30, 1 << 30))
        assert [part for _, part, _ in found] == expected
    starts = [1]
    for part in expected[:-1]:
        starts.append(starts[-1] + (part + separator).count(b"\n"))
    assert [line for line, _, _ in found] == starts


def test_a_long_part_is_skipped_and_the_next_one_found():
    data = b"a<cut>" + b"b\n" * 2_000_000 + b"<cut>c"
    found = list(cut_parts(io.BufferedReader(io.BytesIO(data)), b"<cut>", 1000, 1 << 30))  # type: ignore[arg-type]
    assert [(line, part[:2], problem) for line, part, problem in found] == [
        (1, b"a", ""),
        (1, b"b\n", "too_long: over 1,000 bytes"),
        (2_000_001, b"c", ""),
    ]


class _Slow(io.BytesIO):
    """Gives a few bytes at a time."""

    def __init__(self, data: bytes, block: int):
        super().__init__(data)
        self.block = block

    def readinto(self, buffer) -> int:
        data = super().read(min(self.block, len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def test_a_hub_file_that_breaks_ends_the_stage_by_name(bench, tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    rng = random.Random(0)
    packed = gzip.compress(lines(*({"text": f"{number} {rng.random()}"} for number in range(3000))))
    (folder / "train-0.jsonl.gz").write_bytes(packed)
    (folder / "train-1.jsonl.gz").write_bytes(packed[:-100])
    with pytest.raises(BrokenFileError, match=r"train-1\.jsonl\.gz breaks at row"):
        bench.run(collect, HubSource(name="hub", path=str(folder), max_bad_fraction=1.0).pinned())
    made = bench.run(collect, HubSource(name="hub", path=str(folder), exclude=("train-1*",)).pinned())
    assert made.documents == 3000


PEAK = """
import resource, sys
from pathlib import Path
from infra.session import Session
from infra.settings import Execution
from infra.execution.attempt import run_stage
from infra.storage.store import Store
from tasks.data.collect import collect
from tasks.data.sources.local import LocalSource
root = Path(sys.argv[1])
session = Session(Store(str(root / "store")), Execution(store=str(root / "store"), ray="off"))
config = LocalSource(name="web", paths=(str(root / "in"),), max_bad_fraction=0.9, max_bad_file_fraction=1.0).pinned()
made = run_stage(collect, session, collect.bind(config), lambda event: None).artifact
status = Path("/proc/self/status")
if status.exists():
    # Linux hands ru_maxrss on to a child: there it would be the peak of the process that runs all tests.
    peak = int(status.read_text().split("VmHWM:")[1].split()[0]) // 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20
print(peak, made.documents, made.dropped)
"""


def test_lines_of_a_hundred_megabytes_fit_a_worker(tmp_path):
    """The longest line that is taken (64 MB, with a character that makes Python hold four bytes for each), one above
    the limit, and text and a page above theirs."""
    folder = tmp_path / "in"
    folder.mkdir()
    with (folder / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "\xf0\x9f\x98\x80' + b"long " * 12_799_900 + b'"}\n')
        file.write(b'{"text": "' + b"long " * 20_000_000 + b'"}\n')
        file.write(b'{"text": "short"}\n')
    (folder / "b.txt").write_bytes(b"long " * 20_000_000)
    (folder / "c.html").write_bytes(b"<p>long</p>" * 1_600_000)
    run = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    peak, documents, dropped = run.stdout.strip().split(" ", 2)
    assert (documents, dropped) == ("2", "{'too_long': 3}")
    assert int(peak) < 1024, f"peak of {peak} MiB"
