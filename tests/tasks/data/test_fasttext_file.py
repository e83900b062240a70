"""Rules that ask a fastText file of others. Oracle: fastText's own predictions, one line at a time."""

import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tasks.data.classifying.classifier import _ZEROED_MEMORY, ClassifierConfig, ClassSelection, classifier
from tasks.data.filters.classifiers.quality import QualityRule, QualityScorer, load_classifier
from tasks.data.filters.pinned import PinnedFile
from tasks.data.filters.rules import classifier_of, pin_rule
from tasks.data.score import ScoreConfig, score

WORDS = (
    "river",
    "theorem",
    "Über",
    "proof",
    "click",
    "buy",
    "now",
    "数学",
    "cheap",
    "integral",
    "naïve",
    "lemma",
    "sale",
    "free",
)
GOOD = {"theorem", "proof", "数学", "integral", "lemma"}


def text(rng: Random) -> str:
    """Several lines of words, some of which no training saw."""
    words = [rng.choice((*WORDS, f"unseen{rng.randint(0, 99)}")) for _ in range(rng.randint(3, 40))]
    return "\n".join(" ".join(words[at : at + 7]) for at in range(0, len(words), 7)) + rng.choice(("", "\n", "  \n\n"))


def trained(folder: Path, labels: tuple[str, ...]) -> Path:
    """A model that the fasttext package makes of labelled lines, as DCLM's script does."""
    rng = Random(1)
    lines = []
    for number in range(600):
        line = " ".join(text(rng).split())
        good = 3 * sum(word in GOOD for word in line.split()) > len(line.split())
        lines.append(f"{labels[0] if good else labels[1 + number % (len(labels) - 1)]} {line}")
    (folder / "lines.txt").write_text("\n".join(lines) + "\n")
    made = folder / f"of-{len(labels)}.bin"
    code = (
        "import sys, fasttext; fasttext.train_supervised(sys.argv[1], wordNgrams=2, dim=16, bucket=5000, epoch=20, thread=1, "
        "verbose=0).save_model(sys.argv[2])"
    )
    # fastText's matrices begin as whatever the heap holds; see tasks/data/classifying/classifier.py.
    subprocess.run([sys.executable, "-c", code, str(folder / "lines.txt"), str(made)], env=_ZEROED_MEMORY, check=True)
    return made


def own_word(model: Any, page: str, label: str, labels: int) -> float:
    """What fastText says of a page as one line, at most 1 (it adds 1e-5). Of two labels DCLM's script asks for the first and
    takes the rest for the other.
    """
    (found,), (numbers,) = model.predict([" ".join(page.split("\n")).strip()], k=1 if labels == 2 else labels)
    if labels == 2:
        first = min(1.0, float(numbers[0]))
        return first if found[0] == label else 1.0 - first
    return min(1.0, dict(zip(found, map(float, numbers), strict=True))[label])


def scores_of(bench: Any, documents: Any, scorer: QualityScorer, given: list[Any]) -> list[float]:
    made = bench.run(score, documents, ScoreConfig(scorers=(scorer,)), given)
    rows = bench.rows(made, f"attributes/{scorer.classifier}/")
    return [row["attributes"][f"olmo2__{scorer.classifier}__score"][0][2] for row in rows]


@pytest.mark.parametrize("labels", [("__label__hq", "__label__cc"), ("__label__math", "__label__web", "__label__code")])
def test_scores_are_fasttexts_own(bench, tmp_path, labels):
    path = trained(tmp_path, labels)
    rng = Random(2)
    texts = [f"{number} {text(rng)}" for number in range(1000)]
    scorer = QualityScorer(classifier="dclm", file=PinnedFile(path=str(path)).pinned(), positive_label=labels[0])
    found = scores_of(bench, bench.documents(texts), scorer, [])
    model = load_classifier(path)
    own = [own_word(model, page, labels[0], len(labels)) for page in texts]
    assert len(found) == 1000
    assert max(abs(one - other) for one, other in zip(found, own, strict=True)) < 1e-6
    assert min(found) < 0.2 and max(found) > 0.8


def test_what_a_recipe_trains_is_such_a_file(bench, tmp_path):
    rng = Random(3)
    documents = bench.documents([f"{number} {text(rng)}" for number in range(200)])
    config = ClassifierConfig(positives=ClassSelection(min_chars=120), dim=8, bucket=1000)
    made = bench.run(classifier, [documents], config)
    exported = tmp_path / "exported.bin"
    exported.write_bytes(bench.reader().path(made, "model.bin").read_bytes())
    scorer = QualityScorer(file=PinnedFile(path=str(exported)).pinned())
    assert scores_of(bench, documents, scorer, []) == scores_of(bench, documents, QualityScorer(), [made])


def test_the_file_is_pinned_by_its_hash_and_takes_the_classifiers_place(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"anything")
    rule = QualityRule(scorer=QualityScorer(file=PinnedFile(path=str(path))))
    assert classifier_of(rule.scorer) == ""
    pinned = pin_rule(rule)
    assert isinstance(pinned, QualityRule) and pinned.scorer.file is not None
    assert len(pinned.scorer.file.sha256) == 64
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="the file changed"):
        pin_rule(pinned)


def test_a_file_without_the_label_or_that_is_no_model_is_named(bench, tmp_path):
    path = trained(tmp_path, ("__label__good", "__label__bad"))
    documents = bench.documents(["One text."])
    with pytest.raises(Exception, match=r"of-2\.bin has no label '__label__hq'; its labels are"):
        scores_of(bench, documents, QualityScorer(file=PinnedFile(path=str(path)).pinned()), [])
    path.write_bytes(b"no model at all")
    with pytest.raises(Exception, match="is no fastText model that can be loaded"):
        scores_of(bench, documents, QualityScorer(file=PinnedFile(path=str(path)).pinned()), [])
