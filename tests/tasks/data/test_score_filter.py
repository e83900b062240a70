"""Score and filter as stages. Oracles: the rules on the same texts one by one, counts done by hand, the plan of a recipe, numpy's
histogram.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flows.config.files import load, read_recipe
from flows.config.pinning import pin_recipe
from flows.config.recipe_config import RecipeConfig
from flows.running.run import plan
from infra.settings import Execution
from tasks.artifacts import Attributes, Documents
from tasks.data.collect import collect
from tasks.data.filter import FilterConfig, filter
from tasks.data.filters.classifiers.quality import QualityRule, QualityScorer
from tasks.data.filters.pii import PIIRule
from tasks.data.filters.statistics.gopher_quality import GopherQualityRule
from tasks.data.filters.statistics.length import LengthRule
from tasks.data.filters.statistics.repetition import RepetitionRule
from tasks.data.filters.statistics.word_frequency import WordFrequencyRule
from tasks.data.score import ScoreConfig, score

FILLER = "The quick brown fox jumps over the lazy dog while it rains number {}."
PROSE = "The house stood at the end of the road, and people who passed by it would have looked up with some interest. "


def test_every_document_is_kept_or_dropped_with_a_reason(bench):
    texts = [FILLER.format(i) for i in range(50)] + ["short", "spam " * 40, "same words here " * 3 + "x " * 20]
    documents = bench.documents(texts, shard_bytes=500)
    made = bench.filtered(documents, LengthRule(min_chars=20), RepetitionRule(), WordFrequencyRule())
    assert made.dropped == {"length": 1, "repetition": 1, "word_frequency": 1}
    assert made.documents == 50 == made.sources["web"]
    kept, dropped = bench.rows(made, "documents/"), bench.rows(made, "dropped/")
    assert sorted(row["text"] for row in kept + dropped) == sorted(texts)
    spam = next(row for row in dropped if row["reason"] == "repetition")
    assert spam["detail"] == "times is 39, at most 31 wanted"
    assert {name.split("__")[1] for name in spam["attributes"]} == {"length", "repetition"}


def test_the_order_of_rules_decides_the_reason_only(bench):
    texts = [FILLER.format(i) for i in range(9)] + ["spam " * 40, "x " * 50]
    documents = bench.documents(texts)
    rules = [RepetitionRule(), WordFrequencyRule()]
    forward, backward = bench.filtered(documents, *rules), bench.filtered(documents, *reversed(rules))
    assert bench.rows(forward, "documents/") == bench.rows(backward, "documents/")
    assert (forward.dropped, backward.dropped) == ({"repetition": 2}, {"word_frequency": 2})


def test_attributes_lie_beside_documents_row_by_row(bench):
    documents = bench.documents([FILLER.format(i) for i in range(30)], shard_bytes=400)
    scorers = FilterConfig(rules=(LengthRule(), WordFrequencyRule())).scorers
    made = bench.run(score, documents, ScoreConfig(scorers=scorers))
    reader = bench.reader()
    names = [name.split("/")[-1] for name in reader.files(documents, "documents/")]
    assert len(names) > 3
    assert (made.names, made.documents, made.of) == (["length", "word_frequency"], 30, documents.digest)
    for rule in made.names:
        assert [name.split("/")[-1] for name in reader.files(made, f"attributes/{rule}/")] == names
        assert [row["id"] for row in bench.rows(made, f"attributes/{rule}/")] == [
            row["id"] for row in bench.rows(documents, "documents/")
        ]
    first = bench.rows(made, "attributes/length/")[0]
    text = bench.rows(documents, "documents/")[0]["text"]
    assert first["attributes"] == {"olmo2__length__chars": [[0, len(text), float(len(text))]]}


def test_masked_text_is_what_goes_on(bench):
    many = " ".join(f"user{i}@mail.net" for i in range(6))
    documents = bench.documents(["Mail bob@mail.net " + PROSE, PROSE, many + PROSE])
    made = bench.filtered(documents, PIIRule(), GopherQualityRule(min_words=5), LengthRule(max_chars=10_000))
    masked = "Mail |||EMAIL_ADDRESS||| " + PROSE
    assert [row["text"] for row in bench.rows(made, "documents/")] == [masked, PROSE]
    assert made.bytes == len(masked) + len(PROSE)
    (dropped,) = bench.rows(made, "dropped/")
    assert (dropped["reason"], dropped["text"]) == ("pii", many + PROSE)
    # What comes after the mask is measured on the masked text.
    scores = bench.run(score, documents, ScoreConfig(scorers=(PIIRule().scorer, LengthRule().scorer)))
    lengths = [row["attributes"]["olmo2__length__chars"][0] for row in bench.rows(scores, "attributes/length/")]
    assert lengths[0] == [0, len(masked), float(len(masked.strip()))]


def test_histograms_hold_every_document_and_the_threshold(bench):
    texts = ["x" * n for n in (3, 5, 5, 200, 700)]
    made = bench.filtered(bench.documents(texts, shard_bytes=300), LengthRule(min_chars=5, max_chars=None))
    (found,) = bench.json(made, "histograms.json")
    assert (found["rule"], found["label"], found["least"], found["most"]) == ("length", "chars", 5.0, None)
    lengths = np.array([len(text) for text in texts])
    for part, own in (("kept", lengths[lengths >= 5]), ("dropped", lengths[lengths < 5])):
        assert found[part] == np.histogram(own, found["edges"])[0].tolist()


def test_filter_refuses_what_cannot_work(bench):
    documents = bench.documents(["a", "b"])
    with pytest.raises(ValueError, match=r"ask the classifiers maths, but 0 are given"):
        bench.filtered(documents, QualityRule(scorer=QualityScorer(classifier="maths")))
    with pytest.raises(ValueError, match=r"no document of .* passes: \{'length': 2\}"):
        bench.filtered(documents, LengthRule(min_chars=10))
    with pytest.raises(ValueError, match="rules occur twice: length"):
        FilterConfig(rules=(LengthRule(), LengthRule(min_chars=5)))
    with pytest.raises(ValueError, match="no scores for the rules length"):
        bench.run(filter, documents, FilterConfig(rules=(LengthRule(),)))
    others = bench.documents(["c"], "other")
    scores = bench.run(score, others, ScoreConfig(scorers=(LengthRule().scorer,)))
    with pytest.raises(ValueError, match="scores of other documents"):
        bench.run(filter, documents, FilterConfig(rules=(LengthRule(),)), scores)
    assert bench.run(filter, documents, FilterConfig(rules=())).documents == 2


def toy_recipe(folder: Path, threshold: float, ranks: int = 300, **changes: Any) -> RecipeConfig:
    """The smoke recipe over one little file, with one threshold to play with."""
    (folder / "web.jsonl").write_text("".join(f'{{"id": "{i}", "text": "{"word " * i}{i}"}}\n' for i in range(30)))
    recipe: dict[str, Any] = read_recipe("smoke")
    source = {"kind": "local", "paths": [str(folder / "web.jsonl")]}
    recipe["collect"] = {"web": source | {"name": "web"}, "code": source | {"name": "code"}}
    frequency = {"kind": "word_frequency", "max_top_fraction": threshold, "max_top_two_fraction": 1}
    repetition = {"kind": "repetition", "scorer": {"ranks": ranks}}
    recipe["filter"] = {name: {"rules": [frequency, repetition]} for name in ("web", "code")}
    recipe["classifiers"] = {}
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(recipe | changes, sort_keys=False))
    config = load(str(path))
    execution = Execution(store=str(folder / "store"), ray="off")
    return pin_recipe(config.model_copy(update={"execution": execution}))


def web_stages(bench: Any, config: RecipeConfig) -> tuple[Attributes, Documents]:
    """What the recipe's flow calls for its web source, in this process."""
    raw = bench.run(collect, config.collect["web"])
    rules = config.filter["web"]
    scores = bench.run(score, raw, ScoreConfig(scorers=rules.scorers), [])
    return scores, bench.run(filter, raw, rules, scores)


