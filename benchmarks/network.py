"""Step time of sharded trainings as `olmo2 scale` simulates it, against groups of gloo processes on this machine.

Run alone: `python benchmarks/network.py [--groups 2,4,8] [--steps 9]`. Each group of n processes, of one thread each, measures
three things, each while all of its processes are at work, since they share the machine's cores:

* all-gathers and reduce-scatters of 64 KiB to 8 MiB, with the copies that belong to them. A line through their times is latency
  and bandwidth (alpha-beta model);
* a step of the unsharded model on the rows of one process, without any communication;
* a step of the same model sharded over the group (fsdp), which is what is simulated.

The simulation is `flows/inspection/costs/scaling.py` with that latency, bandwidth and speed. On CPUs nothing hides communication.
The last line is one JSON object: of each group the latency in seconds, bytes per second, and simulated over measured step time.
Times are medians of the slowest process, so other programs disturb them little.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from flows.config.sizes.training_runs import Run
from flows.inspection.costs.cost import Device
from flows.inspection.costs.scaling import Fabric, scale
from infra.processor import processor_name
from model.config import Compute, ModelConfig, Parallel
from model.network.transformer import Transformer
from model.training.allocator import keep_freed_memory
from model.training.configs import LossConfig, OptimConfig
from model.training.loop import Course, new_state, train_step
from model.training.losses import language_model_objective
from model.training.schedule import ScheduleConfig

MODEL = ModelConfig(
    d_model=512,
    n_layers=6,
    n_heads=8,
    n_kv_heads=8,
    head_dim=64,
    mlp_hidden=1536,
    vocab_size=4096,
    max_sequence_length=128,
)
ROWS, LENGTH = 2, 128
"""Windows of a process and update, and their tokens."""
SIZES = tuple(2**power for power in range(16, 24))
"""Bytes of the whole tensors that are exchanged."""
KINDS = ("gather", "scatter")
SCHEDULE = ScheduleConfig(kind="constant", unit="steps", warmup=0, length=0, learning_rate=1e-4)


class Measured(NamedTuple):
    """What a group has measured, in seconds."""

    exchanges: dict[tuple[str, int], float]
    alone: float
    sharded: float


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """The median over repeats of the slowest process's time. All processes begin together."""
    # The first call allocates and connects.
    call()
    times = torch.zeros(repeats, dtype=torch.float64)
    for at in range(repeats):
        dist.barrier()
        began = time.perf_counter()
        call()
        times[at] = time.perf_counter() - began
    dist.all_reduce(times, dist.ReduceOp.MAX)
    return statistics.median(times.tolist())


def exchange(kind: str, size: int, world: int) -> Callable[[], Any]:
    """One exchange, with the copy between its buffer and the tensors of the model, as `fully_shard` makes it."""
    whole, buffer, part = torch.ones(size // 4), torch.ones(size // 4), torch.ones(size // 4 // world)

    def gather() -> None:
        dist.all_gather_single(buffer, part)
        whole.copy_(buffer)

    def scatter() -> None:
        buffer.copy_(whole)
        dist.reduce_scatter_single(part, buffer)

    return gather if kind == "gather" else scatter


def training(compute: Compute, instances: int) -> Callable[[], Any]:
    """One call is one update on so many windows of the whole group."""
    state = new_state(Transformer(MODEL, seed=0), OptimConfig(precision="fp32"), compute)
    ids = np.random.default_rng(0).integers(0, MODEL.vocab_size, (instances, LENGTH)).astype(np.uint32)
    # What the loss of all windows is divided by, since a worker sees its own only.
    batch = [{"ids": ids, "labels": ids.astype(np.int64), "divisor": np.asarray(np.float32(ids.size))}]
    course = Course(language_model_objective(LossConfig()), lambda _: batch, SCHEDULE, 10_000)
    state.model.train()
    return lambda: float(train_step(state, batch, course, "cpu")["loss"])


def measure(rank: int, world: int, folder: str, steps: int) -> None:
    """One process of a group; the first writes down what all have measured."""
    torch.set_num_threads(1)
    # As in every training.
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    exchanges = {
        (kind, size): median_seconds(exchange(kind, size, world), 3 * steps) for kind in KINDS for size in SIZES
    }
    alone = median_seconds(training(Compute(threads=1), ROWS), steps)
    parallel = Parallel(workers=world, data="fsdp")
    sharded = median_seconds(training(Compute(threads=1, parallel=parallel), ROWS * world), steps)
    if rank == 0:
        torch.save(tuple(Measured(exchanges, alone, sharded)), Path(folder, "measured.pt"))
    dist.barrier()
    dist.destroy_process_group()


def fabric_of(exchanges: dict[tuple[str, int], float], world: int) -> Fabric:
    """Latency of a hop and bandwidth whose line fits the times best, by their relative errors."""
    hops = np.full(len(exchanges), world - 1.0)
    sent = np.array([size * (world - 1) / world for _, size in exchanges])
    times = np.array(list(exchanges.values()))
    # Relative errors count, or the large exchanges alone would decide.
    columns = np.stack([hops / times, sent / times], axis=1)
    (latency, per_byte), *_ = np.linalg.lstsq(columns, np.ones(len(times)), rcond=None)
    latency, bandwidth = max(0.0, float(latency)), 1 / float(per_byte)
    return Fabric(node_gpus=world, node_bandwidth=bandwidth, node_latency=latency, efficiency=1.0, hides=False)


def simulated(found: Measured, world: int, fabric: Fabric) -> float:
    """Seconds of a step of the sharded training."""
    run = Run("pretrain", 1, ROWS * world, LENGTH, ROWS * LENGTH, "fp32")
    speed = ROWS * LENGTH * MODEL.flops_per_token(LENGTH) / found.alone
    (only,) = scale(run, MODEL, [world], Device(speed, 1.0), 1.0, fabric)
    return only.step


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--groups", default="2,4,8", help="numbers of processes")
    parser.add_argument("--steps", type=int, default=9)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"processor": processor_name(), "parameters": MODEL.parameters}
    for world in map(int, arguments.groups.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(measure, (world, folder, arguments.steps), nprocs=world)
            found = Measured(*torch.load(Path(folder, "measured.pt"), weights_only=False))
        fabric = fabric_of(found.exchanges, world)
        step = simulated(found, world, fabric)
        result[f"group_of_{world}"] = {
            "latency": float(f"{fabric.node_latency:.3g}"),
            "bytes_per_second": float(f"{fabric.node_bandwidth:.3g}"),
            "alone": round(found.alone, 4),
            "measured": round(found.sharded, 4),
            "simulated": round(step, 4),
            "ratio": round(step / found.sharded, 3),
        }
        print(f"{world} processes: {result[f'group_of_{world}']}", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
