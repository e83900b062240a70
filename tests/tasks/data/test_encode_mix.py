"""Oracles: golden/tokenizer.json and golden/dolmino_mix.json, decoding for encoding, and arithmetic done by
hand."""

import csv
import gzip
import io
import json
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Ranking, Tokens
from tasks.data import encode as encode_module
from tasks.data.dedup import DedupConfig, dedup
from tasks.data.encode import EncodeConfig, encode
from tasks.data.mix import Entry, MixConfig, MixSource, fill_windows, mix, plan_mix, take_passes

GOLDEN = Path(__file__).parents[2] / "golden"
TABLE_13 = json.loads((GOLDEN / "dolmino_mix.json").read_text())


def test_golden_ids_with_eos_and_no_bos(bench):
    # Token flags are not read from documents, so golden texts that hold control tokens are left out.
    golden = [
        case
        for case in json.loads((GOLDEN / "tokenizer.json").read_text())["encodings"]
        if case["text"].strip() == case["text"] and max(case["ids"]) < 100_256
    ]
    documents = bench.documents([case["text"] for case in golden])
    made = bench.run(encode, documents, EncodeConfig())
    (name,) = made.files
    ids = np.fromfile(bench.reader().path(made, name), dtype="<u4").tolist()
    assert ids == [id for case in golden for id in [*case["ids"], 100_257]]
    assert made.tokens == len(ids)


TEXTS = ["Hello world", "  padded \n", "", " \n ", "naïve 日本 🙂", "<|endoftext|> as text", "x" * 5000]


def test_index_says_where_each_document_is(bench):
    documents = bench.documents(TEXTS, shard_bytes=40)
    made = bench.run(encode, documents, EncodeConfig(ranks=1000))
    tokenizer, reader, decoded = Tokenizer(1000), bench.reader(), []
    assert made.documents == 5
    assert sum(made.files.values()) == made.tokens
    for name, count in made.files.items():
        ids = np.fromfile(reader.path(made, name), dtype="<u4")
        assert len(ids) == count
        assert ids.max() < tokenizer.vocab_size
        index = gzip.decompress(reader.path(made, name.replace(".npy", ".csv.gz")).read_bytes()).decode()
        position = 0
        for start, end, id, src, loc in csv.reader(io.StringIO(index)):
            assert int(start) == position
            position = int(end)
            assert ids[position - 1] == tokenizer.eos_id
            row = list(reader.read_jsonl(documents, src))[int(loc) - 1]
            assert row["id"] == id
            decoded.append(tokenizer.decode(ids[int(start) : position - 1]))
        assert position == count
    assert decoded == [text.strip() for text in TEXTS if text.strip()]


def test_encode_is_byte_identical_and_refuses_what_is_empty(bench, new_bench):
    one, two = (place.run(encode, place.documents(TEXTS), EncodeConfig(ranks=500)) for place in (bench, new_bench("b")))
    assert one.digest == two.digest
    with pytest.raises(ValueError, match="all 2 documents are empty"):
        bench.run(encode, bench.documents(["", " "], "blank"), EncodeConfig())
    with pytest.raises(ValueError, match=r"source 'other' is not in .*; choose one of web"):
        bench.run(encode, bench.documents(["a"]), EncodeConfig(source="other"))


def test_encoding_source_by_source_reads_each_file_once(bench, monkeypatch):
    """Whatever the number of sources that deduplication put into one artifact."""
    names = ("web", "code", "books", "papers")
    texts = {name: [f"document {n} of {name} and its own words" for n in range(30)] for name in names}
    inputs = [bench.documents(texts[name], name, shard_bytes=400) for name in names]
    clean = bench.run(dedup, inputs, DedupConfig())
    read: list[str] = []
    reading = encode_module.read_documents
    monkeypatch.setattr(
        encode_module, "read_documents", lambda ws, documents, name: read.append(name) or reading(ws, documents, name)
    )
    for name in names:
        made = bench.run(encode, clean, EncodeConfig(source=name))
        assert made.documents == 30
    assert sorted(read) == bench.reader().files(clean, "documents/")
    assert len(read) >= 12


def tokens(source: str, *counts: int, ranks: int = 100_256) -> Tokens:
    files = {f"tokens/{index:05d}.npy": count for index, count in enumerate(counts)}
    return Tokens(
        stage="encode",
        id=source,
        address=f"encode/{source}/g0001",
        digest=source,
        source=source,
        tokens=sum(counts),
        documents=1,
        ranks=ranks,
        files=files,
    )


def shares(entries: list[Entry]) -> dict[str, float]:
    total = sum(entry.tokens for entry in entries)
    found: dict[str, float] = {}
    for entry in entries:
        found[entry.source] = found.get(entry.source, 0.0) + entry.tokens / total
    return found


@pytest.mark.parametrize("part", ["file_heads", "whole_files"])
def test_source_percentages_give_the_published_50b_mix(part):
    # One token stands for a million. The 100B and 300B columns do not follow from their percentages (RECIPE C.8).
    rows = TABLE_13["table13"]["rows"]
    sources = {row[0]: tokens(row[0], *[round(row[1] * 10)] * 100) for row in rows}
    config = MixConfig(sources=tuple(MixSource(source=row[0], passes=row[2] / 100) for row in rows), part=part)
    found = shares(plan_mix(sources, config))
    for row in rows:
        assert 100 * found[row[0]] == pytest.approx(row[3], abs=0.3), row[0]


def test_passes_list_files_again_and_then_a_part():
    source = tokens("s", 100, 50)
    assert [entry.tokens for entry in take_passes(source, 2.5)] == [100, 50, 100, 50, 50, 25]
    whole = take_passes(source, 0.4, "whole_files", seed=1)
    assert sum(entry.tokens for entry in whole) == 60
    assert whole == take_passes(source, 0.4, "whole_files", seed=1)


