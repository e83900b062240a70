"""Stage: train a fastText classifier: of quality (RECIPE C.3, the settings of DCLM's script), of mathematics (RECIPE C.7), of
education, of whatever two classes of documents show.

Positives and negatives are chosen from document artifacts by source and metadata. Labels are `__label__hq`
and `__label__cc`, word bigrams, otherwise fastText's defaults. A held-out share gives precision and recall.

Training runs in an interpreter of its own: fastText's matrices begin as whatever the heap holds, which makes
small models die with NaN at random and differ between runs. There glibc is told to hand out zeroed memory
(MALLOC_PERTURB_=255 fills it with the complement of 255), large blocks fresh from the system; with one thread
the same bytes come out every time.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TypedDict

import orjson
from pydantic import Field

from infra.stage import stage
from infra.workspace import ShardItem, ShardResult, Workspace
from model.config import Config
from tasks.artifacts import Classifier, Documents
from tasks.data.documents.document_random import draw
from tasks.data.documents.dolma_files import (
    LineWriter,
    Row,
    add_counts,
    document_files,
    parse_rows,
    read_documents,
    read_own,
    shard_name,
)
from tasks.data.filters.classifiers.quality import (
    NEGATIVE_LABEL,
    POSITIVE_LABEL,
    TRAINING_PROGRAM,
    load_classifier,
    page_line,
    positive_probabilities,
)

# glibc fills what it hands out with the complement of this byte: 255 gives zeros.
_ZEROED_MEMORY = {"MALLOC_PERTURB_": "255", "MALLOC_MMAP_THRESHOLD_": "65536"}


class ClassSelection(Config):
    """Which documents belong to a class. All given conditions must hold."""

    sources: tuple[str, ...] = ()
    """Sources; empty for any."""
    metadata: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Metadata field -> values of which the document must have one."""
    min_chars: int = Field(default=0, ge=0)
    """Shortest text, characters."""
    max_documents: int = Field(default=200_000, gt=0)
    """Random sample of so many documents at most (DCLM: 200,000 positives)."""


class ClassifierConfig(Config):
    """The two classes and fastText's settings."""

    positives: ClassSelection
    """What good text looks like."""
    negatives: ClassSelection = ClassSelection()
    """What text looks like in general: a random sample of everything that is not selected as positive."""
    word_ngrams: int = Field(default=2, ge=1)
    """Longest word n-gram (DCLM)."""
    learning_rate: float = Field(default=0.1, gt=0)
    """Learning rate at the start (fastText's default)."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the examples (fastText's default)."""
    dim: int = Field(default=100, ge=1)
    """Width of the word vectors (fastText's default)."""
    bucket: int = Field(default=2_000_000, ge=1)
    """Hash buckets of n-grams (fastText's default); the model's size is about bucket x dim x 4 bytes, 800 MB.
    """
    held_out_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of each class that is not trained on but measured."""
    seed: int = 0
    """Seed of the sample, of the held-out choice and of fastText."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that both classes are chosen from, each once; empty where a class takes from any."""
        if not self.positives.sources or not self.negatives.sources:
            return ()
        # dict.fromkeys keeps the order and drops what both classes name.
        return tuple(dict.fromkeys([*self.positives.sources, *self.negatives.sources]))


def train_classifier(ws: Workspace, documents: list[Documents], config: ClassifierConfig) -> Classifier:
    """A quality classifier.

    Raises ValueError for a class with fewer than two documents.
    """
    shards = [
        {
            "item": f"{number:03d}-{shard_name(name)}",
            "name": name,
            "documents": part.model_dump(mode="json"),
            "config": config.model_dump(mode="json"),
        }
        for number, part in enumerate(documents)
        for name in document_files(ws, part)
    ]
    found = add_counts(ws.map(count_examples, shards, description="count examples"), "found")
    for label, role in ((POSITIVE_LABEL, "positives"), (NEGATIVE_LABEL, "negatives")):
        if found.get(label, 0) < 2:
            raise ValueError(f"{role} select {found.get(label, 0)} documents; loosen `{role}` or give more documents")
    # Counted first, since the sampling share of each class depends on how many there are.
    ws.map(write_examples, [{**shard, "found": found} for shard in shards], description="select examples")
    examples = [row for shard in shards for row in parse_rows(read_own(ws, f"examples/{shard['item']}.jsonl.zst"))]
    # Training sees examples in this order: one that is random and the same every time.
    examples.sort(key=lambda row: draw(config.seed, "order", row["id"], row["line"]))
    training = [row for row in examples if not row["held_out"]]
    held_out = [row for row in examples if row["held_out"]]
    model = _fit(ws.scratch, [f"{row['label']} {row['line']}" for row in training], config)
    ws.put(model, "model.bin")
    metrics = measure(load_classifier(model), held_out)
    ws.write_json("metrics.json", metrics | {"trained_on": len(training), "candidates": found})
    return ws.artifact(
        Classifier,
        labels=[POSITIVE_LABEL, NEGATIVE_LABEL],
        precision=metrics["precision"],
        recall=metrics["recall"],
        examples=len(training),
    )


