"""Save points: how long one stalls the training, and how near saving and loading come to the disk's own speed.

Run alone: `python benchmarks/checkpoint.py [--size 60M] [--rounds 3] [--store FOLDER]`. A real training loop with the
save points of `tasks.training.fitting.save_points` in a local store. Stall: how long a save keeps the loop, against the median
step; in the background, and writing in the loop. Throughput: a save from the copy on the host until it is on the disk,
hashed, and the older one removed; a load from the disk into the model with its hashes checked; against the same bytes
written with fsync and read again by plain Python in the same round, so that a busy disk slows both. All reading begins
with pages dropped, and all that is timed with memory that was in use a moment ago (`touch_memory`). The peer is
`torch.distributed.checkpoint` on the same state. The last line is one JSON object: `stall_steps` (below 1),
`window_longer_by_steps` (with the writing during the steps that follow), `save_share` and `load_share` of the disk (0.5
and more where the processor has time for them: see `processor_seconds_per_gb`), `save_ratio` and `load_ratio` to the peer.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.storage.store import Store
from infra.workspace import Workspace
from model.config import Compute, ModelConfig
from model.data.labels import next_token_labels
from model.network.transformer import Transformer
from model.parallel.work_split import HostBatch
from model.training.configs import LossConfig, OptimConfig
from model.training.loop import Course, Listeners, TrainState, new_state, train
from model.training.losses import language_model_objective
from model.training.schedule import ScheduleConfig
from model.training.state_files import STATE_BYTES
from tasks.training.fitting.save_points import Journal, SavePoints, resume

SIZES: dict[str, dict[str, int]] = {
    "11M": {"d": 256, "layers": 8, "vocab": 8192, "batch": 2, "seq": 128},
    "60M": {"d": 512, "layers": 12, "vocab": 16384, "batch": 1, "seq": 128},
    "150M": {"d": 768, "layers": 12, "vocab": 50304, "batch": 1, "seq": 128},
}
WINDOW = 4
"""Steps of a stretch that is timed with or without a save."""
CHUNK = 16 << 20
"""Bytes that plain reading and writing move at a time."""
SCHEDULE = ScheduleConfig(kind="constant", unit="steps", warmup=0, length=0, learning_rate=3e-4)
OPTIM = OptimConfig(precision="bf16")


def make_state(size: dict[str, int]) -> TrainState:
    config = ModelConfig(
        d_model=size["d"], n_layers=size["layers"], n_heads=8, n_kv_heads=8, head_dim=size["d"] // 8,
        mlp_hidden=3 * size["d"], vocab_size=size["vocab"], max_sequence_length=size["seq"],
    )  # fmt: skip
    return new_state(Transformer(config, seed=0), OPTIM, Compute())


def make_workspace(store: Path) -> Workspace:
    return Workspace(
        Store(str(store)), stage="bench", id="0", payload="bench/0/g0001", progress_folder="_progress/bench/0"
    )


def stalls(state: TrainState, size: dict[str, int], ws: Workspace, rounds: int, asynchronous: bool) -> dict[str, float]:
    """Seconds of a step, of the call that saves, and by how much a window of steps with a save is longer than one without.

    Windows with and without a save take turns. The first save, which makes the memory of the host copy, is told apart.
    """
    ids = np.random.default_rng(0).integers(0, size["vocab"], (size["batch"], size["seq"]), dtype=np.int64)
    batch: list[HostBatch] = [{"ids": ids, "labels": next_token_labels(ids)}]
    began: dict[int, float] = {}
    saves: list[float] = []
    first = state.step
    with SavePoints(ws, Journal(), 2 * WINDOW) as points:

        def batches(step: int) -> list[HostBatch]:
            began[step - first] = time.perf_counter()
            return batch

        def save(state: TrainState) -> None:
            if (state.step - first) % (2 * WINDOW):
                return
            start = time.perf_counter()
            points.save(state)
            if not asynchronous:
                points.check(wait=True)
            saves.append(time.perf_counter() - start)

        train(
            state,
            Course(
                objective=language_model_objective(LossConfig()),
                batches=batches,
                schedule=SCHEDULE,
                steps=first + 2 * WINDOW * (rounds + 1) + WINDOW,
            ),
            Compute(),
            Listeners(checkpoint=save, checkpoint_every=WINDOW),
        )
    # A save after n updates falls between the beginnings of steps n - 1 and n.
    windows = {at: began[at + WINDOW - 1] - began[at - 1] for at in range(2 * WINDOW, len(began) - WINDOW, WINDOW)}
    saving = [seconds for at, seconds in windows.items() if at % (2 * WINDOW) == 0]
    plain = [seconds for at, seconds in windows.items() if at % (2 * WINDOW)]
    return {
        "step": float(np.median(np.diff(list(began.values())))),
        "call": statistics.median(saves[1:]),
        "first_call": saves[0],
        "longer": statistics.median(saving[1:]) - statistics.median(plain),
    }


def write_plainly(path: Path, data: bytes, total: int) -> None:
    """So many bytes until they are on the disk."""
    with path.open("wb") as file:
        for at in range(0, total, CHUNK):
            file.write(data[: min(CHUNK, total - at)])
        file.flush()
        os.fsync(file.fileno())


def read_plainly(path: Path) -> None:
    """A file, chunk by chunk into the same memory."""
    buffer = bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def forget(paths: list[Path]) -> None:
    """Drop files from memory, so that reading them reads the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def touch_memory(size: int, folder: Path) -> None:
    """Use so many bytes of memory, and of the file system's pages, and free them; nothing gets to the disk.

    A virtual machine may give memory back to its host, seconds after it was freed, and pays ten times the price of writing
    a page when it takes one again; whoever comes first after a pause would pay for all.
    """
    np.ones(size, dtype=np.uint8).tofile(folder / "touched")
    (folder / "touched").unlink()


