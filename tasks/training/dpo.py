"""Direct preference optimisation, length-normalised, against the policy it starts from.

Source: RECIPE G; `tests/golden/posttraining_hparams.json`. The defaults are OLMo 2 7B. Deviations: the
reference log-probabilities are kept by pair, not by step of a data loader, so they hold for any order. They are computed
once, whatever interrupts the training (`reference_parts`). Batches run on across epochs (see `model.data.chat_batches`).
"""

import numpy as np
from jaxtyping import Float32
from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config, Precision
from model.data.chat_batches import indices_of_step, pair_batches, steps_for
from model.network.transformer import Transformer
from model.parallel.group import Group, fill_weights
from model.training.loop import Course, Evaluation, Logging, train_step
from model.training.objectives import dpo_objective
from model.training.reference_scores import row_log_probs
from tasks.artifacts import Checkpoint, Preferences
from tasks.training.answers.pairs import PreferencePair, cut_pairs, read_pairs
from tasks.training.answers.reference_parts import PART_PAIRS, keep_references, kept_references
from tasks.training.fitting.asked_tasks import AnswersInLoop, answers_judge
from tasks.training.fitting.fit import adamw, begin, export, fitting, linear_schedule, open_checkpoint
from tasks.training.fitting.selection import SelectConfig, selector


class DPOConfig(Config):
    """How to tune on preferences; the defaults are OLMo 2 7B (RECIPE G)."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak; 1B 2.5e-6, 13B 8e-7, 32B 2e-6."""
    beta: float = Field(default=5.0, gt=0)
    """Weight of the margin over the reference; large because log-probabilities are averages per token."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps with linear warm-up; then linear to zero."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the pairs."""
    batch_size: int = Field(default=128, ge=1)
    """Pairs per update."""
    max_tokens: int = Field(default=2048, ge=2)
    """Both sides are cut after this many tokens."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 is no clipping."""
    precision: Precision = "bf16"
    """Type of activations and matmuls."""
    seed: int = 111
    """Order of the pairs (the published 1B command)."""
    in_loop: AnswersInLoop = AnswersInLoop()
    """Development benchmarks that are asked on the way."""
    select: SelectConfig | None = None
    """Choose the result among the save points."""


def train_dpo(ws: Workspace, policy: Checkpoint, pairs: Preferences, config: DPOConfig) -> Checkpoint:
    """Tune `policy` to prefer the chosen answers, with its own weights as the frozen reference.

    Raises ValueError when no pair is left to train on or the policy's vocabulary does not fit its tokenizer.
    """
    model, weights, tokenizer = open_checkpoint(ws, policy)
    # The model's window is the harder limit: positions beyond it were never trained.
    max_tokens = min(config.max_tokens, model.config.max_sequence_length)
    rows, dropped = cut_pairs(tokenizer, read_pairs(ws, pairs), max_tokens)
    ws.note(pairs_trained=len(rows), pairs_dropped=dropped)
    steps = steps_for(len(rows), config.batch_size, config.epochs)
    state = begin(ws, model, adamw(config.clip_norm, config.precision))
    # Filled before `fitting` may resume from a save point: the references need the initial weights.
    fill_weights(model, weights, state.group)
    # Computed once and kept as numbers, so that no second model is held during the training.
    references = reference_log_probs(ws, model, rows, tokenizer.pad_id, config, state.group)

    def members_of(step: int) -> list[int]:
        return indices_of_step(step, len(rows), config.batch_size, config.seed)

    def batches(step: int):
        members = members_of(step)
        return pair_batches(
            [rows[i] for i in members],
            pad_id=tokenizer.pad_id,
            pass_tokens=ws.compute.pass_tokens,
            references=references[members],
        )

    course = Course(
        objective=dpo_objective(config.beta),
        batches=batches,
        schedule=linear_schedule(config.learning_rate, config.warmup_ratio),
        steps=steps,
        description="tune on preferences",
        pad_id=tokenizer.pad_id,
        logging=Logging(every=1, instances=members_of),
        evaluation=Evaluation(
            judge=answers_judge(ws, config.in_loop, tokenizer, config.precision), every=config.in_loop.every
        ),
    )
    with fitting(ws, state, course, selector=selector(config.select, tokenizer, config.precision, chat=True)) as fit:
        for micro_batches in fit.loop:
            fit.loop.made(train_step(state, micro_batches, course, fit.loop.device))
    export(ws, fit.result.model, tokenizer, bos="eos")
    return ws.artifact(Checkpoint, **fit.result.facts(), **tokenizer.facts, parent=policy.digest)


def reference_log_probs(
    ws: Workspace, model: Transformer, pairs: list[PreferencePair], pad_id: int, config: DPOConfig, group: Group
) -> Float32[np.ndarray, "pairs 2"]:
    """Mean log-probability of each pair's chosen and rejected answer under the initial policy; workers share the work."""
    known = kept_references(ws, group)
    if len(known):
        ws.note(reference_pairs_reused=len(known))
    # Blocks of a batch per worker, so that the progress bar moves.
    size, parts, fresh = config.batch_size * group.world, [known], list[np.ndarray]()
    with ws.progress("reference log-probabilities", len(pairs), "pairs") as bar:
        bar.advance(len(known))
        for start in range(len(known), len(pairs), size):
            rows = [row for pair in pairs[start : start + size] for row in pair]
            log_probs = row_log_probs(
                model, rows, pad_id=pad_id, pass_tokens=ws.compute.pass_tokens, precision=config.precision, group=group
            )
            # The mean per token, as the policy's own term in the loss (dpo_norm).
            means = [values.sum() / row.trained_tokens for values, row in zip(log_probs, rows, strict=True)]
            # [2 * pairs] -> [pairs, 2]: chosen and rejected alternate in the rows.
            fresh.append(np.array(means, dtype=np.float32).reshape(-1, 2))
            bar.advance(len(rows) // 2)
            if sum(map(len, fresh)) >= PART_PAIRS or start + size >= len(pairs):
                part, fresh = np.concatenate(fresh), []
                if not group.rank:
                    keep_references(ws, sum(map(len, parts)), part)
                parts.append(part)
    return np.concatenate(parts)


dpo = stage(train_dpo, name="dpo", version=4, process=True, grouped=True, trains=True)
