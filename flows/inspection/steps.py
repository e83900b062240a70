"""From a training step to the documents it read, and from a document to the steps that read it.

Source: RECIPE C.9. The order of a training is computed from its seed, so both ways need no log of the run. They need what it
was begun with, the mix, and the `.csv.gz` index next to every token file. A training that failed is traced like one that is
finished. Steps count updates from 1, as metrics do.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from flows.cli.options import existing_store
from flows.config.errors import RecipeError
from flows.config.files import names_recipe
from flows.inspection.traces import (
    DocumentTrace,
    OfTraining,
    PlacedDocument,
    ReadDocument,
    StepTrace,
    TracedDocument,
    TracedWindow,
)
from flows.running.run import load_recipe, plan
from flows.running.sessions import find_labels
from infra.records.artifact import Artifact
from infra.records.reader import Reader
from infra.records.record import Started, generations, load_started
from infra.storage.store import Store
from model.data.batches import TokenRange, WindowedTokens, documents_within
from tasks.artifacts import Mix
from tasks.data.documents.dolma_files import shard_name, written_rows
from tasks.data.filters.attributes import highest_scores
from tasks.training.anneal import AnnealConfig
from tasks.training.fitting.mix_windows import StoredFile, mix_files, windows_of
from tasks.training.pretrain import PretrainConfig

ATTRIBUTES = "attributes/"
TRAININGS = ("pretrain", "anneal")
"""Stages that read a mix."""


@dataclass(frozen=True)
class Training:
    """A training that reads a mix, finished or begun, with its order of windows."""

    reader: Reader
    begun: Started
    data: WindowedTokens
    stored: list[StoredFile]
    """Next to `data.files`, one by one."""
    steps: int
    """Updates that it makes, or made."""

    def index(self, place: int) -> Path:
        """The document index of a token file, fetched when it is asked for."""
        file = self.stored[place]
        # The index lies next to its token file and differs in its ending.
        return self.reader.path(file.tokens, f"{file.name.removesuffix('.npy')}.csv.gz")

    @property
    def named(self) -> OfTraining:
        return {"label": self.begun.label, "id": self.begun.id, "steps": self.steps}


def trained(target: str, stage: str, store: str | None, overrides: list[str] | None = None) -> Training:
    """The training that a recipe (with a stage and overrides) or an id names.

    Raises ValueError when it does not exist, was never begun, or reads no mix.
    """
    if names_recipe(target):
        begun, found = _of_recipe(target, stage, store, overrides)
    elif overrides:
        raise ValueError(f"--set changes a recipe, and {target!r} is an id: leave it out")
    else:
        begun, found = _of_id(target, store)
    reader = Reader(found)
    mix = _mix_of(reader, begun)
    config, seed = _config(begun)
    files, stored = mix_files(reader, mix)
    data = windows_of(reader, files, stored, config, seed)
    return Training(reader, begun, data, stored, config.steps or data.steps_per_epoch)


def _of_id(id: str, store: str | None) -> tuple[Started, Store]:
    if not id:
        raise ValueError("the id is empty; give an id or its beginning, see: olmo2 ls")
    found = existing_store(store)
    stages = [name for name in found.names("") if not name.startswith("_")]
    places = {(stage, name) for stage in stages for name in found.names(stage)}
    # A training that failed has a progress folder and no record.
    places |= {(stage, name) for stage in TRAININGS for name in found.names(f"_progress/{stage}")}
    named = sorted(place for place in places if place[1].startswith(id))
    if not named:
        raise ValueError(
            f"store {found.url} has no artifact with id {id!r}, finished or begun; see: olmo2 ls --store {found.url}"
        )
    if len(named) > 1:
        said = ", ".join("/".join(place) for place in named)
        raise ValueError(f"id {id!r} is not unique in store {found.url}: {said}; give more of it")
    return _begun(found, *named[0]), found


def _of_recipe(recipe: str, stage: str, store: str | None, overrides: list[str] | None) -> tuple[Started, Store]:
    config = load_recipe(recipe, overrides, store)
    rows = plan(config)
    labels = find_labels(rows, stage)
    chosen = [row for row in rows if row.label in labels]
    if len(chosen) > 1:
        raise RecipeError(f"stage {stage!r} means {', '.join(sorted(labels))}; give one of them with --stage")
    row, found = chosen[0], Store(config.execution.store)
    if row.artifact is None and not (row.id and found.names(f"_progress/{row.stage}/{row.id}")):
        raise RecipeError(f"{row.label} of recipe {recipe} is not made yet ({row.reason}): olmo2 run {recipe}")
    return _begun(found, row.stage, row.id), found


def _begun(store: Store, stage: str, id: str) -> Started:
    """What the newest finished generation of an id computed, or, when there is none, the newest that was begun."""
    # Names of progress folders are `g0001`, `g0002` and so on.
    attempts = [int(name.removeprefix("g")) for name in store.names(f"_progress/{stage}/{id}")]
    # A finished generation goes before a later one that was only begun.
    newest = max(generations(store, stage, id) or attempts, default=0)
    started = load_started(store, stage, id, newest)
    if started is None:
        raise ValueError(
            f"what {stage}/{id} computes is not known in store {store.url}: it is not finished, and an older version began "
            "it; start it again, and trace it then"
        )
    return started


def _mix_of(reader: Reader, begun: Started) -> Mix:
    mixes = [reader.at(item.address) for item in begun.inputs if item.kind == Mix.__name__]
    if len(mixes) != 1 or begun.stage not in TRAININGS:
        raise ValueError(
            f"{begun.label} {begun.id} was not trained on a mix of token files; trace a pretrain or anneal checkpoint"
        )
    assert isinstance(mixes[0], Mix)
    return mixes[0]


def _config(begun: Started) -> tuple[PretrainConfig | AnnealConfig, int]:
    if begun.stage == "pretrain":
        config = PretrainConfig.model_validate(begun.config)
        # Of the seeds of pre-training only that of the data decides the order.
        return config, config.data_seed
    anneal = AnnealConfig.model_validate(begun.config)
    return anneal, anneal.seed


def trace_step(training: Training, step: int) -> StepTrace:
    """The windows of an update and the documents in them, with what filters said of each.

    Raises ValueError for a step that the training did not make.
    """
    if not 1 <= step <= training.steps:
        raise ValueError(f"{training.begun.label} makes updates 1 to {training.steps:,}; there is no step {step:,}")
    windows: list[TracedWindow] = []
    read: dict[str, list[ReadDocument]] = {}
    # Updates count from 1 for people and from 0 in the data.
    for window in training.data.locate(step - 1):
        stored, file = training.stored[window.file], training.data.files[window.file]
        documents: list[ReadDocument] = [
            {
                **_document(document, file.source),
                # A document may lie in two windows; counted is the part in this one.
                "tokens": min(document.end, window.end) - max(document.start, window.start),
            }
            for document in documents_within(training.index(window.file), window.start, window.end)
        ]
        windows.append(
            {
                "source": file.source,
                "file": stored.address,
                "start": window.start,
                "end": window.end,
                "documents": documents,
            }
        )
        # Scores are read once for each token artifact, not once for each window.
        read.setdefault(stored.tokens.address, []).extend(documents)
    for address, documents in read.items():
        _add_scores(training.reader, training.reader.at(address), documents)
    return {
        **training.named,
        "step": step,
        "epoch": (step - 1) // training.data.steps_per_epoch + 1,
        "tokens": training.data.batch_tokens,
        "windows": windows,
    }


def trace_document(training: Training, id: str) -> DocumentTrace:
    """Where a document lies in the mix and which updates read any of its tokens.

    Raises ValueError for an id that no token file of the mix has.
    """
    places: dict[tuple[int, int], PlacedDocument] = {}
    epochs = ceil(training.steps / training.data.steps_per_epoch)
    # A file that is read in several passes stands in the list several times; its index is read once.
    for address in dict.fromkeys(stored.address for stored in training.stored):
        copies = [number for number, stored in enumerate(training.stored) if stored.address == address]
        stored, file = training.stored[copies[0]], training.data.files[copies[0]]
        for document in documents_within(training.index(copies[0]), 0, sys.maxsize):
            if document.id != id:
                continue
            steps = {
                step + 1
                for copy in copies
                for step in training.data.steps_reading(copy, document.start, document.end, epochs)
                # The last epoch may end before its windows do.
                if step < training.steps
            }
            place: PlacedDocument = {
                **_document(document, file.source),
                "file": stored.address,
                "passes": len(copies),
                "steps": sorted(steps),
            }
            _add_scores(training.reader, stored.tokens, [place])
            places[copies[0], document.start] = place
    if not places:
        raise ValueError(
            f"no token file of {training.begun.label}'s mix has a document {id!r}; ids are in the third column of the "
            f"index files, such as {training.index(0)}, and in: olmo2 trace {training.begun.id} --step 1"
        )
    return {**training.named, "document": id, "places": list(places.values())}


def _document(document: TokenRange, source: str) -> TracedDocument:
    return {
        "id": document.id,
        "source": source,
        "src": document.src,
        "loc": document.loc,
        "start": document.start,
        "end": document.end,
        "scores": {},
    }


def _add_scores(reader: Reader, tokens: Artifact, documents: Sequence[TracedDocument]) -> None:
    """Give each document `scores`: the attributes that stages above its token file left next to it."""
    wanted: dict[tuple[str, str], list[TracedDocument]] = {}
    for document in documents:
        wanted.setdefault((document["id"], document["source"]), []).append(document)
    for path in _attribute_files(reader, tokens, {shard_name(document["src"]) for document in documents}):
        for row in written_rows(path):
            for document in wanted.get((row["id"], row["source"]), []):
                document["scores"] |= highest_scores(row["attributes"])


def _attribute_files(reader: Reader, tokens: Artifact, shards: set[str]) -> Iterator[Path]:
    """Attribute files whose rows may have gone into these document shards: a stage that joins inputs puts a number
    before a shard's name.
    """
    for record in reader.lineage(tokens):
        for name in record.files:
            if name.startswith(ATTRIBUTES) and any(f"-{shard}".endswith(f"-{shard_name(name)}") for shard in shards):
                yield reader.path(record.artifact(), name)
