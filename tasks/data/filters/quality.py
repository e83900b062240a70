"""fastText score of a document (RECIPE C.3, the DCLM-baseline classifier's way of reading a page).

A page is stripped and its lines joined with single spaces; the score is the probability of the positive
label. Texts are given to fastText as a list: its single-text call fails with numpy 2. The same rule asks any classifier of the
recipe: of quality, of mathematics (the paper's OpenWebMath classifier, RECIPE C.7), of whatever was trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from model.config import Config
from tasks.data.filters.attributes import Limit, Scores
from tasks.data.filters.batch import TextBatch

POSITIVE_LABEL = "__label__hq"
NEGATIVE_LABEL = "__label__cc"


class QualityScorer(Config):
    """Asks a classifier of the recipe."""

    kind: Literal["quality"] = "quality"
    classifier: str = Field(default="quality", pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the classifier under `classifiers`, and of its attributes."""


class QualityRule(Config):
    """Keeps documents that the classifier scores high enough."""

    kind: Literal["quality"] = "quality"
    scorer: QualityScorer = QualityScorer()
    """Which classifier is asked."""
    threshold: float = Field(default=0.018112, ge=0, le=1)
    """Lowest score kept: 0.018112 for DCLM-baseline, 0.03311014 for the mid-training subset (RECIPE C.3)."""

    def limits(self) -> tuple[Limit, ...]:
        """The lowest score."""
        return (Limit("score", self.threshold, float("inf"), "probability"),)


def page_line(text: str) -> str:
    """A page as fastText reads it: one line."""
    return " ".join(text.strip().splitlines())


def load_classifier(path: Path) -> Any:
    """The fastText model of a `model.bin`."""
    import fasttext

    return fasttext.load_model(str(path))


def positive_probabilities(texts: Sequence[str], classifier: Any) -> list[float]:
    """Probability of the positive label for each text, 0 to 1; 0 for a text without any known word."""
    if not texts:
        return []
    # "\0" and "\n" would end a line inside fastText; a lone newline-like character is left to splitlines.
    lines = [page_line(text).replace("\n", " ").replace("\0", " ") for text in texts]
    labels, probabilities = classifier.predict(lines)
    scores = []
    for label, probability in zip(labels, probabilities, strict=True):
        # A line without any known word has no prediction; fastText's rounding goes slightly above 1.
        top = min(1.0, float(probability[0])) if len(label) else 0.0
        scores.append(1.0 - top if len(label) and label[0] != POSITIVE_LABEL else top)
    return scores


def score_quality(batch: TextBatch, classifier: Any) -> Scores:
    """`score`: probability of the positive label."""
    return Scores({"score": positive_probabilities(batch.texts, classifier)})
