"""Trains inside a workspace: every gradient-trained stage makes its steps in the block of `fitting`.

Source: RECIPE J (resume from the newest state, metrics at fixed steps). Payload: the Hugging Face folder,
`metrics.jsonl`, and `optimizer.safetensors` where the next stage needs the moments. Rates and timings are not part of
it: they go to the record's notes. In a group of workers every one of them runs the stage up to the end of its training;
rank 0 continues with the whole model. A model that is trained is built without memory for its weights and gets its
values when it is known which part of it is held here.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from torch import nn

from infra.compute.train_group import WorkDone
from infra.stopping import Interrupted, ending_in_order, is_stopping
from infra.workspace import Workspace
from model.config import Precision
from model.files.hf_config import read_config
from model.files.weights import SavedWeights, load_hf, save_hf
from model.network.transformer import Transformer, on_meta_device
from model.parallel.group import Weights, fill_weights, whole_model
from model.parallel.work_split import HostBatch
from model.tokens.tokenizer import Tokenizer
from model.training.configs import OptimConfig
from model.training.loop import (
    Course,
    Evaluation,
    Listeners,
    Loop,
    TrainState,
    evaluated,
    new_state,
    training,
)
from model.training.measuring.metrics import Scalars
from model.training.measuring.throughput import peak_flops, speed
from model.training.schedule import ScheduleConfig
from model.training.state_files import is_needed, load_moments, load_state, save_moments
from tasks.artifacts import METRICS, MOMENTS, Checkpoint, RewardModel, is_of_model
from tasks.computing import compute_of
from tasks.training.fitting.save_points import EVERYWHERE, Journal, JournalMark, SavePoints, Saving, resume
from tasks.training.fitting.selection import Selector, best_step, scored_steps, tell_selection


@dataclass(frozen=True)
class TrainingResult:
    """A training's result: the model, and the facts that its artifact states."""

    model: Transformer
    state: TrainState
    steps: int
    tokens: int
    """Tokens that were trained on, padding left out."""
    flops: float
    """RECIPE A.7, for the lengths the rows really had."""
    loss: float
    """Mean of the objective over the last tenth of the steps."""
    found: dict[str, float]
    """What the stage's own `finish` says of the model."""

    def facts(self) -> dict[str, float]:
        """The fields that `Checkpoint` and `RewardModel` share, and what the stage found."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "parameters": self.model.config.parameters,
            "loss": self.loss,
            "flops": self.flops,
        } | self.found


def adamw(clip_norm: float, precision: Precision, eps: float = 1e-8) -> OptimConfig:
    """The optimizer of all post-training: AdamW with β (0.9, 0.999) and no weight decay (RECIPE F, G, H)."""
    return OptimConfig(beta2=0.999, eps=eps, weight_decay=0.0, clip_norm=clip_norm, precision=precision)


def linear_schedule(learning_rate: float, warmup_ratio: float) -> ScheduleConfig:
    """Warm-up over a share of the steps, then linear to zero; the first update counts as 0, as published."""
    return ScheduleConfig(
        kind="linear",
        learning_rate=learning_rate,
        unit="steps",
        warmup=0,
        warmup_ratio=warmup_ratio,
        length=0,
        # The published trainers ask for the rate before counting
        # the update: the first one has a rate of 0 in warm-up.
        counter="before",
    )


def load_checkpoint(ws: Workspace, checkpoint: Checkpoint | RewardModel) -> tuple[Transformer, Tokenizer]:
    """Load model (fp32, on the CPU) and tokenizer of an input, without fetching Adam's moments.

    Raises ValueError when its weights, its tokenizer and its record do not have the same vocabulary.
    """
    folder = ws.path(checkpoint, wanted=is_of_model)
    model, config = load_hf(folder, ranks=checkpoint.ranks)
    return model, checkpoint_tokenizer(folder, checkpoint, config.vocab_size)


def open_checkpoint(ws: Workspace, checkpoint: Checkpoint | RewardModel) -> tuple[Transformer, SavedWeights, Tokenizer]:
    """Open a checkpoint for a training: the model without memory for its weights, and the weights as rows to be read.

    Raises ValueError as `load_checkpoint` does.
    """
    folder = ws.path(checkpoint, wanted=is_of_model)
    weights = SavedWeights(folder, ranks=checkpoint.ranks)
    tokenizer = checkpoint_tokenizer(folder, checkpoint, weights.config.vocab_size)
    return on_meta_device(weights.config), weights, tokenizer


def outline_checkpoint(ws: Workspace, checkpoint: Checkpoint) -> tuple[Transformer, Tokenizer]:
    """Open a checkpoint whose weights a server has: the model has none, and no weight file is fetched.

    Raises ValueError as `load_checkpoint` does.
    """
    # A server has the weights already; only config and tokenizer are fetched.
    folder = ws.path(checkpoint, wanted=lambda name: not name.endswith(".safetensors"))
    config = read_config(folder)
    return on_meta_device(config), checkpoint_tokenizer(folder, checkpoint, config.vocab_size)


def checkpoint_tokenizer(folder: Path, checkpoint: Checkpoint | RewardModel, rows: int) -> Tokenizer:
    """The tokenizer of a fetched checkpoint, of which every id has one of the embedding's `rows`. Raises ValueError otherwise."""
    tokenizer = Tokenizer.load(folder)
    recorded = Tokenizer(checkpoint.ranks, checkpoint.tokenizer)
    if tokenizer != recorded:
        raise ValueError(
            f"{checkpoint.address} has the tokenizer {tokenizer}, its record says {recorded}; "
            "start from a checkpoint of one vocabulary"
        )
    if rows < tokenizer.vocab_size:
        raise ValueError(
            f"{checkpoint.address} has {rows:,} embedding rows for {tokenizer.vocab_size:,} ids; "
            "start from a checkpoint whose embedding covers its tokenizer"
        )
    return tokenizer


