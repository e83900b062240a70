"""Stage: a checkpoint trained on a mix while the learning rate goes linearly to zero (RECIPE E; paper section 4), or to a share
of its start.

One stage serves mid-training (several seeds, then a soup) and micro-anneals (candidates compared). Weights
and Adam's moments come from the parent; counters start at 0 and there is no warm-up.
"""

from functools import partial
from typing import Literal

from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.training.loop import train_step
from model.training.schedule import ScheduleConfig
from tasks.artifacts import MOMENTS, Checkpoint, Mix
from tasks.training.fitting.fit import export, fitting, open_checkpoint
from tasks.training.fitting.mix_windows import MixTrainingConfig, check_vocabulary
from tasks.training.fitting.train_on_mix import MixRun, course_on_mix, mix_selector


class AnnealConfig(MixTrainingConfig):
    """One anneal; defaults are an ingredient of the 7B soup (50B tokens)."""

    learning_rate: float = Field(default=6.1499e-5, gt=0)
    """Learning rate of the first step (1B 7.4487e-5, 13B 9e-5)."""
    seed: int = 42
    """Seed of the data order (7B: 42, 42069, 666; micro-anneals 7201)."""
    final_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Learning rate of the last step as a share of the first; published runs end at zero. An average of anneals does part of what
    a decay does, so ingredients of a soup may end above it (Izmailov et al. 2018).
    """
    moments: Literal["kept", "fresh"] = "kept"
    """Whether Adam's moments come from the parent, as published, or start at zero."""


def anneal_checkpoint(ws: Workspace, parent: Checkpoint, mix: Mix, config: AnnealConfig) -> Checkpoint:
    """Train the parent on the mix with a falling learning rate.

    Raises ValueError for a vocabulary mismatch, a mix smaller than one batch, or a parent without moments.
    """
    model, weights, tokenizer = open_checkpoint(ws, parent)
    check_vocabulary(mix, tokenizer, model.config.vocab_size)
    # Asked before the training, which would otherwise begin with moments of zero, unlike the published runs.
    if config.moments == "kept" and MOMENTS not in ws.files(parent):
        raise ValueError(
            f"{parent.address} has no Adam moments ({MOMENTS}); anneal from a pre-trained checkpoint, or set "
            "moments: fresh"
        )
    run = MixRun(
        model=model,
        tokenizer=tokenizer,
        seed=config.seed,
        schedule=partial(anneal_schedule, config),
        description="annealing",
    )
    moments = ws.path(parent, MOMENTS) if config.moments == "kept" else None
    selector = mix_selector(config, tokenizer)
    with (
        course_on_mix(ws, mix, config, run) as (state, course),
        fitting(ws, state, course, weights=weights, initial_moments=moments, selector=selector) as fit,
    ):
        for micro_batches in fit.loop:
            fit.loop.made(train_step(state, micro_batches, course, fit.loop.device))
    export(ws, fit.result.model, tokenizer, bos="none")
    return ws.artifact(Checkpoint, **fit.result.facts(), ranks=mix.ranks, tokenizer=mix.tokenizer, parent=parent.digest)


def anneal_schedule(config: AnnealConfig, steps: int) -> ScheduleConfig:
    """No warm-up, and a line that would reach zero after `steps` updates, or later where it ends above zero."""
    length = round(steps / (1 - config.final_ratio))
    return ScheduleConfig(kind="linear", learning_rate=config.learning_rate, unit="steps", warmup=0, length=length)


anneal = stage(anneal_checkpoint, name="anneal", version=3, process=True, grouped=True, trains=True)
