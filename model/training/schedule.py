"""The learning rate is a pure function of progress.

Source: RECIPE D (warm-up, cosine in tokens or steps), E (linear to zero), F and G (warm-up ratio, then linear
to zero); oracle tests/golden/schedules.json.
"""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from model.config import Config


class ScheduleConfig(Config):
    """Shape of the learning rate over a run; the defaults are OLMo 2 7B stage 1."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up: half a cosine down to `final_ratio` of the peak, a line to zero, or no change."""
    learning_rate: float = Field(default=3e-4, ge=0)
    """Learning rate at the end of the warm-up."""
    unit: Literal["steps", "tokens"] = "tokens"
    """What `warmup` and `length` count."""
    warmup: int = Field(default=8_388_608_000, ge=0)
    """Linear warm-up from zero, in `unit` (RECIPE 0.2: the configs say tokens, the paper 2000 steps)."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Warm-up as a share of the length instead of `warmup` (post-training), cut to whole units as in open-instruct's
    scripts. Theirs are steps of one process, so a published warm-up can end up to a step later."""
    length: int = Field(default=5_000_000_000_000, ge=0)
    """Where the decay ends, in `unit`, warm-up included; 0 is the run's own number of steps. A run may stop
    before.
    """
    final_ratio: float = Field(default=0.1, ge=0, le=1)
    """End of the cosine as a share of the peak."""
    counter: Literal["after", "before"] = "after"
    """Progress of an update counts it (OLMo trainers: the first one is 1) or not (post-training: the first
    one is 0).
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup and self.warmup_ratio:
            raise ValueError(
                f"warmup={self.warmup} and warmup_ratio={self.warmup_ratio} exclude each other; set one to 0"
            )
        if self.unit == "tokens" and not self.length:
            raise ValueError("length=0 means the run's number of steps, but unit is tokens; set length or unit='steps'")
        if self.length and self.length < self.warmup:
            raise ValueError(f"length={self.length} ends before the warm-up of {self.warmup}; raise length")
        return self


def learning_rate(schedule: ScheduleConfig, *, step: int, tokens: int, steps: int) -> float:
    """Learning rate after `step` updates and `tokens` tokens of a run of `steps` updates."""
    length = float(schedule.length or steps)
    warmup = float(int(schedule.warmup_ratio * length) if schedule.warmup_ratio else schedule.warmup)
    progress = float(step if schedule.unit == "steps" else tokens)
    # At progress == warmup the rate is the peak, the first value of the decay.
    if progress < warmup:
        return schedule.learning_rate * progress / warmup
    if schedule.kind == "constant":
        return schedule.learning_rate
    if schedule.kind == "linear":
        # A run that is all warm-up has no decay to divide by, hence the 1.0.
        return schedule.learning_rate * max(0.0, length - progress) / max(1.0, length - warmup)
    floor = schedule.final_ratio * schedule.learning_rate
    if progress >= length:
        return floor
    share = (progress - warmup) / (length - warmup)
    return floor + (schedule.learning_rate - floor) * (1 + math.cos(math.pi * share)) / 2


def update_learning_rate(schedule: ScheduleConfig, *, step: int, tokens: int, batch_tokens: int, steps: int) -> float:
    """Learning rate of update `step` (0-based) that follows `tokens` tokens and uses `batch_tokens` more."""
    counted = schedule.counter == "after"
    return learning_rate(schedule, step=step + counted, tokens=tokens + batch_tokens * counted, steps=steps)
