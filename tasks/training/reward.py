"""The reward model: the finetuned model with a head of one score, trained to score the chosen answer higher.

Source: RECIPE G (Bradley–Terry), paper Table 26; `tests/golden/posttraining_hparams.json`. Defaults are OLMo 2 7B. In OLMo 2
it only initialises PPO's value model. Deviations: a share of the prompts is held out to state an accuracy, over all pairs of
differently rated answers to them and with an error clustered by prompt. The untrained language head of the parent stays in
the folder, so that it remains a whole checkpoint.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config, Precision
from model.data.chat_batches import indices_of_step, pair_batches, steps_for
from model.network.transformer import Transformer
from model.parallel.group import Group
from model.training.loop import Course, Evaluation, Logging, TrainState, train_step
from model.training.objectives import reward_objective
from model.training.reference_scores import row_scores
from tasks.artifacts import Checkpoint, Preferences, RewardModel
from tasks.evaluation.benchmarks.items import Estimate, estimate_mean
from tasks.evaluation.comparing.paired import error_of_mean
from tasks.training.answers.pairs import PreferencePair, every_pair, prompt_pairs, whole_pairs
from tasks.training.fitting.fit import adamw, begin, export, fitting, linear_schedule, open_checkpoint
from tasks.training.fitting.reward_head import HEAD_FILE, HEAD_KEY, HEAD_NAME, score_head, with_score_head

T = TypeVar("T")


class RewardConfig(Config):
    """How to train the reward model; the defaults are OLMo 2 7B (RECIPE G)."""

    learning_rate: float = Field(default=3e-6, gt=0)
    """Peak; linear to zero without warm-up."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the pairs."""
    batch_size: int = Field(default=256, ge=1)
    """Pairs per update."""
    max_tokens: int = Field(default=2048, ge=2)
    """Pairs with a longer side are left out."""
    held_out: float = Field(default=0.05, gt=0, lt=1)
    """Share of the prompts kept for the stated accuracy (not published)."""
    eps: float = Field(default=1e-5, gt=0)
    """AdamW's epsilon."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 is no clipping."""
    precision: Precision = "bf16"
    """Type of activations and matmuls."""
    seed: int = 1
    """Head's initial weights, held-out pairs and order."""


def train_reward(ws: Workspace, parent: Checkpoint, pairs: Preferences, config: RewardConfig) -> RewardModel:
    """Train a score head and the model below it on preference pairs.

    Raises ValueError when fewer than two pairs fit or the parent's vocabulary does not fit its tokenizer.
    """
    model, saved, tokenizer = open_checkpoint(ws, parent)
    max_tokens = min(config.max_tokens, model.config.max_sequence_length)
    rows, dropped = whole_pairs(tokenizer, prompt_pairs(ws, pairs), max_tokens)
    training_rows, held_rows = split(rows, config.held_out, config.seed)
    training = [pair for _, pair in training_rows]
    # A prompt that gives several rows has all of them on one side.
    asked = {id for id, _ in held_rows} - {id for id, _ in training_rows}
    held, _ = whole_pairs(tokenizer, every_pair(ws, pairs, asked), max_tokens) if asked else ([], 0)
    held = held or held_rows
    ws.note(pairs_trained=len(training), pairs_held_out=len(held), pairs_dropped=dropped)
    # It comes back at the end, so that the folder stays a whole checkpoint.
    language_head = model.head
    with_score_head(model)

    def weights(name: str, shape: Sequence[int], start: int, stop: int) -> Tensor:
        if name == HEAD_NAME:
            return score_head(shape[1], config.seed)[start:stop]
        return saved(name, shape, start, stop)

    def members_of(step: int) -> list[int]:
        return indices_of_step(step, len(training), config.batch_size, config.seed)

    def batches(step: int):
        members = members_of(step)
        return pair_batches([training[i] for i in members], pad_id=tokenizer.pad_id, pass_tokens=ws.compute.pass_tokens)

    def judged(state: TrainState) -> dict[str, float]:
        found = held_out_accuracy(ws, model, held, tokenizer.pad_id, config, state.group)
        return {"accuracy": found.value, "accuracy_stderr": found.stderr}

    state = begin(ws, model, adamw(config.clip_norm, config.precision, config.eps))
    course = Course(
        objective=reward_objective(),
        batches=batches,
        schedule=linear_schedule(config.learning_rate, warmup_ratio=0.0),
        steps=steps_for(len(training), config.batch_size, config.epochs),
        description="train the reward model",
        pad_id=tokenizer.pad_id,
        logging=Logging(every=1, instances=members_of),
        evaluation=Evaluation(finish=judged),
    )
    with fitting(ws, state, course, weights=weights) as fit:
        for micro_batches in fit.loop:
            fit.loop.made(train_step(state, micro_batches, course, fit.loop.device))
    model = fit.result.model
    head_file = ws.scratch / HEAD_FILE
    save_file({HEAD_KEY: model.head.weight.detach().cpu().contiguous()}, head_file)
    ws.put(head_file)
    model.head = language_head
    model.head.weight = nn.Parameter(saved(HEAD_NAME, model.head.weight.shape, 0, len(model.head.weight)))
    export(ws, model, tokenizer, bos="eos")
    return ws.artifact(
        RewardModel,
        **fit.result.facts(),
        pairs_held_out=len(held),
        **tokenizer.facts,
        parent=parent.digest,
    )


def split(pairs: list[T], held_out: float, seed: int) -> tuple[list[T], list[T]]:
    """Training and held-out pairs, at least one each, chosen by seed."""
    if len(pairs) < 2:
        raise ValueError(
            f"{len(pairs)} usable pairs: one to train on and one to hold out are needed; "
            "make more preferences or raise max_tokens"
        )
    # At least one on each side, however small the share.
    count = min(len(pairs) - 1, max(1, round(held_out * len(pairs))))
    order = np.random.default_rng([seed, len(pairs)]).permutation(len(pairs))
    return [pairs[i] for i in order[count:]], [pairs[i] for i in order[:count]]


def held_out_accuracy(
    ws: Workspace,
    model: Transformer,
    pairs: list[tuple[str, PreferencePair]],
    pad_id: int,
    config: RewardConfig,
    group: Group,
) -> Estimate:
    """Share of pairs with the chosen answer scored higher (a tie counts half), with its standard error: clustered by prompt, and
    above 0 even where all are right. All workers of the group that holds the model have to call this.
    """
    rows = [row for _, pair in pairs for row in pair]
    scores = row_scores(
        model,
        rows,
        pad_id=pad_id,
        pass_tokens=ws.compute.pass_tokens,
        precision=config.precision,
        group=group,
        # [2 * pairs] -> [pairs, 2], since each pair's rows follow each other.
    ).reshape(-1, 2)
    # A tie counts half, as a coin would.
    right = (scores[:, 0] > scores[:, 1]) + 0.5 * (scores[:, 0] == scores[:, 1])
    found = estimate_mean(right.tolist())
    clustered = error_of_mean(right.tolist(), [id for id, _ in pairs])
    # Clustered errors can be 0 where all are right; the larger of the two is stated.
    return found if clustered is None else replace(found, stderr=max(clustered, found.stderr))


reward = stage(train_reward, name="reward", version=4, process=True, grouped=True, trains=True)
