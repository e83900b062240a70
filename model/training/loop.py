"""The training loop: every gradient-trained stage makes its updates in the block of `training`.

Source: RECIPE D (precision, clipping, metrics every 10 steps), J (garbage collection at fixed steps, resume).
A step is a pure function of the state and of `batches(step)`, so a resumed run equals an undisturbed one bit
for bit on the same CPU. With several processes every one of them runs this loop (`model.parallel.group`).
"""

import contextlib
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from model.config import Compute
from model.network.float8 import check_float8, multiply_in_float8
from model.parallel.group import Group, Objective, distribute
from model.parallel.work_split import HostBatch, share_of
from model.training.allocator import keep_freed_memory
from model.training.attention_choice import choose_attention
from model.training.configs import OptimConfig
from model.training.float8_check import Float8Check, UnappliedGradients
from model.training.measuring.metrics import Instances, Log, MetricsLog, Scalars, StepFacts
from model.training.measuring.throughput import Meter
from model.training.optim import Optimizer, Updater
from model.training.schedule import ScheduleConfig, update_learning_rate
from model.training.watchdog import Watchdog

# HostBatch: arrays or tensors of one micro-batch by name. Names `ids` and `*_ids` are token ids and are counted as trained
# tokens. Objective: (model, batch on the device) -> scalar to minimise and metrics, kept on the device; what several
# workers or micro-batches return is summed over the former and averaged over the latter.
__all__ = [
    "Course",
    "EndOfTraining",
    "Evaluate",
    "Evaluation",
    "Listeners",
    "Logging",
    "Loop",
    "Objective",
    "TrainState",
    "evaluated",
    "new_state",
    "to_device",
    "train",
    "train_step",
    "training",
]

Evaluate = Callable[["TrainState"], dict[str, float]]
"""State -> metrics of the model as it is, equal in equal runs (RECIPE D, evaluation in the loop). Asked in all workers of a
group, whose weights may be sharded (`Group.apply`, `Group.holding`)."""


class EndOfTraining(Exception):
    """`batches(step)` raises this to end a training early: the state of the last update is the result. In a group, all ranks
    have to raise it at the same step.
    """


@dataclass
class TrainState:
    """What training changes: the model, the optimizer, and counters of finished updates and tokens."""

    model: nn.Module
    optimizer: Updater
    step: int = 0
    tokens: int = 0
    group: Group = field(default_factory=Group)
    """The processes that train this model."""


def new_state(model: nn.Module, optim: OptimConfig, compute: Compute) -> TrainState:
    """Return the state at step 0 with fresh moments. The model, or this rank's shard of it, moves to the device. Fill it
    with `state_files.load_state` to resume.

    Raises ValueError as `distribute` does, and for float8 where the device cannot multiply it or no layer has the widths.
    """
    float8 = optim.precision == "float8"
    if float8:
        check_float8(compute.device, compute.emulate_float8)
    group = distribute(model, compute, optim.activations)
    if float8:
        multiply_in_float8(model, compute.emulate_float8)
    return TrainState(model, Optimizer(model.named_parameters(), optim), group=group)


@dataclass(frozen=True)
class Logging:
    """Says what a training tells of its steps."""

    every: int = 10
    """Steps between two lines with all metrics; the steps between have `metrics.EVERY_STEP`."""
    facts: StepFacts | None = None
    """`facts(n)`, asked right after the n-th update if it is logged, joins its metrics. Equal in equal runs."""
    instances: Instances | None = None
    """`instances(step)` names the examples of a 0-based step's batch, for the error of a loss that is not finite."""


@dataclass(frozen=True)
class Evaluation:
    """Says how a training judges the model on its way."""

    judge: Evaluate | None = None
    """Called with the model in evaluation mode and without gradients; its metrics join those of that step."""
    every: int = 0
    """Updates between two evaluations; 0 is never."""
    also: frozenset[int] = frozenset()
    """Further numbers of updates after which it judges."""
    finish: Evaluate | None = None
    """Called once at the end, in all workers of a group, while they hold the model; for the artifact's facts."""

    def due(self, step: int) -> Evaluate | None:
        """What judges the model after so many updates."""
        return self.judge if step in self.also or (self.every and step % self.every == 0) else None


@dataclass(frozen=True)
class Course:
    """A course is one training from its first step to its last: stages state it and the loop follows it."""

    objective: Objective
    """What is minimised."""
    batches: Callable[[int], Sequence[HostBatch]]
    """`batches(step)`, called once per 0-based step and in order, gives the micro-batches, over which gradients and metrics
    are averaged. In every process of a group it gives the same, but for the values of rows that `share_of` gives to others."""
    schedule: ScheduleConfig
    """Learning rate."""
    steps: int
    """Updates in all."""
    description: str = "train"
    """What the progress bar and errors call it."""
    pad_id: int | None = None
    """Token id that does not count as trained; None where nothing is padded."""
    logging: Logging = Logging()
    evaluation: Evaluation = Evaluation()