def test_a_changed_threshold_scores_nothing_again(bench, tmp_path, monkeypatch):
    config = toy_recipe(tmp_path, 1.0)
    rows = {row.label: row for row in plan(config)}
    assert rows["score:web"].action == rows["filter:web"].action == "run"
    scores, kept = web_stages(bench, config)
    assert kept.documents == 30
    stricter = toy_recipe(tmp_path, 0.95)
    rows = {row.label: row for row in plan(stricter)}
    assert rows["score:web"].artifact == scores
    assert rows["filter:web"].action == "run"
    assert "max_top_fraction: 1.0 → 0.95" in rows["filter:web"].reason
    # Whatever measures is not even called.
    monkeypatch.setattr("tasks.data.score.score_rows", lambda *_: pytest.fail("scored again"))
    again, fewer = web_stages(bench, stricter)
    assert again == scores
    # A word i times and one number.
    assert fewer.dropped == {"word_frequency": sum(max(i, 1) / (i + 1) > 0.95 for i in range(30))}
    rows = {row.label: row for row in plan(toy_recipe(tmp_path, 0.95, ranks=400))}
    assert rows["score:web"].action == "run", "what is measured belongs to the identity"


MATHS = {"positives": {"sources": ["maths"]}, "negatives": {"sources": ["web", "code"]}, "dim": 4, "bucket": 100}


def test_a_recipe_has_several_classifiers_each_with_its_sources(tmp_path):
    maths = {"kind": "quality", "threshold": 0.5, "scorer": {"classifier": "maths"}}
    rules = {"web": {"rules": [{"kind": "quality"}, maths]}, "code": {"rules": []}}
    candidate = {"name": "books", "synthesize": {"problems": [{"kind": "word_problems"}]}, "filter": {"rules": [maths]}}
    quality = {"positives": {"metadata": {"good": ["yes"]}}}
    classifiers = {"quality": quality, "maths": MATHS}
    config = toy_recipe(tmp_path, 1.0, filter=rules, classifiers=classifiers, candidates=[candidate])
    rows = {row.label: row for row in plan(config)}
    assert rows["classifier:maths"].inputs == ("synthesize:maths", "collect:web", "collect:code")
    assert rows["classifier:quality"].inputs == ("collect:web", "collect:code")
    assert rows["score:web"].inputs == ("collect:web", "classifier:quality", "classifier:maths")
    assert rows["filter:web"].inputs == ("collect:web", "score:web")
    assert "score:code" not in rows
    assert "filter:code" not in rows
    assert rows["score:books"].inputs == ("synthesize:books", "classifier:maths")
    assert rows["encode:books"].inputs == ("filter:books",)
    with pytest.raises(ValueError, match="quality rule of web asks the classifier 'maths', which is not under"):
        toy_recipe(tmp_path, 1.0, filter=rules, classifiers={"quality": quality})
    unknown = {"maths": MATHS | {"negatives": {"sources": ["news"]}}}
    with pytest.raises(ValueError, match="classifier 'maths' selects from news; the sources are web, code, maths"):
        toy_recipe(tmp_path, 1.0, classifiers=unknown)
