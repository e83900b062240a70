"""Deduplication of documents, similar documents, paragraphs and n-grams. Oracles: dictionaries and sets over the same texts
in the order that the stage promises, Jaccard similarity by brute force, and networkx for components."""

import random

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.dedup import DedupConfig, dedup
from tasks.data.duplicates.bloom import BloomFilter, expected_rate, shape
from tasks.data.duplicates.components import Edges, large_star, small_star, stars
from tasks.data.duplicates.minhash import MinHashConfig, band_keys, signatures
from tasks.data.duplicates.pieces import ParagraphConfig
from tasks.data.duplicates.seen import NGramConfig
from tasks.data.filters import windows as windows_module
from tasks.data.filters.ngrams import word_ngrams


@pytest.fixture(params=[None, 4000], ids=["one partition", "many partitions"])
def sizes(request, bench):
    """Everything in one partition, or several pieces per shard and several partitions."""
    if request.param:
        bench.set(shuffle_bytes=request.param)


def test_equal_texts_keep_the_first_in_order_of_inputs_and_rows(bench, sizes):
    rng = random.Random(0)
    texts = [f"text {rng.randrange(40)}" for _ in range(300)]
    inputs = [
        bench.documents(texts[:100], "one", shard_bytes=300),
        bench.documents(texts[100:], "two", shard_bytes=300),
    ]
    made = bench.run(dedup, inputs, DedupConfig())
    ids = [str(n if n < 100 else n - 100) for n in range(300)]
    first = {text: n for n, text in reversed(list(enumerate(texts)))}
    assert [row["text"] for row in bench.rows(made, "documents/")] == list(dict.fromkeys(texts))
    assert not [name for name in bench.store.walk("_progress") if "/work/" in name], "what passes leave goes at the end"
    assert [(row["id"], row["duplicate_of"]) for row in bench.rows(made, "dropped/")] == [
        (ids[n], ids[first[text]]) for n, text in enumerate(texts) if first[text] != n
    ]
    counts = sorted((texts.count(text) for text in first if texts.count(text) > 1), reverse=True)
    assert bench.json(made, "clusters.json") == {
        "exact": {"clusters": len(counts), "rows": sum(counts), "largest": counts[:20]}
    }


def planted(seed: int, documents: int, similar: int) -> list[str]:
    """Random texts of 60 words, the last ones changed copies of earlier ones (chains too), one in five an exact one."""
    rng = random.Random(seed)
    texts = [" ".join(f"w{rng.randrange(3000)}" for _ in range(60)) for _ in range(documents)]
    for number in range(similar):
        words = rng.choice(texts[-documents:]).split()
        for place in rng.sample(range(60), rng.choice((0, 1, 2, 4)) if number % 5 else 0):
            words[place] = f"x{rng.randrange(3000)}"
        texts.append(" ".join(words))
    return texts


def test_similar_documents_are_the_components_of_shared_band_keys(bench, sizes):
    texts = planted(1, 100, 60)
    config = MinHashConfig(bands=6, rows=4)
    keys = band_keys(signatures(texts, config), config)
    graph = nx.Graph()
    graph.add_nodes_from(range(len(texts)))
    for band in keys.T.tolist():
        first: dict[int, int] = {}
        graph.add_edges_from((first.setdefault(key, number), number) for number, key in enumerate(band))
    expected = {member: min(part) for part in nx.connected_components(graph) for member in part}
    made = bench.run(dedup, [bench.documents(texts, shard_bytes=4000)], DedupConfig(near=config))
    dropped = {int(row["id"]): int(row["duplicate_of"]) for row in bench.rows(made, "dropped/")}
    assert dropped == {number: kept for number, kept in expected.items() if number != kept}
    assert made.dropped["exact_duplicate"] == len(texts) - len(set(texts))
    parts = sorted((len(part) for part in nx.connected_components(graph) if len(part) > 1), reverse=True)
    found = bench.json(made, "clusters.json")["near"]
    assert found == {"clusters": len(parts), "rows": sum(parts), "largest": parts[:20]}


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_stars_are_the_components_around_their_smallest_nodes(pairs):
    edges = Edges(*(np.array([pair[side] for pair in pairs], dtype=np.uint64) for side in (0, 1)))
    found = stars(edges)
    expected = {
        (node, min(part)) for part in nx.connected_components(nx.Graph(pairs)) for node in part if node != min(part)
    }
    assert {(one, two) for one, two in zip(*map(np.ndarray.tolist, found), strict=True) if one > two} == expected
    assert not large_star(found)[1] and not small_star(found)[1]