@dataclass(frozen=True)
class Listeners:
    """Names who is told while a training runs."""

    log: Log | None = None
    """Gets the number of finished updates and all metrics (loss, the objective's own, grad_norm, skipped, lr, tokens, rates)
    of logged steps, some steps later and in order."""
    record: Log | None = None
    """Gets every step: the same without rates where it is logged, else `metrics.EVERY_STEP`."""
    checkpoint: Callable[[TrainState], None] | None = None
    """Called after every `checkpoint_every` updates but the last, when the metrics of all steps so far have been told."""
    checkpoint_every: int = 0
    checkpoint_also: frozenset[int] = frozenset()
    """Further numbers of updates after which it is called."""
    settled: Callable[[str, str], None] | None = None
    """`settled(what, line)` gets what was measured on this device in the first steps: the choice of `attention`, or how far
    `float8` is from bf16."""
    stop: Callable[[int], bool] | None = None
    """`stop(n)`, asked after the n-th update but the last, ends the training there, after a checkpoint, when it is true."""

    def saving(self, step: int) -> Callable[[TrainState], None] | None:
        """What saves the state after so many updates."""
        due = step in self.checkpoint_also or (self.checkpoint_every and step % self.checkpoint_every == 0)
        return self.checkpoint if due else None


class Loop:
    """The steps of an open training; whoever iterates makes the updates.

    >>> for batches in loop:
    ...     loop.made(train_step(state, batches, course, loop.device))

    Between two steps it tells metrics, judges, saves and collects garbage.
    """

    def __init__(
        self,
        state: TrainState,
        course: Course,
        compute: Compute,
        told: Listeners,
        metrics: MetricsLog,
        watchdog: Watchdog,
    ) -> None:
        self.device = compute.device
        self._compute, self._begun = compute, False
        self._float8 = Float8Check(state.model) if state.optimizer.config.precision == "float8" else None
        self._state, self._course, self._told = state, course, told
        self._metrics, self._watchdog = metrics, watchdog

    def __iter__(self) -> Iterator[Sequence[HostBatch]]:
        """The micro-batches of each step, up to the course's last, EndOfTraining or a stop."""
        state, steps = self._state, self._course.steps
        while state.step < steps:
            try:
                with self._metrics.waiting():
                    micro_batches = self._course.batches(state.step)
            except EndOfTraining:
                return
            if not self._begun:
                self._begin(micro_batches)
            if self._float8 and self._float8.left:
                self._float8.expect(partial(train_step, self._unapplied(), micro_batches, self._course, self.device))
            yield micro_batches
            self._watchdog.beat()
            # Asked after the update, so a stopped training resumes at a whole step.
            stop = self._told.stop is not None and state.step < steps and self._told.stop(state.step)
            self._tell_and_save(stop)
            if stop:
                return
            # Ranks wait for each other at every step, so all of them pause for garbage at the same one (RECIPE J).
            if state.step % self._compute.gc_every == 0:
                # Young generations only: a full collection walks all objects, which would take as long as some steps.
                gc.collect(1)

    def made(self, metrics: Scalars) -> None:
        """Take the metrics of the update that was just made. Raises ValueError where float8 is too far from bf16."""
        line = self._float8.compare(self._state.step, metrics) if self._float8 else ""
        if line:
            self._settle("float8", line)
        self._metrics.collect(self._state.step, metrics)

    def _begin(self, micro_batches: Sequence[HostBatch]) -> None:
        """What has to be chosen when the shape of a batch is known and nothing is compiled yet."""
        self._begun, state = True, self._state
        # Of all ranks' micro-batches, whose shapes are known everywhere, so that all measure the same.
        lengths = [value.shape[-1] for batch in micro_batches for name, value in batch.items() if _is_ids(name)]
        lines = choose_attention(
            state.model, state.group, self._compute, state.optimizer.config.activations, max(lengths, default=0)
        )
        if lines:
            self._settle("attention", "; ".join(lines))

    def _settle(self, what: str, line: str) -> None:
        if self._told.settled:
            self._told.settled(what, line)

    def _unapplied(self) -> TrainState:
        """The state for a step that leaves weights and moments as they are."""
        optimizer = self._state.optimizer
        return replace(self._state, optimizer=UnappliedGradients(optimizer.parameters.items(), optimizer.config))

    def _tell_and_save(self, stop: bool) -> None:
        """What follows an update: metrics on their way, an evaluation and a save point where they are due."""
        state, metrics, logging = self._state, self._metrics, self._course.logging
        last = state.step == self._course.steps
        save = self._told.checkpoint if stop else self._told.saving(state.step)
        due = save is not None and not last
        judge = self._course.evaluation.due(state.step)
        logged = judge is not None or state.step % logging.every == 0 or last
        if logged or due:
            known = dict(logging.facts(state.step)) if logging.facts and logged else {}
            if judge:
                known |= evaluated(state, judge)
                self._watchdog.beat()
            metrics.send(state.tokens, known, logged)
        # Before a save all metrics are awaited: a non-finite loss must not reach a checkpoint.
        metrics.deliver(wait=due or last)
        if save and due:
            save(state)
            metrics.saved = state.step


