"""Stage: reinforcement learning with verifiable rewards by PPO, with a value model that begins as the reward model.

Source: RECIPE H.1, H.2; paper section 5, Table 18; `tests/golden/posttraining_hparams.json`. The defaults are OLMo 2 7B's. The
reward model's own score takes no part (its multiplier is 0 in all OLMo 2 runs). Deviations: sampling and learning take turns
unless `rollouts` says `lag: 1`, which the published runs did without a correction; the token means of both losses are over the
whole mini-batch.

Sampling, exact resumes and groups of workers: `tasks/training/answers/rollouts.py`. Only the policy is decoded, so the value
model stays sharded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config, Precision
from model.data.chat_batches import Batch, LabelledRow, token_batches
from model.network.transformer import Transformer
from model.training.advantages import stop_penalty
from model.training.loop import Course, Evaluation, Logging, TrainState, train_step
from model.training.ppo import ActorCritic, Estimates, JointOptimizer, estimate, joint_flops, ppo_objective
from model.training.reference_scores import row_values
from tasks.artifacts import Checkpoint, Prompts, RewardModel
from tasks.training.answers.kl_control import KLControl
from tasks.training.answers.rollouts import Rollout, Rollouts, answer_metrics, frozen_reference, prompts_that_fit
from tasks.training.answers.sampled_ahead import RolloutTiming
from tasks.training.answers.served_rollouts import rollout_server, served_policy
from tasks.training.answers.verified_answers import (
    VerifiedAnswer,
    answer_row,
)
from tasks.training.fitting.asked_tasks import AnswersInLoop, answers_judge
from tasks.training.fitting.fit import (
    TrainingResult,
    adamw,
    begin,
    export,
    fitting,
    linear_schedule,
    open_checkpoint,
)
from tasks.training.fitting.reward_head import fresh_score_model, open_reward_model
from tasks.training.fitting.save_points import Saving
from tasks.training.fitting.selection import SelectConfig, selector
from tasks.verifiers.verdict import Rules


class PPOConfig(Config):
    """How to reinforce; the defaults are OLMo 2 7B's PPO (RECIPE H.2, Table 18)."""

    algorithm: Literal["ppo"] = "ppo"
    """This one; `grpo` has a stage and values of its own."""
    learning_rate: float = Field(default=4e-7, gt=0)
    """Of policy and value model, linear to zero without warm-up (13B 3e-7)."""
    episodes: int = Field(default=100_000, ge=1)
    """Answers sampled in the whole stage (13B 200,000)."""
    prompts_per_rollout: int = Field(default=224, ge=2)
    """Prompts answered, once each, between two rounds of updates (13B 248)."""
    rollouts: RolloutTiming = Field(default=RolloutTiming(), exclude_if=lambda value: value == RolloutTiming())
    """Whether the newest policy samples, or the one a rollout before it, and how that is corrected."""
    epochs: int = Field(default=4, ge=1)
    """Passes over each rollout."""
    mini_batches: int = Field(default=1, ge=1)
    """Updates per pass over a rollout."""
    rules: Rules = "correct"
    """How verifiers read answers; `published` keeps the historical rules, under which hedging and empty answers may pay."""
    correct_score: float = 10.0
    """Score of an answer that its verifier accepts; others get 0."""
    unfinished_score: float | None = -10.0
    """Score of an answer without an end, even a correct one; None scores it like any other."""
    kl_coefficient: float = Field(default=0.05, ge=0)
    """β of the reward's KL term, log π − log π_ref per token (7B 0.05 in Table 18, 0.07 in the text; 13B 0.1, 0.03, 0.1)."""
    kl_control: KLControl | None = None
    """A budget for that KL, and whether β adapts or the training stops beyond; none keeps β, as published."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """λ of the generalised advantages."""
    whiten_batch: int = Field(default=8, ge=2)
    """Answers whose advantages are whitened together (published: those of one GPU)."""
    clip: float = Field(default=0.2, gt=0)
    """The probability ratio is clipped to 1 ± this."""
    value_clip: float = Field(default=0.2, gt=0)
    """Values are clipped to the rollout's ± this."""
    value_coefficient: float = Field(default=0.1, gt=0)
    """Weight of the value loss."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of all log-probabilities."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Longer prompts are left out, and those that leave less than `max_new_tokens` of the model's window."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Answers are cut after this many tokens."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest gradient norm of each model; 0 is no clipping."""
    precision: Precision = "bf16"
    """Type of activations and matmuls, in sampling too."""
    seed: int = 1
    """Order of the prompts, sampling, and order within a rollout."""
    value_start: Literal["reward_model", "fresh"] = "reward_model"
    """What the value model begins as: the reward model, as published, or the policy with a new head."""
    in_loop: AnswersInLoop = AnswersInLoop()
    """Development benchmarks that are asked on the way."""
    select: SelectConfig | None = None
    """Choose the result among the save points."""


