"""All rules: which there are, what they ask for, and how one scores a batch of documents.

A rule is a scorer, which measures, and limits, by which it decides (filters/attributes.py). Whatever stands under a rule's
`scorer` belongs to the identity of the scores; the rest of the rule does not, and can be changed without scoring again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from infra.workspace import Workspace
from tasks.artifacts import Classifier
from tasks.data.documents.dolma_files import Row
from tasks.data.filters.attributes import DocumentScores
from tasks.data.filters.batch import TextBatch
from tasks.data.filters.classifiers.education import (
    CheckpointModel,
    EducationRule,
    EducationScorer,
    load_encoder,
    score_education,
)
from tasks.data.filters.classifiers.language import (
    FastTextIdentifier,
    LanguageRule,
    LanguageScorer,
    load_identifier,
    score_language,
)
from tasks.data.filters.classifiers.quality import QualityRule, QualityScorer, load_classifier, load_file, score_quality
from tasks.data.filters.classifiers.revision import pin_checkpoint
from tasks.data.filters.lists.url_list import URLRule, URLScorer, load_url_lists, score_urls
from tasks.data.filters.lists.word_list import WordListRule, WordListScorer, load_phrases, score_word_list
from tasks.data.filters.pii import PIIRule, PIIScorer, score_pii
from tasks.data.filters.pinned import PinnedFile, read_pinned
from tasks.data.filters.stars import StarsRule, StarsScorer, score_stars
from tasks.data.filters.statistics.gopher_quality import GopherQualityRule, GopherQualityScorer, score_gopher_quality
from tasks.data.filters.statistics.gopher_repetition import (
    GopherRepetitionRule,
    GopherRepetitionScorer,
    score_gopher_repetition,
)
from tasks.data.filters.statistics.length import LengthRule, LengthScorer, score_length
from tasks.data.filters.statistics.repetition import RepetitionRule, RepetitionScorer, score_repetition
from tasks.data.filters.statistics.word_frequency import WordFrequencyRule, WordFrequencyScorer, score_word_frequency

Rule = Annotated[
    RepetitionRule
    | WordFrequencyRule
    | QualityRule
    | EducationRule
    | LengthRule
    | StarsRule
    | GopherQualityRule
    | GopherRepetitionRule
    | LanguageRule
    | PIIRule
    | URLRule
    | WordListRule,
    Field(discriminator="kind"),
]
Scorer = Annotated[
    RepetitionScorer
    | WordFrequencyScorer
    | QualityScorer
    | EducationScorer
    | LengthScorer
    | StarsScorer
    | GopherQualityScorer
    | GopherRepetitionScorer
    | LanguageScorer
    | PIIScorer
    | URLScorer
    | WordListScorer,
    Field(discriminator="kind"),
]


def scorer_name(scorer: Scorer) -> str:
    """The folder of a scorer's attributes, and the reason a rule gives: the classifier's name, or the kind."""
    return scorer.classifier if isinstance(scorer, QualityScorer) else scorer.kind


def check_scorer_names(scorers: Sequence[Scorer]) -> None:
    """Raises ValueError where two scorers have one name."""
    names = [scorer_name(scorer) for scorer in scorers]
    twice = sorted({name for name in names if names.count(name) > 1})
    # Two scorers of one name would write to one folder of attributes.
    if twice:
        raise ValueError(f"rules occur twice: {', '.join(twice)}; put their limits into one rule of that kind")


def classifier_of(scorer: Scorer) -> str:
    """The classifier of the recipe that a scorer asks; empty for none."""
    if isinstance(scorer, QualityScorer):
        return "" if scorer.file else scorer.classifier
    if isinstance(scorer, EducationScorer) and scorer.model.kind == "linear":
        return scorer.model.classifier
    return ""


def pin_rule(rule: Rule) -> Rule:
    """The rule with everything pinned that its scorer reads: list files by their hash, checkpoints by their commit."""
    return rule.model_copy(update={"scorer": rule.scorer.pinned()})


def needs_model(scorer: Scorer) -> bool:
    """Whether a scorer asks something that is loaded: a classifier, a checkpoint or lists."""
    models = isinstance(scorer, QualityScorer | EducationScorer | URLScorer | WordListScorer)
    return models or (isinstance(scorer, LanguageScorer) and isinstance(scorer.identifier, FastTextIdentifier))


def needs_device(scorer: Scorer) -> bool:
    """Whether what a scorer asks is loaded onto `execution.device`: a checkpoint. All others compute on cores."""
    return isinstance(scorer, EducationScorer) and isinstance(scorer.model, CheckpointModel)


def load_scorer_model(ws: Workspace, scorer: Scorer, classifiers: dict[str, Classifier]) -> Any:
    """What a scorer asks, loaded: a classifier, a checkpoint, lists; None for one that only reads the text."""
    name = classifier_of(scorer)
    if name:
        return load_classifier(ws.path(classifiers[name], "model.bin"))
    match scorer:
        case EducationScorer(model=CheckpointModel() as model):
            return _checkpoint(ws, model)
        case LanguageScorer(identifier=FastTextIdentifier() as identifier):
            return load_identifier(read_pinned(identifier.model), ws.scratch)
        case QualityScorer(file=PinnedFile() as file, positive_label=label):
            return load_file(file, label, ws.scratch)
        case URLScorer():
            return load_url_lists(scorer)
        case WordListScorer():
            return load_phrases(scorer)
    return None


def _checkpoint(ws: Workspace, model: CheckpointModel) -> Any:
    local = Path(model.path).expanduser().is_dir()
    # Local files are checked again on the worker: they may have changed since the recipe was pinned.
    if local:
        pin_checkpoint(model.path, model.revision)
    revision = "" if local else model.revision
    return load_encoder(model.path, revision, model.max_tokens, ws.compute.device, ws.compute.threads)


def score_batch(documents: Sequence[Row], batch: TextBatch, scorer: Scorer, model: Any) -> DocumentScores:
    """One scorer's word on documents whose texts, as scorers before it left them, are `batch`."""
    match scorer:
        case RepetitionScorer():
            return score_repetition(batch, scorer)
        case WordFrequencyScorer():
            return score_word_frequency(batch)
        case LengthScorer():
            return score_length(batch)
        case QualityScorer():
            return score_quality(batch, model, scorer.positive_label)
        case EducationScorer():
            return score_education(batch, scorer, model)
        case StarsScorer():
            return score_stars(documents, scorer)
        case GopherQualityScorer():
            return score_gopher_quality(batch, scorer)
        case GopherRepetitionScorer():
            return score_gopher_repetition(batch, scorer)
        case LanguageScorer():
            return score_language(batch, scorer, model)
        case PIIScorer():
            return score_pii(batch)
        case URLScorer():
            return score_urls(documents, scorer, model)
        case WordListScorer():
            return score_word_list(batch, model)
    raise AssertionError(scorer)
