"""A small training stage for groups of workers, and stages and decoding run by the workers of a gloo group without Ray."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from infra.compute.shards import run_shards
from infra.compute.stage_call import Finished, StageCall
from infra.compute.train_group import WorkDone
from infra.settings import ComputeSettings, ParallelSettings
from infra.storage.store import Store
from infra.workspace import WorkSettings, Workspace
from model.config import Compute, Config, ModelConfig, Parallel
from model.data.labels import loss_divisor, next_token_labels
from model.decoding.generate import Completion, Sampling, log_likelihoods
from model.network.initial_weights import initial_rows
from model.network.sharded_tensors import is_sharded
from model.network.transformer import Transformer, on_meta_device
from model.parallel.group import Group, distribute, fill_weights
from model.parallel.work_split import HostBatch
from model.tokens.tokenizer import Tokenizer
from model.training.configs import LossConfig
from model.training.loop import Course, Logging, train_step
from model.training.losses import language_model_objective
from tasks.artifacts import Checkpoint
from tasks.generation import local_generator, shared_generator
from tasks.training.fitting.fit import adamw, begin, export, fitting, linear_schedule

TOKENIZER = Tokenizer(320)
TINY = ModelConfig(
    d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16, mlp_hidden=64,
    vocab_size=TOKENIZER.padded_vocab_size, max_sequence_length=128,
)  # fmt: skip


class Lines(Config):
    steps: int = 8
    bad_step: int = -1
    """Step whose batch is refused."""
    kill_step: int = -1
    """Step before which the second worker is killed, once."""
    kill_marker: str = ""
    """File that says it was."""


def train_lines(ws: Workspace, config: Lines) -> Checkpoint:
    """A toy language model on seeded ids."""

    def batches(step: int) -> list[HostBatch]:
        if step == config.bad_step:
            raise ValueError(f"batch {step} is bad")
        if step == config.kill_step and not Path(config.kill_marker).exists() and dist.get_rank() == 1:
            Path(config.kill_marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        ids = np.random.default_rng(step).integers(0, 300, (4, 16)).astype(np.uint32)
        labels = next_token_labels(ids)
        divisor = np.float32(loss_divisor(4 * 15, 0, *ids.shape, "labels"))
        return [{"ids": ids, "labels": labels, "divisor": np.asarray(divisor)}]

    state = begin(ws, on_meta_device(TINY), adamw(1.0, "fp32"))
    course = Course(
        objective=language_model_objective(LossConfig()),
        batches=batches,
        schedule=linear_schedule(1e-3, 0.0),
        steps=config.steps,
        description="train",
        pad_id=TOKENIZER.pad_id,
        logging=Logging(every=2),
    )
    with fitting(ws, state, course, weights=partial(initial_rows, TINY, 0), keep_moments=True) as fit:
        for micro_batches in fit.loop:
            fit.loop.made(train_step(state, micro_batches, course, fit.loop.device))
    export(ws, fit.result.model, TOKENIZER, bos="none")
    return ws.artifact(Checkpoint, **fit.result.facts(), ranks=TOKENIZER.ranks, parent="")


@dataclass(frozen=True)
class Call:
    """A stage function with what it is called with; calls of one id share their save points."""

    id: str
    function: Callable[..., Any]
    parallel: ParallelSettings
    arguments: dict[str, Any]
    keep_every: int = 0


def run_calls(root: str, calls: list[Call]) -> list[Finished | None]:
    """Stage functions one after the other, each by all workers; what rank 0 hands back, None from the others."""
    found: list[Finished | None] = []
    for call in calls:
        ws = Workspace(
            Store(root),
            stage="group",
            id=call.id,
            payload=f"group/{call.id}/g0001",
            progress_folder=f"_progress/group/{call.id}",
            settings=WorkSettings(
                compute=ComputeSettings(parallel=call.parallel), save_every=2, keep_every=call.keep_every
            ),
            run_shards=run_shards,
        )
        try:
            found.append(StageCall(f"{call.function.__module__}:{call.function.__name__}", ws, call.arguments).run())
        except WorkDone:
            found.append(None)
    return found


def run_damaged(root: str, call: Call, victim: str) -> list[Finished | None]:
    """A stage whose save points stay, and the same again after one of their files was changed."""
    first = run_calls(root, [call])
    dist.barrier()
    if dist.get_rank() == 0:
        path = Path(root, victim)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    dist.barrier()
    return first + run_calls(root, [call])


# --- decoding -----------------------------------------------------------------------------------------

KINDS: dict[str, tuple[torch.dtype, Any]] = {
    "packed": (torch.float32, "fp32"),
    "rounded": (torch.float32, "bf16"),
    "plain": (torch.float16, "fp32"),
}
"""Weights, and precision of the matmuls, so that every layout of them that is laid out once takes part."""
SAMPLING = Sampling(max_new_tokens=6, temperature=1.0, seed=3)
PROMPTS = [list(range(5 + place, 9 + 3 * place)) for place in range(5)]
REQUESTS = [(prompt, prompt[: 1 + place]) for place, prompt in enumerate(PROMPTS)]


class Watched(Group):
    """A group that records how much of its model is whole while some part is held."""

    model: Transformer
    held: list[int]

    @contextmanager
    def holding(self, module: nn.Module) -> Iterator[None]:
        with super().holding(module):
            self.held.append(sum(p.numel() for p in self.model.parameters() if not is_sharded(p)))
            yield


@dataclass(frozen=True)
class Decoded:
    """What a worker knows after decoding with all others."""

    answers: list[Completion]
    single: list[Completion]
    """To one prompt, of which rank 0 has no share."""
    likelihoods: list[float]
    held: list[int]
    """Numbers that were whole, each time that some were held."""
    whole_after: int


def decode(kind: str, parallel: ParallelSettings) -> Decoded:
    """Decode with a sharded model, or alone."""
    dtype, precision = KINDS[kind]
    model = on_meta_device(TINY).to(dtype)
    group = Watched(**vars(distribute(model, Compute(parallel=Parallel.model_validate(parallel.layout())), precision)))
    group.model, group.held = model, []
    fill_weights(model, partial(initial_rows, TINY.model_copy(update={"init_std": 0.3}), 0), group)
    generator = shared_generator(local_generator(model.eval(), TOKENIZER, precision, group=group), group)
    answers, single = (generator(PROMPTS[:count], SAMPLING) for count in (5, 1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        likelihoods = log_likelihoods(model, REQUESTS, batch_tokens=32, group=group)
    return Decoded(answers, single, likelihoods, group.held, sum(not is_sharded(p) for p in model.parameters()))


def run_and_decode(root: str, calls: list[Call]) -> tuple[list[Finished | None], dict[str, Decoded]]:
    """Stages, then sharded decoding, in one group: starting one costs more."""
    parts = ParallelSettings(workers=dist.get_world_size(), data="fsdp")
    return run_calls(root, calls), {kind: decode(kind, parts) for kind in KINDS}
