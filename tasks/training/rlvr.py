"""Reinforcement learning with verifiable rewards: GRPO with verifier scores and a KL to the initial policy.

Source: RECIPE H.1, H.3; paper section 5; `tests/golden/posttraining_hparams.json`. The defaults are OLMo 2 1B's, the
published GRPO run (7B and 13B used PPO, tasks/training/ppo.py). Deviations: sampling and learning take turns unless `rollouts`
says `lag: 1`; the token mean is over the whole mini-batch unless `micro_batch` says otherwise. Later variants go by name. A
higher upper clip is `clip_high` (DAPO 0.28), and the mean of answers' means is `loss_mean: answers` (the first GRPO).
`normalization: centered` divides by no standard deviation, and `unfinished: masked` leaves answers without an end out of the
loss.

Sampling, exact resumes and groups of workers: `tasks/training/answers/rollouts.py`; a server that samples:
`tasks/training/answers/served_rollouts.py`; one that samples a step behind: `tasks/training/answers/sampled_ahead.py`. The
reference of a group that holds parts stays sharded.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config, Precision
from model.data.chat_batches import Batch, LabelledRow, token_batches
from model.training.advantages import group_advantages, stop_penalty, zero_std_groups
from model.training.configs import KLEstimator, Normalization
from model.training.loop import Course, Evaluation, Logging, train_step
from model.training.objectives import grpo_objective
from model.training.schedule import ScheduleConfig
from tasks.artifacts import Checkpoint, Prompts
from tasks.training.answers.kl_control import KLControl
from tasks.training.answers.rollouts import Rollout, Rollouts, answer_metrics, frozen_reference, prompts_that_fit
from tasks.training.answers.sampled_ahead import RolloutTiming
from tasks.training.answers.served_rollouts import served_policy
from tasks.training.answers.verified_answers import (
    VerifiedAnswer,
    answer_row,
)
from tasks.training.fitting.asked_tasks import AnswersInLoop, answers_judge
from tasks.training.fitting.fit import adamw, begin, export, fitting, open_checkpoint
from tasks.training.fitting.save_points import Saving
from tasks.training.fitting.selection import SelectConfig, selector
from tasks.verifiers.verdict import Rules


class RLVRConfig(Config):
    """How to reinforce; the defaults are OLMo 2 1B's GRPO (RECIPE H.3)."""

    algorithm: Literal["grpo"] = Field(default="grpo", exclude=True)
    """This one; `ppo` has a stage and values of its own. It takes no part in the identity."""
    learning_rate: float = Field(default=5e-7, gt=0)
    """Constant."""
    episodes: int = Field(default=2_000_000, ge=1)
    """Answers sampled in the whole stage."""
    prompts_per_rollout: int = Field(default=48, ge=1)
    """Prompts answered between two rounds of updates."""
    samples: int = Field(default=16, ge=2)
    """Answers per prompt: the group that advantages compare."""
    rollouts: RolloutTiming = Field(default=RolloutTiming(), exclude_if=lambda value: value == RolloutTiming())
    """Whether the newest policy samples, or the one a rollout before it, and how that is corrected."""
    mini_batches: int = Field(default=2, ge=1)
    """Updates per pass over a rollout."""
    epochs: int = Field(default=1, ge=1)
    """Passes over each rollout."""
    rules: Rules = "correct"
    """How verifiers read answers; `published` keeps the historical rules, under which hedging and empty answers may pay."""
    correct_score: float = 10.0
    """Score of an answer that its verifier accepts; others get 0."""
    unfinished_score: float | None = 0.0
    """Score of an answer without an end, even a correct one; None scores it like any other (PPO used -10)."""
    unfinished: Literal["trained", "masked"] = "trained"
    """Answers without an end: trained on by their score, or left out of the loss (grpo_fast); their group counts their score."""
    normalization: Normalization = "sample_std"
    """Divisor of a group's advantages: std with ddof 1 (original script), with ddof 0 (grpo_fast), or none.
    """
    zero_std_groups: Literal["keep", "drop"] = "keep"
    """Groups of equal scores: kept for their KL term (original script) or left out (grpo_fast)."""
    kl_coefficient: float = Field(default=0.01, ge=0)
    """β of the KL to the initial policy; 32B 0.1."""
    kl_estimator: KLEstimator = "k3"
    """How that KL is estimated from the sampled tokens."""
    kl_control: KLControl | None = None
    """A budget for it, and whether β adapts or the training stops beyond; none keeps β, as published."""
    clip_low: float = Field(default=0.2, gt=0)
    """The probability ratio is clipped below 1 - this."""
    clip_high: float = Field(default=0.2, gt=0)
    """The probability ratio is clipped above 1 + this."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of all log-probabilities."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Longer prompts are left out, and those that leave less than `max_new_tokens` of the model's window."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Answers are cut after this many tokens."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 is no clipping."""
    loss_mean: Literal["tokens", "answers"] = "tokens"
    """Mean over tokens, where long answers weigh more, or over answers of each one's mean."""
    micro_batch: int = Field(default=0, ge=0)
    """Answers whose token mean is one term of the loss; 0 is the whole mini-batch."""
    precision: Precision = "bf16"
    """Type of activations and matmuls, in sampling too."""
    seed: int = 1
    """Order of the prompts, sampling, and order within a rollout."""
    in_loop: AnswersInLoop = AnswersInLoop()
    """Development benchmarks that are asked on the way."""
    select: SelectConfig | None = None
    """Choose the result among the save points."""

    @model_validator(mode="after")
    def _one_mean(self) -> Self:
        if self.loss_mean == "answers" and self.micro_batch > 1:
            raise ValueError(
                f"loss_mean=answers makes every answer a term of its own, micro_batch={self.micro_batch} puts several into "
                "one; leave micro_batch at 0"
            )
        return self


