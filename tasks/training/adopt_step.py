"""Stage: a permanent save point of a training, finished or not, as a checkpoint that any later stage can start from.

Source: RECIPE J (permanent checkpoints; what they are for is to be evaluated, annealed and compared), E (an anneal goes on
with Adam's moments, which are kept here). `pin_step` pins what the stage reads by the save point's own hashes, so that
the identity covers the content; the record's config says which stage, id, generation and step it was. A save point holds
no configuration: the model's comes from what its stage was begun with.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field

from infra.records.permanent_save_points import KeptSavePoint, find_kept, kept_at
from infra.records.reader import Reader
from infra.records.record import Input, Started
from infra.records.save_points import HASH
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Workspace
from model.config import Config, ModelConfig
from model.files.hf_config import EXTRA, FILE, read_config
from model.tokens.tokenizer import Tokenizer, TokenizerName
from model.training.ppo import joint_flops
from model.training.state_files import load_whole, write_moments
from tasks.artifacts import METRICS, MOMENTS, Checkpoint, Mix
from tasks.training.fitting.fit import export
from tasks.training.fitting.save_points import Journal

BOS: dict[str, Literal["none", "eos"]] = {
    # Chat models begin their text with EOS, base models with nothing (RECIPE B).
    "pretrain": "none", "anneal": "none", "sft": "eos", "dpo": "eos", "rlvr": "eos", "ppo": "eos",
}  # fmt: skip
"""Stages whose save points are checkpoints, and what the text of their models begins with (RECIPE B)."""
_POLICY = {"ppo": "policy."}
"""How the names of a checkpoint's parameters begin where a save point holds a value model next to it."""


class SavedFile(Config):
    """One file of the save point, pinned."""

    name: str
    """Name in its folder."""
    size: int
    """Bytes."""
    hash: str
    """Hash of the whole content, as the save point's marker says it."""


class AdoptStepConfig(Config):
    """Which save point to adopt; all but the first four fields are filled in by `pin_step`."""

    stage: str
    """Stage that made it, such as pretrain."""
    id: str
    """That stage's id."""
    generation: int
    """Which making of that id."""
    step: int = Field(gt=0)
    """Updates after which it was saved."""
    files: tuple[SavedFile, ...]
    """Its files."""
    model: ModelConfig
    """Shape of the model."""
    ranks: int
    """Ordinary tokens of the vocabulary."""
    tokenizer: TokenizerName = "dolma2"
    """Which vocabulary."""
    parent: str
    """Digest of the checkpoint that the training started from; empty for an initialisation."""


def pin_step(store: Store, id: str, step: int) -> AdoptStepConfig:
    """The config of the save point `id@step`; the beginning of the id is enough.

    Raises ValueError when there is none, or it is of a stage that makes no checkpoint.
    """
    kept = find_kept(store, id, step)
    # A reward model's save point has no language head, so it is no checkpoint.
    if kept.stage not in BOS:
        raise ValueError(
            f"{kept.name} is a save point of stage {kept.stage}; only those of {', '.join(BOS)} are checkpoints"
        )
    started = kept.started(store)
    parents = [item for item in started.inputs if item.kind == Checkpoint.__name__]
    # A training from a parent has the parent's shape; only pre-training states a shape of its own.
    model, vocabulary = _of_parent(store, parents[0]) if parents else _of_config(store, started)
    return AdoptStepConfig(
        stage=kept.stage,
        id=kept.id,
        generation=kept.generation,
        step=step,
        files=_files(store, kept),
        model=model,
        **vocabulary.facts,
        parent=parents[0].digest if parents else "",
    )


def _files(store: Store, kept: KeptSavePoint) -> tuple[SavedFile, ...]:
    """The files of a save point as its marker lists them."""
    listed = sorted(kept.files(store).items())
    return tuple(SavedFile(name=name, size=entry["size"], hash=entry[HASH]) for name, entry in listed)


def _of_parent(store: Store, parent: Input) -> tuple[ModelConfig, Tokenizer]:
    """Shape and vocabulary of the checkpoint that a training started from; its weights are not fetched."""
    ws = Reader(store)
    artifact = ws.at(parent.address)
    assert isinstance(artifact, Checkpoint), artifact.kind
    with tempfile.TemporaryDirectory() as folder:
        # Only the two small files that say the shape are fetched, not gigabytes of weights.
        for name in {FILE, EXTRA} & set(ws.files(artifact)):
            shutil.copyfile(ws.path(artifact, name), Path(folder, name))
        return read_config(Path(folder)), Tokenizer(artifact.ranks, artifact.tokenizer)


def _of_config(store: Store, started: Started) -> tuple[ModelConfig, Tokenizer]:
    """The same of a training that started from an initialisation: the stage's own model, the vocabulary of its tokens."""
    (mix,) = (Reader(store).at(item.address) for item in started.inputs if item.kind == Mix.__name__)
    assert isinstance(mix, Mix), mix.kind
    return ModelConfig.model_validate(started.config["model"]), Tokenizer(mix.ranks, mix.tokenizer)


def adopt_save_point(ws: Workspace, config: AdoptStepConfig) -> Checkpoint:
    """Verify the save point and write it as a checkpoint folder, with its metrics so far and Adam's moments.

    Holds weights and moments of the whole model in memory, 12 bytes per parameter. Raises StoreError for a file that is not
    what was saved, ValueError for one that is not what `pin_step` saw.
    """
    kept = kept_at(config.stage, config.id, config.generation, config.step)
    # Compared again: between pinning and adopting, the save point may have been cleaned up and made again.
    if _files(ws.store, kept) != config.files:
        raise ValueError(f"save point {kept.name} changed while it was adopted; adopt it again")
    folder = ws.kept(kept)
    model, moments = load_whole(folder, config.model, _POLICY.get(config.stage, ""))
    write_moments(moments, ws.scratch / MOMENTS)
    ws.put(ws.scratch / MOMENTS)
    journal = Journal.load(folder)
    flops = journal.flops
    if config.stage in _POLICY:
        # The journal counts the policy's FLOPs; the value model trained next to it took nearly as many.
        flops = joint_flops(flops, journal.tokens, config.model)
    ws.put(folder / METRICS)
    export(ws, model, Tokenizer(config.ranks, config.tokenizer), bos=BOS[config.stage])
    return ws.artifact(
        Checkpoint,
        steps=config.step,
        tokens=journal.tokens,
        parameters=model.config.parameters,
        loss=journal.final_loss(),
        ranks=config.ranks,
        tokenizer=config.tokenizer,
        parent=config.parent,
        flops=flops,
    )


adopt_step = stage(adopt_save_point, name="adopt_step", version=2)
