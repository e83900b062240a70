"""Stage: documents to scores next to them (RECIPE C.1, C.3).

Every scorer is asked about every document, in order; what one masks the next does not see. The numbers go to
`attributes/<name>/`, with the documents' own file names, rows and order. Nothing is decided here: no threshold is part of this
stage's identity, so the filter stage can decide again and again on the same scores.

Models are loaded once per worker and kept there for all its shards.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

from pydantic import Field, model_validator

from infra.stage import stage
from infra.workspace import Loading, ShardItem, Workspace
from model.config import Config
from tasks.artifacts import Attributes, Classifier, Documents
from tasks.data.documents.dolma_files import LineWriter, Row, batches, document_files, read_documents, shard_name
from tasks.data.documents.file_sources import file_bytes
from tasks.data.filters.attributes import Span, attribute_rows
from tasks.data.filters.batch import TextBatch
from tasks.data.filters.rules import (
    Scorer,
    check_scorer_names,
    classifier_of,
    load_scorer_model,
    needs_device,
    needs_model,
    score_batch,
    scorer_name,
)


class ScoreConfig(Config):
    """What to measure."""

    scorers: tuple[Scorer, ...] = Field(min_length=1)
    """Scorers in the order in which they are asked."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        check_scorer_names(self.scorers)
        return self

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Names of the classifiers that are asked, each once, in the order in which the stage takes them."""
        return tuple(dict.fromkeys(name for name in map(classifier_of, self.scorers) if name))


def score_documents(
    ws: Workspace, documents: Documents, config: ScoreConfig, classifiers: list[Classifier] | None = None
) -> Attributes:
    """The scores of all documents. `classifiers` are those that `config.classifiers` names, in that order.

    Raises ValueError for a missing classifier, or for a document that a scorer cannot read.
    """
    given = classifiers or []
    if len(given) != len(config.classifiers):
        raise ValueError(
            f"the rules ask the classifiers {', '.join(config.classifiers) or 'none'}, but {len(given)} are given; train each "
            "under `classifiers`, or take the rule out"
        )
    named = dict(zip(config.classifiers, given, strict=True))
    plain = {"documents": documents.model_dump(mode="json"), "config": config.model_dump(mode="json")}
    files = document_files(ws, documents)
    items = [{"name": name, **plain} for name in files]
    device = ws.compute.device if any(map(needs_device, config.scorers)) else "cpu"
    models = Loading(partial(load_models, config=config, classifiers=named), device)
    # Without models any worker can take any shard, and none needs to be kept.
    loading = models if any(map(needs_model, config.scorers)) else None
    sizes = file_bytes(ws, documents, files)
    counts = ws.map(score_shard, items, description="score", loading=loading, sizes=sizes)
    # Every document has a row, or the filter would read the scores of its neighbour.
    assert sum(counts) == documents.documents, (sum(counts), documents.documents)
    names = [scorer_name(scorer) for scorer in config.scorers]
    return ws.artifact(Attributes, documents=sum(counts), of=documents.digest, names=names)


def load_models(ws: Workspace, config: ScoreConfig, classifiers: dict[str, Classifier]) -> list[Any]:
    """What each scorer asks, loaded: once per worker."""
    return [load_scorer_model(ws, scorer, classifiers) for scorer in config.scorers]


def score_shard(ws: Workspace, item: ShardItem, loaded: list[Any] | None = None) -> int:
    """Shard function: one document file to one attribute file per scorer. Returns the number of documents."""
    documents = Documents.model_validate(item["documents"])
    config = ScoreConfig.model_validate(item["config"])
    models = loaded or [None] * len(config.scorers)
    shard = f"{shard_name(item['name'])}.jsonl.zst"
    count = 0
    with ExitStack() as stack:
        writers = [
            stack.enter_context(LineWriter(ws, f"attributes/{scorer_name(scorer)}/{shard}"))
            for scorer in config.scorers
        ]
        for rows in batches(read_documents(ws, documents, item["name"])):
            count += len(rows)
            for writer, found in zip(writers, score_rows(rows, config.scorers, models), strict=True):
                for row, attributes in zip(rows, found, strict=True):
                    writer.write({"attributes": attributes, "id": row["id"], "source": row["source"]})
    return count


def score_rows(
    documents: list[Row], scorers: Sequence[Scorer], models: Sequence[Any]
) -> list[list[dict[str, list[Span]]]]:
    """For each scorer the attributes of each document."""
    batch = TextBatch([document["text"] for document in documents])
    found = []
    for scorer, model in zip(scorers, models, strict=True):
        scores = score_batch(documents, batch, scorer, model)
        found.append(attribute_rows(scorer_name(scorer), scores, [len(text) for text in batch.texts]))
        # What one scorer masks the next one does not see: a phone number is no feature of quality.
        if scores.texts is not None:
            batch = TextBatch(scores.texts)
    return found


score = stage(score_documents, name="score", version=5)