def test_minhash_finds_what_brute_force_finds_as_often_as_theory_says():
    texts = planted(2, 300, 300)
    config = MinHashConfig(ngram=3, bands=20, rows=5)
    places = signatures(texts, config)
    keys = band_keys(places, config)
    sets = [set(word_ngrams([text], 3).hashes.tolist()) for text in texts]
    expected = variance = found = false = 0.0
    for one in range(len(texts)):
        for two in range(one):
            joint = len(sets[one] & sets[two])
            if joint == 0:
                false += (keys[one] == keys[two]).any()
                continue
            similarity = joint / len(sets[one] | sets[two])
            agreement = (places[one] == places[two]).mean()
            assert abs(agreement - similarity) < 5 * (similarity * (1 - similarity) / 100) ** 0.5 + 1e-9
            chance = 1 - (1 - similarity**5) ** 20
            expected, variance = expected + chance, variance + chance * (1 - chance)
            found += (keys[one] == keys[two]).any()
    assert false == 0
    assert expected > 200
    assert abs(found - expected) < 4 * variance**0.5


def paragraphs_of(seed: int) -> list[str]:
    rng = random.Random(seed)
    pool = [" ".join(f"w{rng.randrange(999)}" for _ in range(rng.choice((3, 9, 15)))) for _ in range(60)]
    return ["\n".join(rng.choice(pool) for _ in range(rng.randrange(1, 6))) for _ in range(120)]


def test_repeated_paragraphs_go_and_are_named(bench, sizes):
    texts = paragraphs_of(3)
    inputs = [bench.documents(texts[:50], "one", shard_bytes=900), bench.documents(texts[50:], "two", shard_bytes=900)]
    config = DedupConfig(within=ParagraphConfig(min_words=9))
    made = bench.run(dedup, inputs, config)
    seen: dict[str, str] = {}
    kept, removed, dropped = [], [], []
    for number, text in enumerate(texts):
        id = str(number if number < 50 else number - 50)
        if text in texts[:number]:
            continue
        parts = text.split("\n")
        repeated = []
        for piece, part in enumerate(parts):
            if len(part.split()) >= 9:
                if part in seen:
                    repeated.append((id, piece, part, seen[part]))
                else:
                    seen[part] = id
        rest = "\n".join(part for piece, part in enumerate(parts) if piece not in {entry[1] for entry in repeated})
        if rest.strip():
            kept.append(rest)
            removed += repeated
        else:
            dropped.append((id, repeated[0][3]))
    assert [row["text"] for row in bench.rows(made, "documents/")] == kept
    found = bench.rows(made, "removed/")
    assert [(row["id"], row["paragraph"], row["text"], row["duplicate_of"]) for row in found] == removed
    whole = [row for row in bench.rows(made, "dropped/") if row["reason"] == "repeated_paragraphs"]
    assert [(row["id"], row["duplicate_of"]) for row in whole] == dropped
    assert len(removed) > 50 and len(dropped) > 5
    assert bench.json(made, "clusters.json")["paragraphs_removed"]["removed"] == len(removed)


