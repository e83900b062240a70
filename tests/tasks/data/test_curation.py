"""Dedup, decontaminate and classifier as stages. Oracles: dictionaries and sets over the same
documents."""

import random

import pytest

from tasks.data.classifying.classifier import ClassifierConfig, ClassSelection, classifier
from tasks.data.decontaminate import decontaminate
from tasks.data.dedup import DedupConfig, dedup
from tasks.data.duplicates.minhash import MinHashConfig
from tasks.data.filters.classifiers.quality import QualityRule
from tasks.data.filters.ngrams import word_ngrams
from tasks.data.filters.overlap import OWNED, UNIT, DecontaminateConfig, Items, find_overlaps
from tasks.evaluation.benchmarks import load_items
from tasks.evaluation.benchmarks.synthetic import SyntheticBenchmark
from tasks.synthetic import WordProblemsConfig

FILLER = "The quick brown fox jumps over the lazy dog while it rains number {}."


def test_dedup_keeps_the_first_and_names_it(bench):
    one = [f"text {i % 20}" for i in range(40)]
    two = [f" text {i % 30}\n" for i in range(60)]
    inputs = [bench.documents(one, "one", shard_bytes=60), bench.documents(two, "two", shard_bytes=60)]
    made = bench.run(dedup, inputs, DedupConfig())
    assert made.sources == {"one": 20, "two": 10}
    assert made.dropped == {"exact_duplicate": 70}
    assert [row["text"].strip() for row in bench.rows(made, "documents/")] == [f"text {i}" for i in range(30)]
    for row in bench.rows(made, "dropped/"):
        assert row["duplicate_of"] == row["text"].split()[1], "ids of this test are positions of the first occurrence"


def test_near_duplicates_are_dropped_for_the_first_of_their_cluster(bench):
    rng = random.Random(0)
    words = [[f"w{rng.randrange(5000)}" for _ in range(200)] for _ in range(30)]
    texts = [" ".join(row) for row in words]
    near = [" ".join([*row[:100], "changed", *row[101:]]) for row in words[:10]]
    inputs = [bench.documents(texts, "one", shard_bytes=5000), bench.documents([*near, texts[20], "!", "?"], "two")]
    made = bench.run(dedup, inputs, DedupConfig(near=MinHashConfig()))
    assert made.dropped == {"exact_duplicate": 1, "near_duplicate": 10}
    assert made.sources == {"one": 30, "two": 2}
    dropped = bench.rows(made, "dropped/")
    assert [(row["id"], row["duplicate_of"]) for row in dropped] == [(str(i), str(i)) for i in range(10)] + [
        ("10", "20")
    ]
    assert bench.json(made, "clusters.json") == {
        "exact": {"clusters": 1, "rows": 2, "largest": [2]},
        "near": {"clusters": 11, "rows": 22, "largest": [2] * 11},
    }


BENCHMARK = SyntheticBenchmark(name="words", problems=(WordProblemsConfig(),), items=20)


def test_planted_items_are_removed_and_reported(bench):
    items = load_items(BENCHMARK)
    texts = [FILLER.format(i) for i in range(20)] + [items[3].text, f"See: {items[5].text.upper()}"]
    made = bench.run(decontaminate, bench.documents(texts), DecontaminateConfig(benchmarks=(BENCHMARK,)))
    assert made.dropped == {"contaminated": 2}
    assert [row["text"] for row in bench.rows(made, "documents/")] == texts[:20]
    (report,) = bench.json(made, "report.json")
    assert report["benchmark"] == "words"
    assert report["documents_removed"] == 2
    assert {items[3].id, items[5].id} <= {example["item"] for example in report["examples"]} | {
        items[3].id,
        items[5].id,
    }
    assert all(row["reason"] == "contaminated" for row in bench.rows(made, "dropped/"))


def test_an_item_hidden_in_a_long_document_needs_the_item_direction(bench):
    item = load_items(BENCHMARK)[0].text
    hidden = " ".join(FILLER.format(i) for i in range(200)) + " " + item
    documents = bench.documents([hidden, "something else entirely"])
    by_document = DecontaminateConfig(benchmarks=(BENCHMARK,))
    by_item = DecontaminateConfig(benchmarks=(BENCHMARK,), direction="item", max_overlap=0.8)
    assert bench.run(decontaminate, documents, by_document).documents == 2
    assert bench.run(decontaminate, documents, by_item).documents == 1


def test_overlap_shares_equal_those_of_sets(monkeypatch):
    import numpy as np

    monkeypatch.setattr("tasks.data.filters.overlap._PIECE_CHARACTERS", 40)
    item_texts = ["one two three four five", "six seven eight nine"]
    grams = word_ngrams(item_texts, 3)
    owned = np.zeros(len(grams.hashes), dtype=OWNED)
    owned["hash"], owned["unit"] = grams.hashes, grams.text
    owned.sort()
    items = Items(owned, np.array([(3, 0), (2, 1)], dtype=UNIT))
    document = {"text": "zero one two three four and then a lot of other words before seven eight nine ten"}
    words = document["text"].split()
    all_grams = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    known = {tuple(text.split()[i : i + 3]) for text in item_texts for i in range(len(text.split()) - 2)}
    (overlap,) = find_overlaps([document], items, 3, "document").values()
    assert overlap["share"] == pytest.approx(sum(gram in known for gram in all_grams) / len(all_grams))
    assert overlap["items"] == [0, 1]
    (overlap,) = find_overlaps([document], items, 3, "item").values()
    assert overlap["share"] == pytest.approx(2 / 3)


def test_classifier_separates_what_is_separable_and_repeats_itself(bench, new_bench):
    good = [f"This is a well written sentence about subject {i} and its long history." for i in range(150)]
    junk = [f"xx{i} $$ click 0x{i:x} buy {i % 7} ::" for i in range(150)]
    config = ClassifierConfig(
        positives=ClassSelection(sources=("good",)),
        negatives=ClassSelection(max_documents=100),
        dim=8,
        bucket=1000,
        learning_rate=0.5,
        epochs=10,
    )
    digests = []
    for place in (bench, new_bench("other")):
        inputs = [place.documents(good, "good"), place.documents(junk, "junk")]
        made = place.run(classifier, inputs, config)
        digests.append(made.digest)
    assert digests[0] == digests[1]
    assert made.precision > 0.9
    assert made.recall > 0.9
    assert 150 < made.examples < 250
    assert place.filtered(inputs[1], QualityRule(threshold=0.0), classifiers=[made]).documents == 150
    assert place.filtered(inputs[0], QualityRule(threshold=0.5), classifiers=[made]).documents > 135
    with pytest.raises(ValueError, match=r"no document of .* passes: \{'quality': 150\}"):
        place.filtered(inputs[1], QualityRule(threshold=0.9), classifiers=[made])
    with pytest.raises(ValueError, match="positives select 0 documents"):
        place.run(classifier, inputs, config.model_copy(update={"positives": ClassSelection(sources=("none",))}))
