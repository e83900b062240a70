"""Language identification with langdetect (the identifier that ships as a plain Python package; seeded, so it
repeats itself)."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from pydantic import Field

from model.config import Config
from tasks.data.filters.judgement import Judgement, document_score

_SEED = 0


class LanguageRule(Config):
    """Keeps texts of one language."""

    kind: Literal["language"] = "language"
    language: str = Field(default="en", pattern="^[a-z]{2,3}(-[a-z]{2})?$")
    """ISO 639-1 code as langdetect writes it (`zh-cn`, `zh-tw` for Chinese)."""
    min_probability: float = Field(default=0.65, ge=0, le=1)
    """Lowest probability of that language (RefinedWeb's limit, which DCLM uses)."""
    sample_chars: int = Field(default=2000, gt=0)
    """Characters from the beginning of the text that are looked at: identification takes milliseconds per
    thousand."""


@cache
def _factory() -> Any:
    from langdetect import DetectorFactory
    from langdetect.detector_factory import PROFILES_DIRECTORY

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(_SEED)
    return factory


def language_probability(text: str, language: str) -> float:
    """Probability that a text is in a language; 0 for a text without letters."""
    from langdetect.lang_detect_exception import LangDetectException

    detector = _factory().create()
    detector.append(text)
    try:
        found = detector.get_probabilities()
    except LangDetectException:
        return 0.0
    return next((float(guess.prob) for guess in found if guess.lang == language), 0.0)


def judge_language(texts: Sequence[str], rule: LanguageRule) -> list[Judgement]:
    """A judgement of each text."""
    judgements = []
    for text in texts:
        probability = round(language_probability(text[: rule.sample_chars], rule.language), 6)
        detail = ""
        if probability < rule.min_probability:
            detail = f"{rule.language} has probability {probability:.3f}, at least {rule.min_probability} wanted"
        judgements.append(Judgement({rule.language: document_score(text, probability)}, detail))
    return judgements
