"""Identifies languages by one of three libraries. Resiliparse works offline and guesses one language at some 150 MB/s per
core, without a probability. langdetect gives one, at half a megabyte per second (seeded, so it repeats itself). The third is
a fastText model such as lid.176, which RefinedWeb and DCLM used.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field
from resiliparse.parse.lang import detect_fast

from model.config import Config
from tasks.data.filters.attributes import DocumentScores, Limit
from tasks.data.filters.batch import TextBatch
from tasks.data.filters.classifiers.quality import load_classifier, page_line
from tasks.data.filters.classifiers.scripts import is_in_script, script_of
from tasks.data.filters.pinned import PinnedFile

_SEED = 0
_LABEL = "__label__"
_GUESSES = 5


class Resiliparse(Config):
    """Resiliparse's guess, on the whole text: 1 for the guessed language, 0 for all others."""

    kind: Literal["resiliparse"] = "resiliparse"


class LangDetect(Config):
    """langdetect, on the beginning of a text."""

    kind: Literal["langdetect"] = "langdetect"
    sample_chars: int = Field(default=2000, gt=0)
    """Characters from the beginning of the text that are looked at: identification takes milliseconds per
    thousand."""


class FastTextIdentifier(Config):
    """A fastText model whose labels are languages, on the whole text."""

    kind: Literal["fasttext"] = "fasttext"
    model: PinnedFile
    """The model, such as lid.176.bin (https://fasttext.cc/docs/en/language-identification.html)."""

    def pinned(self) -> Self:
        """The identifier with its model pinned by its hash."""
        return self.model_copy(update={"model": self.model.pinned()})


class LanguageScorer(Config):
    """Asks how probable a language is."""

    kind: Literal["language"] = "language"
    language: str = Field(default="en", pattern="^[a-z]{2,3}(-[a-z]{2})?$")
    """ISO 639-1 code as the identifier writes it (langdetect: `zh-cn`, `zh-tw` for Chinese)."""
    identifier: Annotated[Resiliparse | LangDetect | FastTextIdentifier, Field(discriminator="kind")] = Resiliparse()
    """What identifies."""
    min_script: float = Field(default=0.5, ge=0, le=1)
    """Smallest share of letters in the script of the language; a text below it is not in that language, whatever the identifier
    says. 0 asks the identifier alone, as the peers do."""

    def pinned(self) -> Self:
        """The scorer with its identifier pinned."""
        return self.model_copy(update={"identifier": self.identifier.pinned()})


class LanguageRule(Config):
    """Keeps texts of one language."""

    kind: Literal["language"] = "language"
    scorer: LanguageScorer = LanguageScorer()
    """Which language, and what identifies it."""
    min_probability: float = Field(default=0.65, ge=0, le=1)
    """Lowest probability of that language (RefinedWeb's limit, which DCLM uses)."""

    def limits(self) -> tuple[Limit, ...]:
        """The lowest probability."""
        return (Limit(self.scorer.language, self.min_probability, 1.0, "share"),)


@cache
def _factory() -> Any:
    from langdetect import DetectorFactory
    from langdetect.detector_factory import PROFILES_DIRECTORY

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    # langdetect draws random numbers; without a seed one text has two answers.
    factory.set_seed(_SEED)
    return factory


def language_probability(text: str, language: str) -> float:
    """langdetect's probability that a text is in a language; 0 for a text without letters."""
    from langdetect.lang_detect_exception import LangDetectException

    detector = _factory().create()
    detector.append(text)
    try:
        found = detector.get_probabilities()
    except LangDetectException:
        # Texts without letters have no profile to compare.
        return 0.0
    return next((float(guess.prob) for guess in found if guess.lang == language), 0.0)


def load_identifier(content: bytes, folder: Path) -> Any:
    """A fastText model of languages from the bytes of its file. Raises ValueError if its labels are none."""
    path = folder / "languages.bin"
    path.write_bytes(content)
    model = load_classifier(path)
    if not all(label.startswith(_LABEL) for label in model.get_labels()):
        raise ValueError(
            f"the language model's labels do not begin with {_LABEL!r}: {model.get_labels()[:3]}; give lid.176"
        )
    return model


def _model_probabilities(texts: Sequence[str], language: str, model: Any) -> list[float]:
    # fastText ends a line at NUL; the label of the rest would be lost.
    labels, probabilities = model.predict([page_line(text).replace("\0", " ") for text in texts], k=_GUESSES)
    found = []
    for own, numbers in zip(labels, probabilities, strict=True):
        guesses = dict(zip(own, numbers, strict=True))
        # fastText's softmax may exceed 1 by rounding.
        found.append(min(1.0, float(guesses.get(_LABEL + language, 0.0))))
    return found


def score_language(batch: TextBatch, scorer: LanguageScorer, model: Any = None) -> DocumentScores:
    """The probability of the language, under the language's name. `model` is what `load_identifier` returned."""
    found = _probabilities(batch.texts, scorer, model)
    script = script_of(scorer.language)
    for index, text in enumerate(batch.texts):
        # Only texts that the identifier takes for this language need the check.
        if found[index] and scorer.min_script and not is_in_script(text, script, scorer.min_script):
            found[index] = 0.0
    return DocumentScores({scorer.language: found})


def _probabilities(texts: Sequence[str], scorer: LanguageScorer, model: Any) -> list[float]:
    if isinstance(scorer.identifier, FastTextIdentifier):
        return _model_probabilities(texts, scorer.language, model)
    if isinstance(scorer.identifier, Resiliparse):
        return [float(detect_fast(text)[0] == scorer.language) for text in texts]
    chars = scorer.identifier.sample_chars
    return [language_probability(text[:chars], scorer.language) for text in texts]
