"""Stage: tokens to a base model (RECIPE D; paper section 2).

Defaults are the published 7B run: 1,024 windows of 4,096 tokens a step, AdamW, cosine over 5T tokens stopped
early. The checkpoint keeps Adam's moments, since mid-training goes on with them (RECIPE E).
"""

from typing import Any

from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import ModelConfig
from model.diagnostics import NormWatch
from model.losses import LossConfig, language_model_objective
from model.optim import OptimConfig
from model.read_ahead import ReadAhead
from model.schedule import ScheduleConfig
from model.tokenizer import Tokenizer
from model.transformer import Transformer
from tasks.artifacts import Checkpoint, Mix
from tasks.training.in_loop import evaluator
from tasks.training.run import run_training
from tasks.training.token_files import WindowsConfig, check_vocabulary, expected_steps, training_windows, window_names


class PretrainConfig(WindowsConfig):
    """Pre-training of one model from its initialisation."""

    model: ModelConfig = ModelConfig()
    """Shape of the model."""
    init_seed: int = 6198
    """Seed of the initial weights (RECIPE A.4)."""
    data_seed: int = 6198
    """Seed of the data order (RECIPE C.9)."""
    steps: int | None = Field(default=None, ge=1)
    """Updates; None is one pass over the mix (7B: 928,646)."""
    optim: OptimConfig = OptimConfig()
    """Optimizer and precision."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate."""
    loss: LossConfig = LossConfig()
    """Cross-entropy and z-loss."""


def train_base(ws: Workspace, mix: Mix, config: PretrainConfig) -> Checkpoint:
    """Train from a seeded initialisation.

    Raises ValueError when tokens and model have different vocabularies or the mix holds less than one batch.
    """
    tokenizer = Tokenizer(mix.ranks)
    check_vocabulary(mix, tokenizer, config.model.vocab_size)
    data = training_windows(ws, mix, config, config.data_seed, config.loss.normalisation)
    steps = config.steps or data.steps_per_epoch
    model = Transformer(config.model, seed=config.init_seed)
    with ReadAhead(data.batch, steps) as batches, NormWatch(model, config.norms_every) as norms:
        result = run_training(
            ws,
            model=model,
            tokenizer=tokenizer,
            objective=language_model_objective(config.loss),
            batches=norms.watching(batches),
            optim=config.optim,
            schedule=config.schedule,
            steps=steps,
            description="pre-training",
            keep_moments=True,
            log_every=config.log_every,
            step_metrics=norms.metrics,
            instances=window_names(data),
            evaluate=evaluator(ws, config.in_loop, data, tokenizer, config.optim),
            evaluate_every=config.in_loop.every,
        )
    ws.note(data_wait_seconds=round(batches.waited_seconds, 3))
    return ws.artifact(Checkpoint, **result.facts(), ranks=mix.ranks, parent="")


def estimate_pretrain(config: dict[str, Any], mix: Any) -> dict[str, Any]:
    """Tokens, FLOPs and parameters of a run, as far as they are known before it (RECIPE A.7)."""
    parsed = PretrainConfig.model_validate(config)
    batch = parsed.batch_instances * parsed.sequence_length
    steps = parsed.steps or expected_steps(parsed, mix)
    per_token = parsed.model.flops_per_token(parsed.sequence_length)
    known = {"parameters": parsed.model.parameters, "flops_per_token": per_token}
    return known | ({"tokens": steps * batch, "flops": float(steps * batch * per_token)} if steps else {})


pretrain = stage(train_base, name="pretrain", version=1, process=True, grouped=True, estimate=estimate_pretrain)