counts = st.lists(st.integers(1, 4000), min_size=1, max_size=6)


@settings(max_examples=200)
@given(counts, counts, st.floats(0.1, 0.9), st.integers(100, 6000), st.sampled_from([16, 64]))
def test_windows_are_whole_within_capacity_and_fill_the_batches(one, two, ratio, requested, length):
    sources = {"one": tokens("one", *one), "two": tokens("two", *two)}
    config = MixConfig(
        sources=(
            MixSource(source="one", ratio=ratio, max_repetition_ratio=50),
            MixSource(source="two", ratio=1 - ratio, max_repetition_ratio=50),
        ),
        requested_tokens=requested,
        sequence_length=length,
        batch_size=4,
    )
    message = ""
    try:
        entries = plan_mix(sources, config)
    except ValueError as error:
        message = str(error)
        entries = []
    if not entries:
        assert any(why in message for why in ("needs", "whole windows", "no file of one window", "rounds to no window"))
        return
    assert all(entry.tokens % length == 0 and 0 < entry.tokens <= entry.capacity for entry in entries)
    assert sum(entry.tokens for entry in entries) >= ceil(requested / (4 * length)) * 4 * length


def test_hamilton_rounding_by_hand():
    # 300 = 3 windows of 90 and 30 over, 145 = 1 and 55, 95 = 1 and 5: of six windows the sixth goes to the largest remainder.
    entries = [Entry("a", name, "s", count, 1000) for name, count in (("x", 300), ("y", 145), ("z", 95))]
    assert [entry.tokens // 90 for entry in fill_windows(entries, 6, 90)] == [3, 2, 1]
    # Five more than there are: one for each first, then by remainder.
    assert [entry.tokens // 90 for entry in fill_windows(entries, 10, 90)] == [5, 3, 2]
    with pytest.raises(ValueError, match="33 whole windows of 90 tokens, 34 are needed"):
        fill_windows(entries, 34, 90)


def test_mix_artifact_and_ranked_winner(bench):
    parts = [
        bench.run(encode, bench.documents([f"{n} {i}" for i in range(40)], n), EncodeConfig())
        for n in ("web", "a", "b")
    ]
    ranking = Ranking(
        stage="r",
        id="r",
        address="r/r",
        digest="r",
        order=["b", "a"],
        scores={"a": 0.1, "b": 0.2},
        stderr={"a": 0, "b": 0},
    )
    wanted = (MixSource(source="web", passes=2), MixSource(source="winner"))
    found = plan_mix({part.source: part for part in parts}, MixConfig(sources=wanted), ranking)
    assert {entry.source for entry in found} == {"web", "b"}
    made = bench.run(mix, parts, MixConfig(sources=wanted, winner="a"))
    listed = bench.json(made, "mix.json")
    assert [(row["source"], row["passes"]) for row in listed["entries"]] == [("web", 2), ("a", 1)]
    assert made.tokens == sum(row["tokens"] * row["passes"] for row in listed["entries"]) == listed["tokens"]
    assert sum(made.shares.values()) == pytest.approx(1)
    assert listed["entries"][0]["address"] == parts[0].address
    everything = bench.run(mix, parts, MixConfig())
    assert everything.tokens == sum(part.tokens for part in parts)


def test_a_source_that_would_give_nothing_is_refused_by_name():
    sources = {"big": tokens("big", 10_000), "short": tokens("short", 60, 63), "rare": tokens("rare", 900)}
    shape = {"requested_tokens": 6400, "sequence_length": 64, "batch_size": 1}
    few = MixConfig(
        sources=(MixSource(source="big", ratio=0.99), MixSource(source="short", ratio=0.01, max_repetition_ratio=50)),
        **shape,
    )
    with pytest.raises(
        ValueError, match=r"'short' has no file of one window of sequence_length=64 tokens \(its 123 tokens"
    ):
        plan_mix(sources, few)
    rare = MixConfig(sources=(MixSource(source="big", ratio=0.9999), MixSource(source="rare", ratio=0.0001)), **shape)
    with pytest.raises(ValueError, match=r"'rare' has a ratio of 0\.0001 of 6,400 tokens, which rounds to no window"):
        plan_mix(sources, rare)


def test_mix_refuses_what_does_not_fit(bench):
    sources = {"a": tokens("a", 1000), "b": tokens("b", 1000)}
    half = (MixSource(source="a", ratio=0.5), MixSource(source="b", ratio=0.5))
    config = MixConfig(sources=half, requested_tokens=4000, sequence_length=10, batch_size=10)
    with pytest.raises(ValueError, match=r"source 'a' needs 2,000 tokens .* allow 1,000 .*max_repetition_ratio=2,"):
        plan_mix(sources, config)
    with pytest.raises(ValueError, match="ranked-first needs a ranking"):
        plan_mix(sources, MixConfig(sources=(MixSource(source="winner"),)))
    with pytest.raises(ValueError, match="'c' is not among the given ones: a, b"):
        plan_mix(sources, MixConfig(sources=(MixSource(source="c"),)))
    with pytest.raises(ValueError, match="different vocabularies"):
        bench.run(mix, [tokens("a", 10), tokens("b", 10, ranks=500)], MixConfig())
    with pytest.raises(ValueError, match="summing to 1"):
        MixConfig(sources=(MixSource(source="a", ratio=0.7),), requested_tokens=10)
    whole = MixConfig(sources=(MixSource(source="a", ratio=1.0),), requested_tokens=10)
    with pytest.raises(ValueError, match=r"requested_tokens=10 are rounded to whole batches, .* give both"):
        plan_mix({"a": tokens("a", 10)}, whole)
