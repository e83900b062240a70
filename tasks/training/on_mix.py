"""Training a model on the windows of a mix: what pre-training and anneals share (RECIPE C.9, D, E)."""

from pathlib import Path

from infra.workspace import Workspace
from model.diagnostics import NormWatch
from model.losses import language_model_objective
from model.read_ahead import ReadAhead
from model.schedule import ScheduleConfig
from model.tokenizer import Tokenizer
from model.transformer import Transformer
from tasks.artifacts import Mix
from tasks.training.in_loop import evaluator
from tasks.training.run import TrainingResult, export, fit
from tasks.training.token_files import MixTrainingConfig, training_windows, window_names


def train_on_mix(
    ws: Workspace,
    mix: Mix,
    config: MixTrainingConfig,
    *,
    model: Transformer,
    tokenizer: Tokenizer,
    seed: int,
    schedule: ScheduleConfig,
    description: str,
    keep_moments: bool = False,
    initial_moments: Path | None = None,
) -> TrainingResult:
    """Train on the mix in the order of `seed`, with batches read ahead, norms watched and evaluation on the way; the
    payload is the checkpoint folder with its metrics.

    Raises ValueError when the mix holds less than one batch, or less than what is held out.
    """
    data = training_windows(ws, mix, config, seed)
    steps = config.steps or data.steps_per_epoch
    with ReadAhead(data.batch, steps) as batches, NormWatch(model, config.norms_every) as norms:
        result = fit(
            ws,
            model=model,
            objective=language_model_objective(config.loss),
            batches=norms.watching(batches),
            optim=config.optim,
            schedule=schedule,
            steps=steps,
            pad_id=tokenizer.pad_id,
            description=description,
            keep_moments=keep_moments,
            initial_moments=initial_moments,
            log_every=config.log_every,
            step_metrics=norms.metrics,
            instances=window_names(data),
            evaluate=evaluator(ws, config.in_loop, data, tokenizer, config.optim),
            evaluate_every=config.in_loop.every,
        )
    ws.note(data_wait_seconds=round(batches.waited_seconds, 3))
    export(ws, result.model, tokenizer, bos="none")
    return result