def timed(action: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and processor seconds of all threads, which other work on the machine does not change."""
    start, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - start, time.process_time() - processor


def peer_tensors(state: TrainState) -> dict[str, Any]:
    return {f"weights/{name}": value.detach() for name, value in state.model.named_parameters()} | (
        state.optimizer.moments()
    )


def peer_save(state: TrainState, folder: Path) -> None:
    """`torch.distributed.checkpoint.save` until its files are on the disk."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(peer_tensors(state), storage_writer=FileSystemWriter(folder, sync_files=True))


def peer_load(state: TrainState, folder: Path) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    load(peer_tensors(state), storage_reader=FileSystemReader(folder))


def throughput(state: TrainState, size: dict[str, int], store: Path, rounds: int) -> dict[str, Any]:
    """Medians over rounds of MB/s and of processor seconds per GB: the disk, ours and the peer's, in turns."""
    total = STATE_BYTES * sum(p.numel() for p in state.model.parameters())
    data, fresh = os.urandom(CHUNK), make_state(size)
    found: dict[str, list[tuple[float, float]]] = {}
    line: dict[str, tuple[float, float]] = {}

    def measure(name: str, action: Callable[[], Any]) -> None:
        touch_memory(total, store)
        line[name] = timed(action)

    for number in range(rounds + 1):
        ws, plain, peer = make_workspace(store / f"round-{number}"), store / "plain", store / "peer"
        measure("disk_write", lambda plain=plain: write_plainly(plain, data, total))
        forget([plain])
        measure("disk_read", lambda plain=plain: read_plainly(plain))
        with SavePoints(ws, Journal(), 1) as points:
            points.save(state)  # makes the memory that later saves use again
            points.check(wait=True)
            state.step += 1
            measure("save", lambda points=points: (points.save(state), points.check(wait=True)))
        forget([path for path in (store / f"round-{number}").rglob("*") if path.is_file()])
        measure("load", lambda ws=ws: resume(ws, fresh))
        measure("peer_save", lambda peer=peer: peer_save(state, peer))
        forget([path for path in peer.iterdir() if path.is_file()])
        measure("peer_load", lambda peer=peer: peer_load(fresh, peer))
        if number:  # the first round warms imports and memory
            for name, value in line.items():
                found.setdefault(name, []).append(value)
        print(
            {name: f"{total / wall / 1e6:,.0f} MB/s" for name, (wall, _) in line.items()}, file=sys.stderr, flush=True
        )
        shutil.rmtree(store / f"round-{number}")
        shutil.rmtree(peer)
        plain.unlink()
    return {
        "megabytes": round(total / 1e6),
        "mb_per_second": {
            name: round(total / statistics.median(wall for wall, _ in values) / 1e6) for name, values in found.items()
        },
        "processor_seconds_per_gb": {
            name: round(statistics.median(processor for _, processor in values) / total * 1e9, 2)
            for name, values in found.items()
        },
    }


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="60M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", help="folder on the disk to measure; a temporary one by default")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds {options.rounds} leaves nothing after the one that warms up; use 2 or more")
    torch.set_num_threads(1)
    size = SIZES[options.size]
    with tempfile.TemporaryDirectory(dir=options.store) as folder:
        state = make_state(size)
        beside = stalls(state, size, make_workspace(Path(folder) / "stalls"), options.rounds, asynchronous=True)
        inside = stalls(state, size, make_workspace(Path(folder) / "inside"), options.rounds, asynchronous=False)
        speeds = throughput(state, size, Path(folder), options.rounds)
    rates = speeds["mb_per_second"]
    result = speeds | {
        "size": options.size,
        "step_seconds": round(beside["step"], 3),
        "stall_seconds": round(beside["call"], 3),
        "stall_steps": round(beside["call"] / beside["step"], 3),
        "window_longer_by_steps": round(beside["longer"] / beside["step"], 3),
        "first_stall_steps": round(beside["first_call"] / beside["step"], 3),
        "stall_steps_in_the_loop": round(inside["call"] / inside["step"], 3),
        "save_share": round(rates["save"] / rates["disk_write"], 2),
        "load_share": round(rates["load"] / rates["disk_read"], 2),
        "save_ratio": round(rates["save"] / rates["peer_save"], 2),
        "load_ratio": round(rates["load"] / rates["peer_load"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
