"""Stage: documents through named rules, in the order of the config (RECIPE C.3, C.4).

The first rule that refuses a document drops it: it goes to `dropped/` with the rule as reason, the value and
limit as detail and all attributes computed so far. Scores of the kept ones are written beside them as Dolma
attributes (`attributes/<rule>/`), so that a threshold can be looked at again without scoring again. Documents
in = documents kept + documents dropped, per reason.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Classifier, Documents
from tasks.data.dolma import LineWriter, Row, add_counts, batches, document_files, read_documents, shard_name
from tasks.data.filters.gopher import (
    GopherQualityRule,
    GopherRepetitionRule,
    judge_gopher_quality,
    judge_gopher_repetition,
)
from tasks.data.filters.judgement import Judgement
from tasks.data.filters.language import LanguageRule, judge_language
from tasks.data.filters.length import LengthRule, judge_length
from tasks.data.filters.pii import PIIRule, judge_pii
from tasks.data.filters.quality import QualityRule, judge_quality, load_classifier
from tasks.data.filters.repetition import RepetitionRule, judge_repetition
from tasks.data.filters.stars import StarsRule, judge_stars
from tasks.data.filters.word_frequency import WordFrequencyRule, judge_word_frequency

Rule = Annotated[
    RepetitionRule
    | WordFrequencyRule
    | QualityRule
    | LengthRule
    | StarsRule
    | GopherQualityRule
    | GopherRepetitionRule
    | LanguageRule
    | PIIRule,
    Field(discriminator="kind"),
]

EXPERIMENT = "olmo2"
"""First part of every attribute's name (RECIPE C.1)."""


class FilterConfig(Config):
    """The rules a document must pass."""

    rules: tuple[Rule, ...] = (RepetitionRule(),)
    """Rules in the order in which they are asked."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        kinds = [rule.kind for rule in self.rules]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            raise ValueError(f"rules occur twice: {', '.join(twice)}; put their limits into one rule of that kind")
        return self


def filter_documents(
    ws: Workspace, documents: Documents, config: FilterConfig, classifier: Classifier | None = None
) -> Documents:
    """The documents that pass every rule.

    Raises ValueError if a quality rule has no classifier or if nothing passes.
    """
    if classifier is None and any(rule.kind == "quality" for rule in config.rules):
        raise ValueError(
            "the quality rule needs a classifier; train one with the classifier stage or take the rule out"
        )
    shared = {
        "documents": documents.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "classifier": None if classifier is None else classifier.model_dump(mode="json"),
    }
    items = [{"name": name, **shared} for name in document_files(ws, documents)]
    results = ws.map(filter_shard, items, description="filter")
    kept, dropped = add_counts(results, "sources"), add_counts(results, "dropped")
    count = sum(kept.values())
    assert documents.documents == count + sum(dropped.values()), (documents.documents, kept, dropped)
    if not count:
        raise ValueError(f"no document of {documents.address} passes: {dropped}; loosen the rules")
    ws.write_json("filter.json", {"in": documents.documents, "kept": count, "dropped": dropped})
    ws.table("filter", [{"reason": reason, "documents": number} for reason, number in dropped.items()])
    size = sum(result["bytes"] for result in results)
    return ws.artifact(Documents, documents=count, bytes=size, sources=kept, dropped=dropped)


def filter_shard(ws: Workspace, item: dict[str, Any]) -> dict[str, Any]:
    """Shard function: one document file through all rules."""
    documents = Documents.model_validate(item["documents"])
    config = FilterConfig.model_validate(item["config"])
    model = _classifier(ws, item["classifier"])
    shard = f"{shard_name(item['name'])}.jsonl.zst"
    sources: dict[str, int] = {}
    dropped: dict[str, int] = {}
    size = 0
    with ExitStack() as stack:
        keep = stack.enter_context(LineWriter(ws, f"documents/{shard}"))
        drop = stack.enter_context(LineWriter(ws, f"dropped/{shard}"))
        beside = {
            rule.kind: stack.enter_context(LineWriter(ws, f"attributes/{rule.kind}/{shard}")) for rule in config.rules
        }
        for batch in batches(read_documents(ws, documents, item["name"])):
            for document, attributes, reason, detail in judge_batch(batch, config.rules, model):
                if reason:
                    drop.write({**document, "attributes": attributes, "reason": reason, "detail": detail})
                    dropped[reason] = dropped.get(reason, 0) + 1
                    continue
                keep.write(document)
                size += len(document["text"].encode())
                sources[document["source"]] = sources.get(document["source"], 0) + 1
                for kind, writer in beside.items():
                    prefix = f"{EXPERIMENT}__{kind}__"
                    own = {name: spans for name, spans in attributes.items() if name.startswith(prefix)}
                    writer.write({"id": document["id"], "source": document["source"], "attributes": own})
    return {"sources": sources, "dropped": dropped, "bytes": size}


def _classifier(ws: Workspace, artifact: dict[str, Any] | None) -> Any:
    if artifact is None:
        return None
    return load_classifier(ws.path(Classifier.model_validate(artifact), "model.bin"))


def judge_batch(
    documents: list[Row], rules: Sequence[Any], classifier: Any = None
) -> list[tuple[Row, dict[str, Any], str, str]]:
    """(document, attributes, reason, detail) of each document, in order; the reason is empty for those that
    pass."""
    documents = list(documents)
    attributes: list[dict[str, Any]] = [{} for _ in documents]
    verdicts = [("", "") for _ in documents]
    alive = list(range(len(documents)))
    for rule in rules:
        judgements = judge([documents[index] for index in alive], rule, classifier)
        for index, judgement in zip(alive, judgements, strict=True):
            for label, spans in judgement.attributes.items():
                attributes[index][f"{EXPERIMENT}__{rule.kind}__{label}"] = spans
            if judgement.text is not None:
                documents[index] = {**documents[index], "text": judgement.text}
            if judgement.detail:
                verdicts[index] = (rule.kind, judgement.detail)
        alive = [index for index in alive if not verdicts[index][0]]
    return [(documents[i], attributes[i], *verdicts[i]) for i in range(len(documents))]


def judge(documents: Sequence[Row], rule: Any, classifier: Any = None) -> list[Judgement]:
    """One rule's judgements of documents."""
    texts = [document["text"] for document in documents]
    if not texts:
        return []
    match rule:
        case RepetitionRule():
            return judge_repetition(texts, rule)
        case WordFrequencyRule():
            return judge_word_frequency(texts, rule)
        case LengthRule():
            return judge_length(texts, rule)
        case QualityRule():
            return judge_quality(texts, rule, classifier)
        case StarsRule():
            return judge_stars(documents, rule)
        case GopherQualityRule():
            return judge_gopher_quality(texts, rule)
        case GopherRepetitionRule():
            return judge_gopher_repetition(texts, rule)
        case LanguageRule():
            return judge_language(texts, rule)
        case PIIRule():
            return judge_pii(texts, rule)
    raise AssertionError(rule)


filter = stage(filter_documents, name="filter", version=1)
