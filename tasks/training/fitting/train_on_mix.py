"""Trains a model on the windows of a mix; pre-training and anneals share this (RECIPE C.9, D, E).

A rank of a group reads the windows that it trains on and no others. The divisor of the loss depends on how many windows the
repetition mask removes from the whole batch. So ranks tell each other their counts before each step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from infra.workspace import Workspace
from model.data.batches import Rows, WindowBatch
from model.data.read_ahead import ReadAhead
from model.network.transformer import Transformer
from model.parallel.work_split import own_rows
from model.tokens.tokenizer import Tokenizer
from model.training.loop import Course, Evaluation, Logging, TrainState
from model.training.losses import language_model_objective
from model.training.measuring.diagnostics import NormWatch
from model.training.schedule import ScheduleConfig
from tasks.artifacts import Mix
from tasks.training.fitting.fit import begin
from tasks.training.fitting.in_loop_evaluation import evaluator
from tasks.training.fitting.mix_windows import MixTrainingConfig, training_windows, window_names
from tasks.training.fitting.selection import Selector, selector


@dataclass(frozen=True)
class MixRun:
    """Holds what pre-training and an anneal do not have in common."""

    model: Transformer
    """On the meta device: `fitting` gives it values."""
    tokenizer: Tokenizer
    seed: int
    """Of the order of the windows."""
    schedule: Callable[[int], ScheduleConfig]
    """The learning rate of so many steps."""
    description: str


@contextmanager
def course_on_mix(
    ws: Workspace, mix: Mix, config: MixTrainingConfig, run: MixRun
) -> Iterator[tuple[TrainState, Course]]:
    """Open a training on the mix, for `fitting`: its state before the first step, and its course, with windows read ahead, norms
    watched and evaluation on the way.

    Raises ValueError when the mix holds less than one batch, or less than what is held out.
    """
    data = training_windows(ws, mix, config, run.seed, ws.compute.windows_at_once(config.batch_size))
    steps = config.steps or data.steps_per_epoch
    state = begin(ws, run.model, config.optim)
    group = state.group
    # What this rank reads of a step follows from the sizes alone, so it is known before the first batch.
    own = own_rows(data.batch_size // data.micro_instances, data.micro_instances, group.rank, group.world)

    def read(step: int) -> Rows:
        return data.rows(step, own)

    with ReadAhead(read, steps) as rows, NormWatch(run.model, config.norms_every) as norms:

        def batches(step: int) -> list[WindowBatch]:
            found = rows(step)
            # Every rank has masked flags of its own windows; the union counts for the divisor.
            return data.micro_batches(found, group.any_of(found.masked))

        yield (
            state,
            Course(
                objective=language_model_objective(config.loss),
                batches=norms.watching(batches),
                schedule=run.schedule(steps),
                steps=steps,
                description=run.description,
                # Windows are cut from text without gaps; rows of other workers, which are not read, count in full.
                pad_id=None,
                logging=Logging(every=config.log_every, facts=norms.metrics, instances=window_names(data)),
                evaluation=Evaluation(
                    judge=evaluator(ws, config.in_loop, data, run.tokenizer, config.optim), every=config.in_loop.every
                ),
            ),
        )
    # After the `with`: the total of all steps is known when the threads have ended.
    ws.note(data_wait_seconds=round(rows.waited_seconds, 3))


def mix_selector(config: MixTrainingConfig, tokenizer: Tokenizer) -> Selector | None:
    """What chooses the best save point of a training on a mix; None where the last one is taken."""
    return selector(config.select, tokenizer, config.optim.activations, chat=False)