def begin(ws: Workspace, model: nn.Module, optim: OptimConfig) -> TrainState:
    """Make the state of a training before its first step, of the whole model or of this rank's shard, on the device.

    Parameters of a model without memory get theirs, but no values: those come from `fitting`, or from `fill_weights`
    (`model.parallel.group`) in stages that use the model before.
    """
    return new_state(model, optim, compute_of(ws))


@dataclass
class Fitting:
    """A training under way in a workspace."""

    loop: Loop
    """Its steps, which the stage makes."""
    made: TrainingResult | None = None

    @property
    def result(self) -> TrainingResult:
        """What came of it."""
        assert self.made is not None, "asked after the block"
        return self.made


@contextmanager
def fitting(
    ws: Workspace,
    state: TrainState,
    course: Course,
    *,
    weights: Weights | None = None,
    initial_moments: Path | None = None,
    keep_moments: bool = False,
    saving: Saving = EVERYWHERE,
    selector: Selector | None = None,
) -> Iterator[Fitting]:
    """Train in the block, from the newest save point or from `weights` (None: those that the model has).

    `state` is what `begin` made. `initial_moments` is the `optimizer.safetensors` of the run to continue (RECIPE E). `saving`
    says where save points fall and what else they hold. `metrics.jsonl` gets a line for every step. With `keep_moments`,
    `optimizer.safetensors` joins the payload. With a `selector`, the result is the best of its save points. Use the result's
    model afterwards: the state's may be sharded. Raises WorkDone in the workers of a group that are not its first, and
    Interrupted, with a save point of that step, when asked to stop.
    """
    if course.steps < 1:
        raise ValueError(
            f"{course.description}: steps={course.steps} must be at least 1; raise the tokens or epochs to train on"
        )
    model = cast(Transformer, state.model)
    # An earlier attempt's save point brings weights and moments; without one they come from the stage's inputs.
    journal = resume(ws, state, saving.carried)
    if journal is None:
        journal = Journal()
        if weights is not None:
            fill_weights(model, weights, state.group)
        if initial_moments is not None:
            load_moments(state.optimizer, initial_moments, state.group)
    # Taken before the training, so that rates count this attempt's work only.
    first, began, before = state.step, time.monotonic(), journal.mark()
    # Rounded up to whole rollouts: a save point within one could not be resumed exactly.
    save_every = saving.multiple * math.ceil(ws.save_every / saving.multiple)

    stopped = False
    candidates = frozenset(selector.config.steps_of(course.steps, saving.multiple) if selector else ())
    writer = SavePoints(ws, journal, save_every, candidates, saving.carried)
    with ws.progress(course.description, course.steps, "steps") as bar, writer as points, ending_in_order():
        bar.advance(first)

        def stop(step: int) -> bool:
            # A group's workers would have to agree on the step; asked to stop, it goes back to its last save point.
            nonlocal stopped
            stopped = is_stopping() and step % saving.multiple == 0 and state.group.world == 1
            return stopped

        def counted_batches(step: int) -> Sequence[HostBatch]:
            # A save point is written in the background; its error is raised here, at a later step.
            points.check()
            return journal.count(model, course.pad_id, course.batches(step))

        def facts(step: int) -> Scalars:
            counts: Scalars = {"tokens": journal.tokens, "flops": journal.flops}
            return counts | (dict(course.logging.facts(step)) if course.logging.facts else {})

        def record(step: int, metrics: dict[str, float]) -> None:
            journal.add({"step": step} | metrics)

        def log(step: int, metrics: dict[str, float]) -> None:
            ws.log(step=step, **metrics)
            # Lines arrive some steps late and not for every step, so the bar follows the step's own number.
            bar.advance(step - bar.done)

        counted = replace(
            course,
            batches=counted_batches,
            logging=replace(course.logging, facts=facts),
            evaluation=with_selection(course.evaluation, selector, candidates),
        )

        def settled(what: str, line: str) -> None:
            # A fact of this run, like its speed: no part of the artifact or of its id.
            ws.note(**{what: line})
            if not state.group.rank:
                ws.warn(line)

        told = Listeners(
            log=log,
            record=record,
            settled=settled,
            checkpoint=points.save,
            checkpoint_every=save_every,
            checkpoint_also=candidates,
            stop=stop,
        )
        with training(state, counted, compute_of(ws), told) as loop:
            yield (fit := Fitting(loop))
    # Raised only here, after the loop has written the save point that it names.
    if stopped:
        raise Interrupted(
            f"stopped on request after step {state.step:,}, which is saved; the same command resumes there"
        )
    _note_speed(ws, time.monotonic() - began, journal, before, state.group.world)
    counts = _choose(ws, state, journal, selector) if selector else journal
    found = course.evaluation.finish(state) if course.evaluation.finish else {}
    fit.made = conclude(ws, state, journal, counts, course.description, keep_moments=keep_moments, found=found)


