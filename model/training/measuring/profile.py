"""Measures where the time of a training step goes: a few real steps under torch's profiler, by part, and the speed of
matmuls here.

Source: RECIPE A.7 (FLOPs of a token). Steps are `model.training.loop.train_step` with windows of random tokens; nothing is read
and nothing is stored but a trace that https://ui.perfetto.dev opens. The clock is that of steps without the profiler, and the
profiler only says how that time is divided: it slows small operations down.

Example: `profile_steps(ModelConfig(size="30M"), OptimConfig(), LossConfig(), StepShape(4, 512), compute=Compute())`.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from model.config import Compute, ModelConfig
from model.network.matmul import product
from model.network.transformer import Transformer
from model.parallel.work_split import HostBatch
from model.training.allocator import keep_freed_memory
from model.training.attention_choice import choose_attention
from model.training.configs import LossConfig, OptimConfig
from model.training.loop import Course, TrainState, compile_model, new_state, train_step
from model.training.losses import language_model_objective
from model.training.schedule import ScheduleConfig

WARM_STEPS = 2
"""Steps before the clock starts: compiling, and memory that is taken for the first time."""
MATMULS = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_mm",
    "aten::mkldnn",
    "mkldnn::",
    "aten::dot",
)
ATTENTION = ("scaled_dot_product", "flash_attention", "efficient_attention", "BlockedAttention", "_Attend")
COPIES = ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::cat", "aten::fill_", "aten::zero_", "Memcpy", "Memset")
COMPILED = ("CompiledFxGraph", "CompiledFunction", "triton_", "cpp_fused", "Torch-Compiled")
COLLECTIVES = ("c10d::", "gloo:", "nccl:", "FSDP::")
PARTS = (
    "matmuls",
    "attention",
    "compiled kernels",
    "optimizer",
    "copies and casts",
    "collectives",
    "elementwise",
    "Python",
)
PRODUCT_SIZES = ((2048, 2048, 2048), (4096, 1024, 1024))
"""Rows, inner and columns of the matmuls that stand for the device's speed."""


@dataclass(frozen=True)
class Profile:
    """Some steps of one training."""

    seconds: float
    """A step's time, the least of those measured."""
    tokens: int
    """Tokens of a step."""
    flops: float
    """FLOPs of a step by RECIPE A.7."""
    product_flops: float
    """FLOP/s of large matmuls of the training's type on this device, measured in between."""
    shares: dict[str, float]
    """Part -> share of a step's time; `PARTS` in order, 1 in all."""
    largest: list[tuple[str, float]]
    """The operations that take most by themselves, with their share."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def of_roofline(self) -> float:
        """Share of the time of a step that its FLOPs would take at the matmuls' speed."""
        return self.flops / self.product_flops / self.seconds


class StepShape(NamedTuple):
    """A step of `rows` windows of `length` tokens, `micro_rows` at a time (0: all at once)."""

    rows: int
    length: int
    micro_rows: int = 0


def profile_steps(
    model: ModelConfig,
    optim: OptimConfig,
    loss: LossConfig,
    shape: StepShape,
    *,
    compute: Compute,
    steps: int = 3,
    trace: Path | None = None,
) -> Profile:
    """Time `steps` steps of this shape, then profile one more.

    Raises ValueError for sizes below 1 or windows longer than the model's.
    """
    rows, length, micro_rows = shape
    if min(rows, length, steps) < 1 or length > model.max_sequence_length:
        raise ValueError(
            f"rows={rows}, length={length}, steps={steps}: each has to be at least 1, and the length at most "
            f"{model.max_sequence_length}, the model's window"
        )
    if compute.threads:
        torch.set_num_threads(compute.threads)
    keep_freed_memory()
    state = new_state(Transformer(model), optim, compute)
    choose_attention(state.model, state.group, compute, optim.activations, length)
    if compute.compile == "blocks":
        compile_model(state.model)
    state.model.train()
    batches = _windows(model, rows, length, micro_rows or rows)

    def step() -> float:
        return _timed(state, loss, batches, compute.device)

    # The first steps compile and fill caches, so they are run and not counted.
    for _ in range(WARM_STEPS):
        step()
    times = [step() for _ in range(steps)]
    speed = product_flops(compute.device, optim.activations)
    found = _profiled(step, compute.device, trace)
    shares, largest = _shares(found, min(times))
    flops = float(rows * length * model.flops_per_token(length))
    # The least of several times: other programs can make a step slower, never faster.
    return Profile(min(times), rows * length, flops, speed, shares, largest)


