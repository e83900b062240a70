"""Groups of gloo processes for tests, and small trainings of every kind of objective that run in them or alone."""

import gc
import json
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from model.config import OLMO_0424, Compute, ModelConfig, Parallel
from model.data.chat_batches import make_row, pair_batches, token_batches
from model.data.labels import IGNORE, loss_divisor, next_token_labels
from model.files.weights import SavedWeights
from model.network.initial_weights import initial_rows
from model.network.sharded_tensors import is_sharded, whole_tensor
from model.network.transformer import Linear, Transformer, on_meta_device, separate_projections
from model.parallel.group import distribute, fill_weights, whole_model
from model.parallel.work_split import HostBatch
from model.training.configs import LossConfig, OptimConfig
from model.training.loop import Course, Evaluation, Listeners, Logging, TrainState, new_state, train, train_step
from model.training.losses import language_model_objective
from model.training.objectives import dpo_objective, grpo_objective, reward_objective, sft_objective
from model.training.optim import Optimizer
from model.training.ppo import ActorCritic, JointOptimizer, ppo_objective
from model.training.reference_scores import row_log_probs, row_values
from model.training.schedule import ScheduleConfig
from model.training.state_files import load_moments, load_state, save_state

# 130 rows do not divide by 4, so shards of the embedding are unequal.
CONFIG = ModelConfig(
    d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, mlp_hidden=64, vocab_size=130, max_sequence_length=64
)
DEEP = CONFIG.model_copy(update={"n_layers": 8, "vocab_size": 131})
STEPS = 4
SCHEDULE = ScheduleConfig(learning_rate=1e-3, unit="steps", warmup=2, length=STEPS)
PRELOAD = [
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "model.training.loop",
    "model.training.objectives",
    "model.data.chat_batches",
]


