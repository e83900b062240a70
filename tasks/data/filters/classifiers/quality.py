"""fastText score of a document (RECIPE C.3, the DCLM-baseline classifier's way of reading a page).

A page is stripped and its lines joined with single spaces; the score is the probability of the positive
label. Texts are given to fastText as a list: its single-text call fails with numpy 2. The same rule asks any classifier of the
recipe: of quality, of mathematics (the paper's OpenWebMath classifier, RECIPE C.7), of whatever was trained. With `file` it asks
a released model, such as DCLM's, pinned by its hash; what the recipe trains is such a file too (`model.bin` of the artifact).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from model.config import Config
from tasks.data.filters.attributes import DocumentScores, Limit
from tasks.data.filters.batch import TextBatch
from tasks.data.filters.pinned import PinnedFile, read_pinned

TRAINING_PROGRAM = Path(__file__).with_name("train_fasttext.py")
"""What trains a classifier, as a process of its own."""
POSITIVE_LABEL = "__label__hq"
NEGATIVE_LABEL = "__label__cc"


class QualityScorer(Config):
    """Asks a classifier of the recipe."""

    kind: Literal["quality"] = "quality"
    classifier: str = Field(default="quality", pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the classifier under `classifiers`, and of its attributes."""
    file: PinnedFile | None = None
    """A fastText `.bin` of others, such as the released DCLM one, instead of a classifier of the recipe."""
    positive_label: str = Field(default=POSITIVE_LABEL, pattern=r"^\S+$")
    """The label whose probability is the score."""

    def pinned(self) -> Self:
        """The scorer with the file that it asks pinned by its hash."""
        return self.model_copy(update={"file": self.file.pinned()}) if self.file else self


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


def load_file(file: PinnedFile, positive_label: str, folder: Path) -> Any:
    """The fastText model of a pinned file. Raises ValueError where it is none, or has not the label."""
    path = folder / "classifier.bin"
    path.write_bytes(read_pinned(file))
    try:
        # fastText raises ValueError for any file that is none of its own.
        model = load_classifier(path)
    except ValueError as error:
        raise ValueError(f"{file.path} is no fastText model that can be loaded: {error}") from error
    if positive_label not in (labels := model.get_labels()):
        raise ValueError(
            f"{file.path} has no label {positive_label!r}; its labels are {', '.join(labels[:8])}: name one as positive_label"
        )
    return model


def positive_probabilities(texts: Sequence[str], classifier: Any, positive_label: str = POSITIVE_LABEL) -> list[float]:
    """Probability of the positive label for each text, 0 to 1; 0 for a text without any known word."""
    if not texts:
        return []
    # "\0" and "\n" would end a line inside fastText; a lone newline-like character is left to splitlines.
    lines = [page_line(text).replace("\n", " ").replace("\0", " ") for text in texts]
    scores: list[float] = []
    # With two classes one probability tells both; with more, all labels have to be asked.
    if len(classifier.get_labels()) != 2:
        for label, probability in zip(*classifier.predict(lines, k=-1), strict=True):
            scores.append(min(1.0, float(dict(zip(label, probability, strict=True)).get(positive_label, 0.0))))
        return scores
    labels, probabilities = classifier.predict(lines)
    for label, probability in zip(labels, probabilities, strict=True):
        # A line without any known word has no prediction; fastText's rounding goes slightly above 1.
        top = min(1.0, float(probability[0])) if len(label) else 0.0
        scores.append(1.0 - top if len(label) and label[0] != positive_label else top)
    return scores


def score_quality(batch: TextBatch, classifier: Any, positive_label: str = POSITIVE_LABEL) -> DocumentScores:
    """`score`: probability of the positive label."""
    return DocumentScores({"score": positive_probabilities(batch.texts, classifier, positive_label)})