@contextlib.contextmanager
def training(state: TrainState, course: Course, compute: Compute, told: Listeners = Listeners()) -> Iterator[Loop]:
    """Open a training from `state.step` to the last step of the course: its loop, whose steps the block makes.

    After EndOfTraining from `course.batches`, or a stop, the state has fewer updates. Raises FloatingPointError at a non-finite
    loss or gradient, before it reaches the weights or a checkpoint.
    """
    if compute.threads:
        torch.set_num_threads(compute.threads)
    keep_freed_memory()
    if compute.compile == "blocks":
        compile_model(state.model)
    state.model.train()
    meter = Meter(state.tokens, compute.device, state.group.world)
    with (
        _manual_gc(),
        Watchdog(compute.stall_seconds, state.group.rank, state.group.world) as watchdog,
        MetricsLog(told.log, told.record, course.logging.instances, state.step, meter) as metrics,
    ):
        yield Loop(state, course, compute, told, metrics, watchdog)
        if state.step < course.steps:
            metrics.end(state.tokens)


def train(state: TrainState, course: Course, compute: Compute, told: Listeners = Listeners()) -> TrainState:
    """Make all steps of a training and return the state; raises what `training` does."""
    with training(state, course, compute, told) as loop:
        for micro_batches in loop:
            loop.made(train_step(state, micro_batches, course, loop.device))
    return state


def train_step(state: TrainState, micro_batches: Sequence[HostBatch], course: Course, device: str) -> Scalars:
    """Make one update: forward and backward of every micro-batch (gradient accumulation), then clip and apply. Metrics that
    are tensors stay on the device.
    """
    if not micro_batches:
        raise ValueError(
            f"batches({state.step}) is empty; every step before {course.steps} needs at least one micro-batch"
        )
    group, share = state.group, 1.0 / len(micro_batches)
    # Workers average their gradients, whereas each has a part of the sum.
    scale = share * group.world
    sums: dict[str, Tensor] = {}
    own = share_of(micro_batches, group.rank, group.world)
    forward = group.forward(course.objective, state.model)
    for place, batch in enumerate(own):
        with group.accumulating(last=place == len(own) - 1):
            with torch.autocast(
                torch.device(device).type, torch.bfloat16, enabled=state.optimizer.config.activations == "bf16"
            ):
                loss, metrics = forward(to_device(batch, device))
            # Multiplying by 1.0 would add a kernel per micro-batch and change nothing.
            (loss if scale == 1.0 else loss * scale).backward()
        for name, value in ({"loss": loss} | metrics).items():
            value = value.detach().float() * share
            sums[name] = sums[name] + value if name in sums else value
    sums = group.total(sums)
    # Counted over the whole batch, not over this rank's part, so the schedule is the same for any world size.
    batch_tokens = sum(_tokens(batch) for batch in micro_batches)
    lr = update_learning_rate(
        course.schedule, step=state.step, tokens=state.tokens, batch_tokens=batch_tokens, steps=course.steps
    )
    # The skip-step rule judges by cross-entropy, as published (RECIPE D), not by its sum with the z-loss.
    update = state.optimizer.step(lr, sums.get("ce", sums["loss"]))
    state.step += 1
    state.tokens += batch_tokens
    return sums | update | {"lr": lr, "tokens": float(state.tokens)}


def _tokens(batch: HostBatch) -> int:
    """Token ids in a micro-batch."""
    return sum(math.prod(value.shape) for name, value in batch.items() if _is_ids(name))


def _is_ids(name: str) -> bool:
    return name == "ids" or name.endswith("_ids")


@torch.no_grad()
def evaluated(state: TrainState, evaluate: Evaluate) -> dict[str, float]:
    """What the hook finds, with the model back in training mode afterwards."""
    state.model.eval()
    try:
        return evaluate(state)
    finally:
        state.model.train()


def compile_model(model: nn.Module) -> None:
    """Compile the blocks of every Transformer inside `model`, in place."""
    for part in model.modules():
        if hasattr(part, "compile_blocks"):
            part.compile_blocks()  # type: ignore[operator]


def to_device(batch: HostBatch, device: str) -> dict[str, Tensor]:
    """Return a micro-batch as tensors; unsigned token arrays become int64, which embeddings index with."""
    tensors, pinned = {}, torch.device(device).type == "cuda"
    for name, value in batch.items():
        if isinstance(value, np.ndarray) and value.dtype == np.uint32:
            value = value.astype(np.int64)
        tensor = torch.as_tensor(value)
        # Only from pinned memory does a copy to a GPU overlap with the host.
        tensors[name] = (tensor.pin_memory() if pinned and tensor.is_cpu else tensor).to(device, non_blocking=True)
    return tensors


@contextlib.contextmanager
def _manual_gc() -> Iterator[None]:
    """Switch automatic garbage collection off, so that pauses fall on chosen steps; restores what was."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
