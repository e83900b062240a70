"""Stage: tokens to a base model (RECIPE D; paper section 2).

Defaults are the published 7B run: 1,024 windows of 4,096 tokens a step, AdamW, cosine over 5T tokens stopped
early. The checkpoint keeps Adam's moments, since mid-training goes on with them (RECIPE E).
"""

from typing import Any

from pydantic import Field

from infra.session import Pending
from infra.stage import stage
from infra.workspace import Workspace
from model.batches import WindowedTokens
from model.config import Config, ModelConfig
from model.losses import LossConfig, language_model_objective
from model.optim import OptimConfig
from model.schedule import ScheduleConfig
from model.tokenizer import Tokenizer
from model.transformer import Transformer
from tasks.artifacts import Checkpoint, Mix
from tasks.training.run import run_training
from tasks.training.token_files import check_vocabulary, mix_files


class PretrainConfig(Config):
    """Pre-training of one model from its initialisation."""

    model: ModelConfig = ModelConfig()
    """Shape of the model."""
    init_seed: int = 6198
    """Seed of the initial weights (RECIPE A.4)."""
    data_seed: int = 6198
    """Seed of the data order (RECIPE C.9)."""
    sequence_length: int = Field(default=4096, ge=2)
    """Tokens of a window."""
    batch_instances: int = Field(default=1024, ge=1)
    """Windows of a step (1B: 512, 13B and 32B: 2048; RECIPE D)."""
    micro_instances: int = Field(default=0, ge=0)
    """Windows of a forward pass; 0 is the whole batch at once."""
    steps: int | None = Field(default=None, ge=1)
    """Updates; None is one pass over the mix (7B: 928,646)."""
    optim: OptimConfig = OptimConfig()
    """Optimizer and precision."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate."""
    loss: LossConfig = LossConfig()
    """Cross-entropy and z-loss."""
    mask_repetitions: bool = True
    """Leave windows with a span of 1 to 13 tokens repeated 32 times or more out of the loss (RECIPE C.4)."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of the metrics (RECIPE D)."""


def train_base(ws: Workspace, mix: Mix, config: PretrainConfig) -> Checkpoint:
    """Train from a seeded initialisation.

    Raises ValueError when tokens and model have different vocabularies or the mix holds less than one batch.
    """
    tokenizer = Tokenizer(mix.ranks)
    check_vocabulary(mix, tokenizer, config.model.vocab_size)
    data = WindowedTokens(
        mix_files(ws, mix),
        config.sequence_length,
        config.batch_instances,
        config.data_seed,
        config.mask_repetitions,
        micro_instances=config.micro_instances,
        normalisation=config.loss.normalisation,
    )
    result = run_training(
        ws,
        model=Transformer(config.model, seed=config.init_seed),
        tokenizer=tokenizer,
        objective=language_model_objective(config.loss),
        batches=data.batch,
        optim=config.optim,
        schedule=config.schedule,
        steps=config.steps or data.steps_per_epoch,
        description="pre-training",
        keep_moments=True,
        log_every=config.log_every,
    )
    return ws.artifact(Checkpoint, **result.facts(), ranks=mix.ranks, parent="")


def estimate_pretrain(config: dict[str, Any], mix: Any) -> dict[str, Any]:
    """Tokens, FLOPs and parameters of a run, as far as they are known before it (RECIPE A.7)."""
    parsed = PretrainConfig.model_validate(config)
    batch = parsed.batch_instances * parsed.sequence_length
    available = mix.facts.get("tokens") if isinstance(mix, Pending) else mix.tokens
    steps = parsed.steps or (available // batch if available else None)
    per_token = parsed.model.flops_per_token(parsed.sequence_length)
    known = {"parameters": parsed.model.parameters, "flops_per_token": per_token}
    return known | ({"tokens": steps * batch, "flops": float(steps * batch * per_token)} if steps else {})


pretrain = stage(train_base, name="pretrain", version=1, process=True, estimate=estimate_pretrain)