@pytest.mark.parametrize("drop", ["paragraphs", "documents", "both"])
def test_seen_ngrams_are_those_of_a_set_that_grows_in_order(bench, sizes, drop):
    rng = random.Random(4)
    base = [[f"w{rng.randrange(99999)}" for _ in range(30)] for _ in range(40)]
    texts = []
    for _ in range(120):
        parts = []
        for _ in range(rng.randrange(1, 5)):
            words = list(rng.choice(base))
            words[rng.randrange(30)] = f"x{rng.randrange(99999)}" if rng.random() < 0.5 else words[0]
            parts.append(" ".join(words[: rng.choice((3, 12, 30))]))
        texts.append("\n".join(parts))
    texts = list(dict.fromkeys(texts))
    within = NGramConfig(ngram=5, max_seen=0.6, drop=drop, false_positive_rate=2e-5)
    made = bench.run(dedup, [bench.documents(texts, shard_bytes=3000)], DedupConfig(within=within))
    seen: dict[tuple[str, ...], str] = {}
    kept, gone = [], 0
    for number, text in enumerate(texts):
        parts, counts = text.split("\n"), []
        for part in parts:
            words = part.split()
            grams = {tuple(words[place : place + 5]) for place in range(len(words) - 4)}
            counts.append((sum(gram in seen for gram in grams), len(grams)))
            seen |= {gram: str(number) for gram in grams if gram not in seen}
        known, total = map(sum, zip(*counts, strict=True))
        if drop != "paragraphs" and total and known >= 0.6 * total:
            continue
        stay = [p for p, (k, n) in zip(parts, counts, strict=True) if drop == "documents" or not n or k < 0.6 * n]
        gone += len(parts) - len(stay) if "".join(stay).strip() else 0
        kept += ["\n".join(stay)] if "".join(stay).strip() else []
    assert [row["text"] for row in bench.rows(made, "documents/")] == kept
    assert len(kept) <= len(texts) - 15
    removed = bench.rows(made, "removed/")
    assert len(removed) == gone
    assert (gone > 20) == (drop != "documents")
    for row in removed:
        words = row["text"].split()
        assert row["duplicate_of"] in {seen[tuple(words[p : p + 5])] for p in range(len(words) - 4)}
    for row in bench.rows(made, "dropped/"):
        assert row["reason"] == "repeated_ngrams" and int(row["duplicate_of"]) <= int(row["id"])


def test_a_bloom_filter_forgets_nothing_and_errs_as_rarely_as_it_says():
    rng = np.random.default_rng(0)
    hashes = np.sort(rng.integers(0, 1 << 64, size=80_000, dtype=np.uint64))
    buckets = (hashes >> np.uint64(60)).astype(np.int64)
    some = (buckets >= 3) & (buckets < 9)
    bloom = BloomFilter(np.bincount(buckets[some], minlength=9)[3:], 3, 4, 0.01)
    bloom.add(hashes[some])
    assert bloom.find(hashes[some]).all()
    fresh = rng.integers(3 << 60, 9 << 60, size=200_000, dtype=np.uint64)
    rate = bloom.find(fresh).mean()
    assert 0.002 < rate < 0.012
    assert rate == pytest.approx(expected_rate(*shape(0.01)), rel=0.15)
    alone = BloomFilter(np.bincount(buckets[some], minlength=9)[5:6], 5, 4, 0.01)
    alone.add(hashes[buckets == 5])
    inside = fresh[(fresh >> np.uint64(60)) == 5]
    assert (alone.find(inside) == bloom.find(inside)).all(), "buckets are independent"
    with pytest.raises(ValueError, match="needs more than 128 bits"):
        shape(1e-12)


@pytest.mark.parametrize("n", [1, 3, 13])
def test_windows_of_a_long_text_have_its_ngrams(monkeypatch, n):
    monkeypatch.setattr(windows_module, "WINDOW_CHARACTERS", 500)
    rng = random.Random(5)
    text = " ".join(f"word{rng.randrange(10**6)}" for _ in range(1000)) + "ü" * 1200
    expected = np.sort(word_ngrams([text[:-1200]], n).hashes)
    found = [word_ngrams(batch, n).hashes for batch, _ in windows_module.window_batches([text[:-1200]], n)]
    assert (np.unique(np.concatenate(found)) == np.unique(expected)).all()
    assert all(len(window) < 500 + 101 * n for window in windows_module.windows(text, n))
    config = MinHashConfig(ngram=n)
    short = signatures([text[:-1200], "few words"], config)
    monkeypatch.setattr(windows_module, "WINDOW_CHARACTERS", 10**6)
    assert (signatures([text[:-1200], "few words"], config) == short).all()