def train_rlvr(ws: Workspace, policy: Checkpoint, prompts: Prompts, config: RLVRConfig) -> Checkpoint:
    """Sample answers, score them by their verifiers, and train towards the better ones of each group.

    Raises ValueError when `episodes` makes no rollout, no prompt fits, or the policy's window or vocabulary
    does not fit.
    """
    model, weights, tokenizer = open_checkpoint(ws, policy)
    encoded = prompts_that_fit(ws, prompts, tokenizer, model, config, samples=config.samples)
    reference, reference_group = frozen_reference(ws, model, weights, config.precision)
    state = begin(ws, model, adamw(config.clip_norm, config.precision))
    actor = GRPORollouts(
        config,
        model,
        state.group,
        reference,
        reference_group,
        tokenizer,
        encoded,
        ws.compute.pass_tokens,
        count=rollouts_of(config),
    )
    course = Course(
        objective=grpo_objective(
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            kl_coefficient=config.kl_coefficient,
            kl_estimator=config.kl_estimator,
            temperature=config.temperature,
        ),
        batches=actor.batches,
        schedule=ScheduleConfig(
            kind="constant", learning_rate=config.learning_rate, unit="steps", warmup=0, length=0, counter="before"
        ),
        steps=actor.count * actor.updates,
        description="reinforce",
        pad_id=tokenizer.pad_id,
        logging=Logging(every=1, facts=actor.metrics, instances=lambda step: actor.places(step // actor.updates)),
        evaluation=Evaluation(
            judge=answers_judge(ws, config.in_loop, tokenizer, config.precision), every=config.in_loop.every
        ),
    )
    actor.served = served_policy(ws, tokenizer, config.precision, actor.updates)
    with (
        actor,
        fitting(
            ws,
            state,
            course,
            weights=weights,
            selector=selector(config.select, tokenizer, config.precision, chat=True),
            # Save points fall between rollouts: one that has begun depends on weights that have moved on.
            saving=Saving(actor.updates, actor if config.rollouts.lag else None),
        ) as fit,
    ):
        for micro_batches in fit.loop:
            fit.loop.made(train_step(state, micro_batches, course, fit.loop.device))
    actor.tell_end(ws)
    export(ws, fit.result.model, tokenizer, bos="eos")
    return ws.artifact(Checkpoint, **fit.result.facts(), **tokenizer.facts, parent=policy.digest)


def rollouts_of(config: RLVRConfig) -> int:
    """Whole rollouts in `episodes`. Raises ValueError when there is none."""
    size = config.prompts_per_rollout * config.samples
    if config.episodes < size:
        raise ValueError(
            f"episodes={config.episodes:,} is less than one rollout of {config.prompts_per_rollout} prompts x "
            f"{config.samples} samples = {size:,}; use at least that many"
        )
    return config.episodes // size


class GRPORollouts(Rollouts[RLVRConfig]):
    """Groups of answers, and updates by how each compares with its group."""

    def roll(self, rollout: int) -> Rollout:
        config = self.config
        prompts = [self.prompts[i] for i in self.places(rollout)]
        groups = self.answers(rollout, prompts, config.samples)
        rows = [
            answer_row(prompt, answer, self.tokenizer.eos_id)
            for prompt, group in zip(prompts, groups, strict=True)
            for answer in group
        ]
        # From the trainer's own forward pass: the decoder rounds differently, which would move the first ratio away from
        # 1.
        old = self.log_probs(self.policy, rows, self.group)
        flat = [(prompt, answer) for prompt, group in zip(prompts, groups, strict=True) for answer in group]
        sampled = [prompt for prompt, _ in flat], [answer for _, answer in flat]
        self.compare(rollout, *sampled, old)
        importance, corrected = self.importance(*sampled, old)
        reference = self.log_probs(self.reference, rows, self.reference_group)
        coefficient, distance = self.kl_coefficient(old, reference, rows)
        scores, finished = score_groups(groups, config)
        # Flattened like the rows: all answers to the first prompt, then those to the second.
        advantages = group_advantages(scores, config.normalization).flatten().numpy().astype(np.float32)
        equal = zero_std_groups(scores)
        keep = torch.ones_like(finished)
        if config.zero_std_groups == "drop":
            keep &= ~equal[:, None]
        if config.unfinished == "masked":
            keep &= finished
        updates = [
            # β goes with the batch only where a budget may change it, so that other runs keep their bytes.
            self.update_batches(
                members, rows, advantages, old, reference, coefficient if config.kl_control else None, importance
            )
            for members in self.members(rollout, keep.flatten())
        ]
        return updates, {
            "score": float(scores.mean()),
            "zero_std_groups": float(equal.float().mean()),
            **distance,
            **corrected,
            **answer_metrics(flat, rows, old),
        }

    def members(self, rollout: int, keep: torch.Tensor) -> Iterator[list[int]]:
        """The answers of each update that are kept.

        Where nothing of an update's part is kept, its answers stay. Those of groups without differences have advantages of 0, so
        only their KL term remains; those without an end keep the penalty that they have.
        """
        for part in self.split(rollout, len(keep)):
            # An update without answers would be no update, and the schedule counts updates.
            yield [i for i in part if keep[i]] or part

    def update_batches(
        self,
        members: list[int],
        rows: list[LabelledRow],
        advantages: np.ndarray,
        old: list[np.ndarray],
        reference: list[np.ndarray],
        coefficient: float | None = None,
        importance: Mapping[str, Sequence[np.ndarray]] | None = None,
    ) -> list[Batch]:
        """The passes of one update over some of a rollout's answers; with β where a budget may change it, and with importance
        weights where an older policy sampled.
        """
        made = token_batches(
            [rows[i] for i in members],
            pad_id=self.tokenizer.pad_id,
            reduction="mean",
            # micro_batch=1 makes every answer's own mean a term; the whole mini-batch makes one mean over tokens.
            micro_batch=1 if self.config.loss_mean == "answers" else self.config.micro_batch or len(members),
            pass_tokens=self.pass_tokens,
            per_row={"advantages": advantages[members]},
            per_token={
                "old_log_probs": [old[i] for i in members],
                "reference_log_probs": [reference[i] for i in members],
                **{name: [weights[i] for i in members] for name, weights in (importance or {}).items()},
            },
        )
        if coefficient is not None:
            return [batch | {"kl_coefficient": np.asarray(np.float32(coefficient))} for batch in made]
        return made


def score_groups(groups: list[list[VerifiedAnswer]], config: RLVRConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (prompts, samples) after the penalty for answers without an end, and which answers have one."""
    correct = torch.tensor([[answer.verdict.correct for answer in group] for group in groups])
    finished = torch.tensor([[answer.finished for answer in group] for group in groups])
    # A finished answer keeps its score; the penalty replaces the score of any other, correct or not.
    return stop_penalty(correct * config.correct_score, finished, config.unfinished_score), finished


rlvr = stage(train_rlvr, name="rlvr", version=6, process=True, grouped=True, trains=True)