def with_selection(evaluation: Evaluation, selector: Selector | None, candidates: frozenset[int]) -> Evaluation:
    """What judges a training on its way, together with what scores its candidates."""
    if selector is None:
        return evaluation

    def judge(state: TrainState) -> dict[str, float]:
        asked = evaluation.due(state.step)
        return (asked(state) if asked else {}) | (selector(state) if state.step in candidates else {})

    return replace(evaluation, judge=judge, also=candidates)


def _choose(ws: Workspace, state: TrainState, journal: Journal, selector: Selector) -> Journal:
    """Bring the state back to the best of a training's save points; the journal of that moment.

    Raises StoreError where its files are no longer what was saved, ValueError where no score is finite.
    """
    scored = scored_steps(journal.lines, selector.metric)
    if state.step not in scored:
        # A training that ended early, by a budget, has no score of its end.
        last = evaluated(state, selector)
        scored[state.step] = {"score": last[selector.metric], "stderr": last[f"{selector.metric}/stderr"]}
    # All ranks take the same one, and none reads before rank 0 has written the markers.
    best = best_step(scored, by=selector.config.by, lower_is_better=selector.lower_is_better)
    chosen, trained = state.group.exchange(best)[0], state.step
    if chosen != trained:
        folder = ws.own_save_point(chosen, lambda name: is_needed(name, state.group))
        load_state(state, folder)
        journal = Journal.load(folder)
    if not state.group.rank:
        tell_selection(ws, selector, scored, chosen)
        ws.note(steps_trained=trained, step_chosen=chosen)
    return journal


def _note_speed(ws: Workspace, seconds: float, journal: Journal, before: JournalMark, devices: int) -> None:
    """Rates of what was trained since `before`."""
    device, tokens, flops = ws.compute.device, journal.tokens - before.tokens, journal.flops - before.flops
    rates = speed(seconds, tokens, flops, device, devices, peak_flops(device))
    ws.note(train_seconds=round(seconds, 3), **{name: round(value, 3) for name, value in rates.items()})


def conclude(
    ws: Workspace,
    state: TrainState,
    journal: Journal,
    counts: Journal,
    description: str,
    *,
    keep_moments: bool,
    found: dict[str, float],
) -> TrainingResult:
    """Gather the model in rank 0, which writes what belongs to the payload; the others end with WorkDone.

    `journal` is of the whole training, `counts` of it up to this state.
    """
    group = state.group
    whole = cast(Transformer, whole_model(group, state.model))
    if keep_moments:
        # A gather: all ranks call it, although only rank 0 writes.
        save_moments(state.optimizer, ws.scratch / MOMENTS, group)
    # The gathers above needed all ranks; what follows is written once, by rank 0.
    if group.rank:
        raise WorkDone(f"worker {group.rank} has trained its part of {description}")
    if keep_moments:
        ws.put(ws.scratch / MOMENTS)
    if group.world > 1:
        ws.note(workers=group.world, parallel=ws.compute.parallel.data)
    ws.write(METRICS, bytes(journal.lines))
    return TrainingResult(whole, state, state.step, counts.tokens, counts.flops, counts.final_loss(), found)


def export(ws: Workspace, model: Transformer, tokenizer: Tokenizer, bos: Literal["none", "eos"]) -> None:
    """The model as a Hugging Face folder in the payload; `bos="eos"` for models of the chat format."""
    folder = ws.scratch / "export"
    save_hf(model, model.config, tokenizer, folder, bos=bos)
    ws.put(folder)