def _windows(model: ModelConfig, rows: int, length: int, micro_rows: int) -> list[HostBatch]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.vocab_size, (rows, length), generator=generator)
    return [{"ids": part, "labels": part.roll(-1, dims=1)} for part in ids.split(micro_rows)]


def _timed(state: TrainState, loss: LossConfig, batches: Sequence[HostBatch], device: str) -> float:
    start = time.perf_counter()
    schedule = ScheduleConfig(learning_rate=1e-4, unit="steps", warmup=1, length=10_000)
    course = Course(language_model_objective(loss), lambda _: batches, schedule, 10_000)
    found = train_step(state, batches, course, device)
    # The value is on the host only when the device has done all that was asked of it.
    float(found["loss"])
    return time.perf_counter() - start


def product_flops(device: str, precision: str, repeats: int = 8) -> float:
    """FLOP/s of the quickest of some large matmuls, in the type of the training."""
    dtype, best = torch.bfloat16 if precision == "bf16" else torch.float32, 0.0
    for rows, inner, columns in PRODUCT_SIZES:
        left, right = (torch.randn(*shape, dtype=dtype, device=device) for shape in ((rows, inner), (inner, columns)))
        for _ in range(repeats):
            start = time.perf_counter()
            # One value is fetched, for which the host waits.
            float(product(left, right)[0, 0])
            best = max(best, 2.0 * rows * inner * columns / (time.perf_counter() - start))
    return best


def _profiled(step: Any, device: str, trace: Path | None) -> Any:
    activities = [ProfilerActivity.CPU]
    if torch.device(device).type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        step()
    if trace is not None:
        found.export_chrome_trace(str(trace))
    return found


def _shares(found: Any, seconds: float) -> tuple[dict[str, float], list[tuple[str, float]]]:
    """Times of operations themselves, by part, as shares; what the profiled step needed beyond them is Python and waiting."""
    events = found.events()
    on_device = any(event.self_device_time_total for event in events)
    own: dict[str, float] = defaultdict(float)
    by_name: dict[str, float] = defaultdict(float)
    for event in events:
        spent = event.self_device_time_total if on_device else event.self_cpu_time_total
        if event.name.startswith("ProfilerStep") or not spent:
            continue
        # Times of the profiler are in microseconds.
        own[part_of(event)] += spent / 1e6
        by_name[event.name] += spent / 1e6
    counted = sum(own.values())
    # Profiling makes small operations slower, so their sum may exceed the step's time without it.
    whole = max(seconds, counted)
    shares = {part: own[part] / whole for part in PARTS[:-1]}
    shares[PARTS[-1]] = 1.0 - counted / whole
    largest = sorted(((name, spent / whole) for name, spent in by_name.items()), key=lambda pair: -pair[1])
    return shares, largest[:12]


def part_of(event: Any) -> str:
    """The part that an event of the profiler belongs to: that of the optimizer, whatever is done there, else by its name."""
    # Walking up finds what was called on the optimizer's behalf, which is named like any other kernel.
    parent = event
    while parent is not None:
        if parent.name.startswith("Optimizer."):
            return "optimizer"
        parent = parent.cpu_parent
    kinds = (
        ("matmuls", MATMULS), ("attention", ATTENTION), ("compiled kernels", COMPILED), ("copies and casts", COPIES),
        ("collectives", COLLECTIVES),
    )  # fmt: skip
    return next((part for part, names in kinds if any(name in event.name for name in names)), "elementwise")