def _label_of(document: Row, config: ClassifierConfig) -> str:
    """The class of a document, positive before negative; empty for neither."""
    if selects(config.positives, document):
        return POSITIVE_LABEL
    return NEGATIVE_LABEL if selects(config.negatives, document) else ""


def selects(selection: ClassSelection, document: Row) -> bool:
    """Whether a document meets every condition."""
    metadata = document.get("metadata") or {}
    # Empty conditions hold for every document.
    return (
        (not selection.sources or document["source"] in selection.sources)
        and all(str(metadata.get(field)) in values for field, values in selection.metadata.items())
        and len(document["text"]) >= selection.min_chars
        and bool(document["text"].strip())
    )


def count_examples(ws: Workspace, item: ShardItem) -> ShardResult:
    """Shard function: how many documents of each class a shard has."""
    config = ClassifierConfig.model_validate(item["config"])
    found: dict[str, int] = {}
    for document in read_documents(ws, Documents.model_validate(item["documents"]), item["name"]):
        label = _label_of(document, config)
        if label:
            found[label] = found.get(label, 0) + 1
    return {"found": found}


def write_examples(ws: Workspace, item: ShardItem) -> ShardResult:
    """Shard function: the sampled examples of a shard. A document's draw depends on its id and the seed only."""
    config = ClassifierConfig.model_validate(item["config"])
    limits = {POSITIVE_LABEL: config.positives.max_documents, NEGATIVE_LABEL: config.negatives.max_documents}
    with LineWriter(ws, f"examples/{item['item']}.jsonl.zst", empty=True) as examples:
        for document in read_documents(ws, Documents.model_validate(item["documents"]), item["name"]):
            label = _label_of(document, config)
            # A draw per document instead of a list to sample from: memory does not grow with the corpus.
            if not label or draw(config.seed, "sample", document["id"]) >= limits[label] / item["found"][label]:
                continue
            line = page_line(document["text"])
            # By text, so that no text is trained on under one id and measured under another.
            held_out = draw(config.seed, "held out", line) < config.held_out_fraction
            examples.write({"id": document["id"], "label": label, "line": line, "held_out": held_out})
        return {"examples": examples.rows}


def _fit(folder: Path, lines: list[str], config: ClassifierConfig) -> Path:
    """Train on labelled lines in a process of its own; the path of the model. Raises ValueError with
    fastText's message if it fails."""
    training, model = folder / "train.txt", folder / "model.bin"
    training.write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = {
        "input": str(training),
        "wordNgrams": config.word_ngrams,
        "lr": config.learning_rate,
        "epoch": config.epochs,
        "dim": config.dim,
        "bucket": config.bucket,
        "seed": config.seed,
    }
    command = [sys.executable, "-P", str(TRAINING_PROGRAM), orjson.dumps(options).decode(), str(model)]
    # The environment is that of the child only: other processes keep their allocator.
    done = subprocess.run(command, env=os.environ | _ZEROED_MEMORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"fastText could not train on {len(lines):,} examples: {done.stderr.strip()[-500:]}")
    return model


class HeldOutFigures(TypedDict):
    """How a classifier does on rows that it has not seen."""

    precision: float
    recall: float
    held_out: int
    held_out_positives: int


def measure(model: Any, rows: list[Row]) -> HeldOutFigures:
    """Precision and recall of the positive class at probability one half, on held-out rows."""
    scores = positive_probabilities([row["line"] for row in rows], model)
    pairs = [(score >= 0.5, row["label"] == POSITIVE_LABEL) for score, row in zip(scores, rows, strict=True)]
    hits = sum(said and true for said, true in pairs)
    said, true = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    return {
        # A classifier that says yes to nothing has precision 0, not a division by zero.
        "precision": hits / said if said else 0.0,
        "recall": hits / true if true else 0.0,
        "held_out": len(rows),
        "held_out_positives": true,
    }


classifier = stage(train_classifier, name="classifier", version=1)
