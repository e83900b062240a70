"""Stage: tokens to a base model (RECIPE D; paper section 2).

Defaults are the published 7B run: 1,024 windows of 4,096 tokens a step, AdamW, cosine over 5T tokens stopped
early. The checkpoint keeps Adam's moments, since mid-training goes on with them (RECIPE E).
"""

from functools import partial

from infra.stage import stage
from infra.workspace import Workspace
from model.config import ModelConfig
from model.network.initial_weights import initial_rows
from model.network.transformer import on_meta_device
from model.tokens.tokenizer import Tokenizer
from model.training.loop import train_step
from model.training.schedule import ScheduleConfig
from tasks.artifacts import Checkpoint, Mix
from tasks.training.fitting.fit import export, fitting
from tasks.training.fitting.mix_windows import MixTrainingConfig, check_vocabulary
from tasks.training.fitting.train_on_mix import MixRun, course_on_mix, mix_selector


class PretrainConfig(MixTrainingConfig):
    """Pre-training of one model from its initialisation."""

    model: ModelConfig = ModelConfig()
    """Shape of the model."""
    init_seed: int = 6198
    """Seed of the initial weights (RECIPE A.4)."""
    data_seed: int = 6198
    """Seed of the data order (RECIPE C.9)."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate."""


def train_base(ws: Workspace, mix: Mix, config: PretrainConfig) -> Checkpoint:
    """Train from a seeded initialisation.

    Raises ValueError when tokens and model have different vocabularies or the mix holds less than one batch.
    """
    tokenizer = Tokenizer(mix.ranks, mix.tokenizer)
    check_vocabulary(mix, tokenizer, config.model.vocab_size)
    run = MixRun(
        # Without memory: each rank draws only the rows of its shard, so a sharded model is never drawn whole.
        model=on_meta_device(config.model),
        tokenizer=tokenizer,
        seed=config.data_seed,
        schedule=lambda _: config.schedule,
        description="pre-training",
    )
    weights = partial(initial_rows, config.model, config.init_seed)
    selector = mix_selector(config, tokenizer)
    with (
        course_on_mix(ws, mix, config, run) as (state, course),
        fitting(ws, state, course, weights=weights, keep_moments=True, selector=selector) as fit,
    ):
        for micro_batches in fit.loop:
            fit.loop.made(train_step(state, micro_batches, course, fit.loop.device))
    export(ws, fit.result.model, tokenizer, bos="none")
    return ws.artifact(Checkpoint, **fit.result.facts(), **tokenizer.facts, parent="")


pretrain = stage(train_base, name="pretrain", version=4, process=True, grouped=True, trains=True)
