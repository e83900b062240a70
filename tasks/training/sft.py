"""Supervised finetuning: a base model learns to answer in the chat format.

Source: RECIPE F; `tests/golden/posttraining_hparams.json`. The defaults are OLMo 2 7B. Deviations: batches run on across
epochs (see `model.data.chat_batches`), so a last batch shorter than the others does not exist. Gradients are clipped at 1.0,
which the published launcher is said to have resolved to.
"""

from collections.abc import Iterable

from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config, Precision
from model.data.chat_batches import LabelledRow, Reduction, indices_of_step, make_row, steps_for, token_batches
from model.tokens.chat import encode_chat
from model.tokens.tokenizer import Tokenizer
from model.training.loop import Course, Evaluation, Logging, train_step
from model.training.objectives import sft_objective
from tasks.artifacts import Chats, Checkpoint
from tasks.training.fitting.asked_tasks import AnswersInLoop, answers_judge
from tasks.training.fitting.fit import adamw, begin, export, fitting, linear_schedule, open_checkpoint
from tasks.training.fitting.selection import SelectConfig, selector


class SFTConfig(Config):
    """How to finetune; the defaults are OLMo 2 7B (RECIPE F)."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak. Table 17 and the archived commands say 1e-5, the paper's text 2e-5; 1B 3e-5, 13B 5e-6, 32B 4e-6.
    """
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps with linear warm-up (the paper prints 0.3, the code says 0.03); then linear to zero.
    """
    epochs: float = Field(default=2, gt=0)
    """Passes over the chats."""
    batch_size: int = Field(default=128, ge=1)
    """Chats per update."""
    max_tokens: int = Field(default=4096, ge=2)
    """Chats are cut after this many tokens."""
    loss: Reduction = "sum"
    """How a micro-batch's token losses become one number; "mean" over-weights short chats."""
    micro_batch: int = Field(default=1, ge=1)
    """Chats per published micro-batch: what `loss` reduces before the average over micro-batches (1B: 2)."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 is no clipping."""
    precision: Precision = "bf16"
    """Type of activations and matmuls."""
    seed: int = 1
    """Order of the chats (the published commands used 1 for 1B)."""
    in_loop: AnswersInLoop = AnswersInLoop()
    """Development benchmarks that are asked on the way."""
    select: SelectConfig | None = None
    """Choose the result among the save points."""


def train_sft(ws: Workspace, parent: Checkpoint, chats: Chats, config: SFTConfig) -> Checkpoint:
    """Train on the assistant turns of the chats, starting from `parent`'s weights with fresh moments.

    Raises ValueError when no chat has anything to train on or the parent's vocabulary does not fit its
    tokenizer.
    """
    model, weights, tokenizer = open_checkpoint(ws, parent)
    max_tokens = min(config.max_tokens, model.config.max_sequence_length)
    rows, dropped = encode_chats(tokenizer, ws.read_jsonl(chats, "chats.jsonl.zst"), max_tokens)
    ws.note(chats_trained=len(rows), chats_without_answer=dropped)
    steps = steps_for(len(rows), config.batch_size, config.epochs)

    # Also told to the loop, which names these chats where a loss is not finite.
    def members_of(step: int) -> list[int]:
        return indices_of_step(step, len(rows), config.batch_size, config.seed)

    def batches(step: int):
        members = members_of(step)
        return token_batches(
            [rows[i] for i in members],
            pad_id=tokenizer.pad_id,
            reduction=config.loss,
            micro_batch=config.micro_batch,
            pass_tokens=ws.compute.pass_tokens,
        )

    state = begin(ws, model, adamw(config.clip_norm, config.precision))
    course = Course(
        objective=sft_objective(),
        batches=batches,
        schedule=linear_schedule(config.learning_rate, config.warmup_ratio),
        steps=steps,
        description="finetune",
        pad_id=tokenizer.pad_id,
        logging=Logging(every=1, instances=members_of),
        evaluation=Evaluation(
            judge=answers_judge(ws, config.in_loop, tokenizer, config.precision), every=config.in_loop.every
        ),
    )
    with fitting(
        ws, state, course, selector=selector(config.select, tokenizer, config.precision, chat=True), weights=weights
    ) as fit:
        for micro_batches in fit.loop:
            fit.loop.made(train_step(state, micro_batches, course, fit.loop.device))
    export(ws, fit.result.model, tokenizer, bos="eos")
    return ws.artifact(Checkpoint, **fit.result.facts(), **tokenizer.facts, parent=parent.digest)


def encode_chats(tokenizer: Tokenizer, chats: Iterable[dict], max_tokens: int) -> tuple[list[LabelledRow], int]:
    """Rows of the chats that have a trained token within `max_tokens`, and how many have none."""
    rows, dropped = [], 0
    for chat in chats:
        row = make_row(*encode_chat(tokenizer, chat["messages"], max_tokens))
        # Without a trained token a row adds nothing to the sum, but it would take a place in the batch.
        if row.trained_tokens:
            rows.append(row)
        else:
            dropped += 1
    return rows, dropped


sft = stage(train_sft, name="sft", version=4, process=True, grouped=True, trains=True)