def run_group(workers: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns in every worker of a gloo group. Raises AssertionError with a worker's traceback.

    Workers have this process's environment, not that of the server that forks them, which may have begun in an earlier test.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(workers):
            here, there = context.Pipe()
            process = context.Process(
                target=_work, args=(rank, workers, folder, there, dict(os.environ), function, arguments), daemon=True
            )
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        answers = [pipe.recv() for pipe in pipes]
        for process in processes:
            process.join(60)
    for ok, answer in answers:
        assert ok, answer
    return [answer for _, answer in answers]


def _work(
    rank: int,
    workers: int,
    folder: str,
    pipe: Connection,
    environment: dict[str, str],
    function: Callable[..., Any],
    arguments: Any,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    try:
        answer = (True, function(*arguments))
    except Exception:
        answer = (False, traceback.format_exc())
    pipe.send(answer)
    if answer[0]:
        dist.destroy_process_group()


# --- trainings ----------------------------------------------------------------------------------------


def language_batches(step: int) -> Sequence[HostBatch]:
    """Three micro-batches of two windows, unequally masked, the divisor being the whole batch's."""
    random = np.random.default_rng(step)
    ids = random.integers(0, 100, (6, 16)).astype(np.uint32)
    labels = next_token_labels(ids)
    labels[step % 6] = IGNORE
    labels[0, : random.integers(1, 12)] = IGNORE
    divisor = np.float32(loss_divisor(int((labels != IGNORE).sum()), 1, len(labels), labels.shape[1], "labels") / 3)
    return [
        {
            "ids": ids[at : at + 2],
            "labels": labels[at : at + 2],
            "divisor": np.asarray(divisor),
            "masked_instances": np.asarray(np.float32((labels[at : at + 2] == IGNORE).all(1).mean())),
        }
        for at in (0, 2, 4)
    ]


def even_language_batches(step: int) -> Sequence[HostBatch]:
    """Two micro-batches, so that each of two workers takes a whole one; also with a divisor of their own."""
    parts = language_batches(step)[:2]
    return [{"ids": part["ids"], "labels": np.maximum(part["labels"], 0)} for part in parts]


def rows(step: int, count: int) -> list[Any]:
    """Sequences of different lengths, of which the second half is trained."""
    random = np.random.default_rng([7, step])
    lengths = random.integers(8, 60, count)
    return [make_row(random.integers(0, 100, n).astype(np.uint32), np.arange(n) >= n // 2) for n in lengths.tolist()]


def chat_batches(step: int) -> Sequence[HostBatch]:
    """Passes of one to several chats, so that a worker may get none of a pass."""
    return token_batches(rows(step, 7), pad_id=100, reduction="mean", micro_batch=2, pass_tokens=128)


def preference_batches(step: int) -> Sequence[HostBatch]:
    random = np.random.default_rng([8, step])
    made = rows(step, 10)
    references = random.normal(-4.6, 0.1, (5, 2)).astype(np.float32)
    pairs = list(zip(made[:5], made[5:], strict=True))
    return pair_batches(pairs, pad_id=100, pass_tokens=256, references=references)


def rollout_batches(step: int) -> Sequence[HostBatch]:
    random = np.random.default_rng([9, step])
    made = rows(step, 6)
    old = [random.normal(-4.6, 0.1, len(row.ids)).astype(np.float32) for row in made]
    return token_batches(
        made, pad_id=100, reduction="mean", micro_batch=6, pass_tokens=128,
        per_row={"advantages": random.normal(0, 1, 6).astype(np.float32)},
        per_token={"old_log_probs": old, "reference_log_probs": old},
    )  # fmt: skip


GRPO = {"clip_low": 0.2, "clip_high": 0.2, "kl_coefficient": 0.1, "kl_estimator": "k3", "temperature": 1.0}
KINDS: dict[str, tuple[Callable[[], Any], Callable[[int], Sequence[HostBatch]]]] = {
    "language model": (lambda: language_model_objective(LossConfig()), language_batches),
    "OLMo-0424": (lambda: language_model_objective(LossConfig()), language_batches),
    "bf16": (lambda: language_model_objective(LossConfig()), language_batches),
    "whole micro-batches": (lambda: language_model_objective(LossConfig()), even_language_batches),
    "chats": (sft_objective, chat_batches),
    "preferences": (lambda: dpo_objective(1.0), preference_batches),
    "reward": (reward_objective, preference_batches),
    "rollouts": (lambda: grpo_objective(**GRPO), rollout_batches),
}


def model_of(kind: str) -> Transformer:
    # Its norms have no weights, so the final one has nothing of its own to gather.
    config = (
        ModelConfig.model_validate(CONFIG.model_dump() | OLMO_0424 | {"qkv_clip": 0.2})
        if kind == "OLMo-0424"
        else CONFIG
    )
    model = Transformer(config, seed=1)
    if kind == "reward":
        torch.manual_seed(0)
        model.head = Linear(CONFIG.d_model, 1)
        torch.nn.init.normal_(model.head.weight, std=0.05)
    return model


def train_kind(
    kind: str,
    parallel: Parallel,
    *,
    optim: OptimConfig | None = None,
    load: Path | None = None,
    save: Path | None = None,
    steps: int = STEPS,
    separate: bool = False,
) -> dict[str, Any]:
    """Train from the start or from a saved state; metrics of every step, whole weights and moments at the end.

    `separate`: copies multiply with each weight alone, as shards do.
    """
    objective, batches = KINDS[kind]
    optim = optim or OptimConfig(precision="fp32")
    compute = Compute(parallel=parallel)
    state = new_state(model_of(kind), optim, compute)
    if separate:
        separate_projections(state.model)
    if load:
        load_state(state, load)
    lines: list[dict[str, float]] = []
    train(
        state,
        Course(
            objective=objective(),
            batches=batches,
            schedule=SCHEDULE,
            steps=steps,
            logging=Logging(every=1),
            evaluation=Evaluation(judge=mean_logit, every=2),
        ),
        compute,
        Listeners(record=lambda step, metrics: lines.append({"step": step} | metrics)),
    )
    if save:
        save_state(state, save)
        if state.group.world > 1:
            dist.barrier()
    return {"lines": lines} | whole_state(state)


def whole_state(state: TrainState) -> dict[str, Any]:
    """Weights and moments as one process has them; of rank 0."""
    moments = {
        key: whole_tensor(value, state.optimizer.parameters[key.split("/", 1)[1]]).clone().numpy()
        for key, value in state.optimizer.moments().items()
        if not key.startswith("step/")
    }
    model = whole_model(state.group, state.model)
    if state.group.rank:
        return {}
    weights = {name: value.detach().clone().numpy() for name, value in model.named_parameters()}
    return {"weights": weights, "moments": moments}


def mean_logit(state: TrainState) -> dict[str, float]:
    """An evaluation in the loop, which calls the model and not its objective."""
    ids = torch.arange(32).view(2, 16)
    return {
        "mean_logit": float(
            state.group.apply(lambda model, batch: model(batch["ids"]).mean(), state.model, {"ids": ids})
        )
    }


def train_kinds(cases: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Several trainings in one group: starting a group costs more than they do."""
    return [train_kind(kind, **options) for kind, options in cases]


def train_hybrid(parallel: Parallel) -> dict[str, Any]:
    """A training in one group with the number of gradients, by group of parameters, that copies exchanged."""
    exchanged: list[int] = []
    exchange = dist.all_reduce

    def counted(tensor: torch.Tensor, *given: Any, **options: Any) -> Any:
        exchanged.append(tensor.numel())
        return exchange(tensor, *given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", counted)
        trained = train_kind("chats", parallel)
    return trained | {"exchanged": sum(count > CONFIG.d_model for count in exchanged)}


def train_pair(parallel: Parallel) -> dict[str, Any]:
    """Two updates of a policy with its value model, and what both say of the same answers before and after."""
    optim = OptimConfig(precision="fp32")
    pair = ActorCritic(model_of("language model"), model_of("reward"))
    state = new_state(pair, optim, Compute(parallel=parallel))
    state.optimizer = JointOptimizer(pair, optim)
    how: dict[str, Any] = {"pad_id": 100, "pass_tokens": 128, "precision": "fp32", "group": state.group}
    answers = rows(0, 6)
    said: list[np.ndarray] = []
    lines: list[dict[str, float]] = []
    objective = ppo_objective(clip=0.2, value_clip=0.2, value_coefficient=0.5, temperature=1.0)
    course = Course(objective=objective, batches=answer_batches, schedule=SCHEDULE, steps=STEPS)
    for step in range(3):
        for values in (row_log_probs(pair.policy, answers, **how), row_values(pair.critic, answers, **how)):
            said.append(np.concatenate(values))
        made = train_step(state, answer_batches(step), course, "cpu")
        lines.append({name: float(value) for name, value in made.items()})
    return {"said": said, "lines": lines}


def answer_batches(step: int) -> Sequence[HostBatch]:
    """Passes of an update by PPO."""
    random = np.random.default_rng([10, step])
    made = rows(step, 6)

    def drawn(mean: float) -> list[np.ndarray]:
        return [random.normal(mean, 0.1, len(row.ids)).astype(np.float32) for row in made]

    columns: dict[str, Sequence[np.ndarray]] = {
        "old_log_probs": drawn(-4.6),
        "advantages": drawn(0),
        "old_values": drawn(0),
        "returns": drawn(1),
        "value_share": [np.full(len(row.ids), 1e-3, dtype=np.float32) for row in made],
    }
    return token_batches(made, pad_id=100, reduction="mean", micro_batch=6, pass_tokens=128, per_token=columns)


PARTS = ("blocks.1", "blocks.0.attention", "embedding", "norm", "head", "blocks")


def hold(parallel: Parallel) -> list[dict[str, Any]]:
    """A model of which one part after the other is held: names that are whole meanwhile and later, and the part's values."""
    model = model_of("language model")
    group = distribute(model, Compute(parallel=parallel), "bf16")
    found = []
    for name in PARTS:
        part = model.get_submodule(name)
        with group.holding(part):
            values = {f"{name}.{key}": value.detach().clone() for key, value in part.named_parameters()}
            whole = [key for key, value in model.named_parameters() if not is_sharded(value)]
        left = [key for key, value in model.named_parameters() if not is_sharded(value)]
        found.append({"whole": whole, "left": left, "values": values})
    return found


def two_workers(cases: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """All that two workers are tried with, in one group."""
    parts = Parallel(workers=2, data="fsdp")
    return {"trained": train_kinds(cases), "pair": train_pair(parts), "held": hold(parts)}


# --- building -----------------------------------------------------------------------------------------


def build(parallel: Parallel, folder: Path | None) -> dict[str, Any]:
    """A model built sharded, from a seed or from a saved folder with its moments: the rows that were asked for,
    bytes held and at the peak, whole weights and moments.
    """
    source = SavedWeights(folder) if folder else partial(initial_rows, DEEP, 1)
    asked: list[tuple[str, int, int]] = []

    def weights(name: str, shape: Sequence[int], start: int, stop: int) -> torch.Tensor:
        asked.append((name, start, stop))
        return source(name, shape, start, stop)

    # The model of the case before may lie in cycles, and what is released meanwhile would count against this one.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        model = on_meta_device(DEEP)
        group = distribute(model, Compute(parallel=parallel), "bf16")
        fill_weights(model, weights, group)
    live = np.cumsum(allocations(seen))
    state = TrainState(model, Optimizer(model.named_parameters(), OptimConfig()), group=group)
    if folder:
        load_moments(state.optimizer, folder / "moments.safetensors", group)
    return {"asked": asked, "held": int(live[-1]), "peak": int(live.max())} | whole_state(state)


def allocations(seen: profile) -> list[int]:
    """Bytes allocated, or less than 0 where released, in the order of time; files mapped into memory are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        seen.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    changes = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    mapped = {e["args"]["Addr"] for e in changes if e["args"]["Total Reserved"]}
    return [e["args"]["Bytes"] for e in changes if e["args"]["Addr"] not in mapped]


def build_all(cases: list[tuple[Parallel, Path | None]]) -> list[dict[str, Any]]:
    return [build(*case) for case in cases]