def train_ppo(
    ws: Workspace, policy: Checkpoint, judge: RewardModel | None, prompts: Prompts, config: PPOConfig
) -> Checkpoint:
    """Sample answers, score them by their verifiers, and train the policy by the advantages that the value model, trained
    with it, sees in them.

    Without a judge the value model begins as the policy with a new head (`value_start: fresh`). Raises ValueError when `episodes`
    makes no rollout, fewer than two prompts fit, policy and judge are unlike, judge and `value_start` disagree, or a server is
    to sample for several workers.
    """
    workers = ws.compute.parallel.workers
    if workers > 1 and rollout_server(ws) is not None:
        raise ValueError(
            f"execution.endpoints.{ws.stage} samples for a policy in one process, and execution.parallel.{ws.stage}.workers="
            f"{workers} share it with a value model; leave generation.{ws.stage} local, or train in one process"
        )
    if (judge is None) != (config.value_start == "fresh"):
        raise ValueError(
            f"value_start={config.value_start}, but {'no' if judge is None else 'a'} reward model is given; give one for "
            "value_start=reward_model, and none for value_start=fresh"
        )
    model, weights, tokenizer = open_checkpoint(ws, policy)
    if judge is None:
        critic, judged = fresh_score_model(model, weights, config.seed)
    else:
        critic, judged, other = open_reward_model(ws, judge)
        # The released reward model has an embedding without the policy's padding rows; no id means one of them.
        shape = critic.config.model_copy(update={"vocab_size": model.config.vocab_size})
        if (shape, other) != (model.config, tokenizer):
            raise ValueError(
                f"the value model {judge.address} has shape {critic.config} and the tokenizer {other}, the policy "
                f"{policy.address} has {model.config} and {tokenizer}; take a reward model of the policy's kind"
            )
    # A single answer has no spread to whiten its advantages by.
    encoded = prompts_that_fit(ws, prompts, tokenizer, model, config, least=2)
    reference, reference_group = frozen_reference(ws, model, weights, config.precision)
    pair = ActorCritic(model, critic)
    # One optimizer per model below, since each clips its own gradient; `begin` makes one for both.
    state = begin(ws, pair, joint := adamw(config.clip_norm, config.precision))
    state.optimizer = JointOptimizer(pair, joint)

    def both(name: str, shape: Sequence[int], start: int, stop: int) -> Tensor:
        part, _, rest = name.partition(".")
        # Names begin with `policy.` or `critic.`, as `ActorCritic` names its parts.
        return (weights if part == "policy" else judged)(rest, shape, start, stop)

    learner = PPORollouts(
        config,
        model,
        state.group,
        reference,
        reference_group,
        tokenizer,
        encoded,
        ws.compute.pass_tokens,
        count=ppo_rollouts(config),
        critic=critic,
    )
    course = Course(
        objective=ppo_objective(
            clip=config.clip,
            value_clip=config.value_clip,
            value_coefficient=config.value_coefficient,
            temperature=config.temperature,
        ),
        batches=learner.batches,
        schedule=linear_schedule(config.learning_rate, warmup_ratio=0.0),
        steps=learner.count * learner.updates,
        description="reinforce",
        pad_id=tokenizer.pad_id,
        logging=Logging(every=1, facts=learner.metrics, instances=lambda step: learner.places(step // learner.updates)),
        evaluation=Evaluation(
            judge=answers_judge(ws, config.in_loop, tokenizer, config.precision, policy_of),
            every=config.in_loop.every,
        ),
    )
    learner.served = served_policy(ws, tokenizer, config.precision, learner.updates)
    with (
        learner,
        fitting(
            ws,
            state,
            course,
            weights=both,
            selector=selector(config.select, tokenizer, config.precision, chat=True, policy=policy_of),
            # Saves fall between rollouts, where no half-used rollout is lost.
            saving=Saving(learner.updates, learner if config.rollouts.lag else None),
        ) as fit,
    ):
        for micro_batches in fit.loop:
            fit.loop.made(train_step(state, micro_batches, course, fit.loop.device))
    learner.tell_end(ws)
    export(ws, cast(Any, fit.result.model).policy, tokenizer, bos="eos")
    return ws.artifact(Checkpoint, **facts_of_both(fit.result), **tokenizer.facts, parent=policy.digest)


def policy_of(state: TrainState) -> Transformer:
    """The policy of a state that trains a value model with it."""
    return cast(ActorCritic, state.model).policy


def facts_of_both(result: TrainingResult) -> dict[str, float]:
    """The checkpoint's facts, with the FLOPs of the value model."""
    return result.facts() | {"flops": joint_flops(result.flops, result.tokens, result.model.config)}


def ppo_rollouts(config: PPOConfig) -> int:
    """Whole rollouts in `episodes`. Raises ValueError when there is none."""
    if config.episodes < config.prompts_per_rollout:
        raise ValueError(
            f"episodes={config.episodes:,} is less than one rollout of {config.prompts_per_rollout} answers; "
            "use at least that many"
        )
    return config.episodes // config.prompts_per_rollout


@dataclass
class PPORollouts(Rollouts[PPOConfig]):
    """Single answers, and updates of policy and value model by the advantages that the latter sees in them."""

    critic: Transformer = field(kw_only=True)
    """The value model, in training with the policy."""

    def roll(self, rollout: int) -> Rollout:
        prompts = [self.prompts[i] for i in self.places(rollout)]
        # One answer per prompt: PPO's baseline is the value model, not a group.
        answers = [group[0] for group in self.answers(rollout, prompts, 1)]
        rows = [answer_row(p, a, self.tokenizer.eos_id) for p, a in zip(prompts, answers, strict=True)]
        # From the trainer's own forward pass, since the decoder rounds differently.
        old = self.log_probs(self.policy, rows, self.group)
        self.compare(rollout, prompts, answers, old)
        importance, corrected = self.importance(prompts, answers, old)
        values = self.values(rows)
        reference = self.log_probs(self.reference, rows, self.reference_group)
        coefficient, distance = self.kl_coefficient(old, reference, rows)
        # Position t predicts token t + 1, so the answer's first token is predicted one place before it.
        starts = [len(prompt.ids) - 1 for prompt in prompts]
        ratio = responses([a - b for a, b in zip(old, reference, strict=True)], starts, self.config.max_new_tokens)
        scores = score_answers(answers, self.config)
        estimates = self.estimate(ratio, values, scores, rows, starts, coefficient)
        columns = per_token(rows, starts, old, values, estimates) | importance
        tokens = sum(row.trained_tokens for row in rows)
        return [self.update_batches(members, rows, columns) for members in self.split(rollout, len(rows))], {
            "score": float(scores.mean()),
            "kl": float(ratio.sum()) / tokens,
            **distance,
            **corrected,
            **answer_metrics(list(zip(prompts, answers, strict=True)), rows, old),
        }

    def values(self, rows: list[LabelledRow]) -> list[np.ndarray]:
        """What the value model says at every position."""
        config = self.config
        return row_values(
            self.critic,
            rows,
            pad_id=self.tokenizer.pad_id,
            pass_tokens=self.pass_tokens,
            precision=config.precision,
            group=self.group,
        )

    def estimate(
        self,
        ratio: Tensor,
        values: list[np.ndarray],
        scores: Tensor,
        rows: list[LabelledRow],
        starts: list[int],
        kl_coefficient: float,
    ) -> Estimates:
        """Advantages and returns of a rollout."""
        config = self.config
        return estimate(
            ratio,
            responses(values, starts, config.max_new_tokens),
            scores,
            torch.tensor([row.trained_tokens for row in rows]),
            kl_coefficient=kl_coefficient,
            gamma=config.gamma,
            lam=config.gae_lambda,
            whiten_batch=config.whiten_batch,
        )

    def update_batches(
        self, members: list[int], rows: list[LabelledRow], columns: dict[str, list[np.ndarray]]
    ) -> list[Batch]:
        """The passes of one update over some of a rollout's answers."""
        own = {name: [values[i] for i in members] for name, values in columns.items()}
        batches = token_batches(
            [rows[i] for i in members],
            pad_id=self.tokenizer.pad_id,
            reduction="mean",
            # All of the update's answers are one micro-batch: the token mean is over the whole of it.
            micro_batch=len(members),
            pass_tokens=self.pass_tokens,
            per_token=dict(own),
        )
        total = sum(float(judged.sum()) for judged in own["judged"])
        # As for the other weights: the loop averages over passes.
        return [batch | {"value_share": batch.pop("judged") * np.float32(len(batches) / total)} for batch in batches]


def score_answers(answers: list[VerifiedAnswer], config: PPOConfig) -> Tensor:
    """Score of each answer after the penalty for one without an end (H.2 step 2)."""
    correct = torch.tensor([answer.verdict.correct for answer in answers])
    finished = torch.tensor([answer.finished for answer in answers])
    return stop_penalty(correct * config.correct_score, finished, config.unfinished_score)


def responses(values: list[np.ndarray], starts: list[int], limit: int) -> Tensor:
    """What belongs to the answers of padded rows, (rows, limit): from the position that predicts an answer's first token on."""
    found = torch.zeros(len(values), limit)
    for place, (row, start) in enumerate(zip(values, starts, strict=True)):
        # The last position predicts nothing of the answer, so it may lie beyond the limit.
        own = row[start : start + limit]
        found[place, : len(own)] = torch.from_numpy(own)
    return found


def per_token(
    rows: list[LabelledRow], starts: list[int], old: list[np.ndarray], values: list[np.ndarray], estimates: Estimates
) -> dict[str, list[np.ndarray]]:
    """What the objective needs at every position of every row, 0 outside the answers."""

    def placed(found: Tensor) -> list[np.ndarray]:
        columns = []
        for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
            column = np.zeros(len(row.ids), dtype=np.float32)
            # Estimates are as wide as the longest answer may be; this row ends earlier.
            own = found[place].float().numpy()[: len(column) - start]
            column[start : start + len(own)] = own
            columns.append(column)
        return columns

    return {
        "old_log_probs": old,
        "old_values": values,
        "advantages": placed(estimates.advantages),
        "returns": placed(estimates.returns),
        "judged": placed(estimates.judged),
    }


ppo = stage(train_ppo, name="ppo", version=5, process=True, grouped=True, trains=True)
