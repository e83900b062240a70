"""The loader: its rate against the trainer's, its memory over four orders of magnitude of data, and the order of 10^12 tokens.

Run alone: `python benchmarks/loader.py [--rounds 12] [--compile on]`. Rates are tokens per second of processor time, ours and
the trainer's taken in turns in one process (the 11M model of `benchmarks/train.py`, bf16). Batches are those of training:
windows of 512 tokens in computed order, labels, repetition mask. The peer is a torch DataLoader with a RandomSampler over the
same memory-mapped file, without a mask; the limit is copying the same bytes in memory. Memory is the growth of a fresh
process that reads 300 batches from token files of 10^6 to 10^10 tokens (sparse files: 40 GB of length, nothing on disk). The
last line is one JSON object: `ratio` is the loader's rate over the trainer's and should be 20 or more.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WINDOW, BATCH = 512, 8
TOKENS = 4_096_000
TRILLION = 10**12
SIZES = (10**6, 10**7, 10**8, 10**9, 10**10)
BATCHES = 300


def rate(run: Callable[[], int], seconds: float = 0.5) -> float:
    """Tokens per second of this process's processor time."""
    began, tokens = time.process_time(), 0
    while time.process_time() - began < seconds:
        tokens += run()
    return tokens / (time.process_time() - began)


def loader(path: Path, tokens: int, mask_repetitions: bool = True) -> Any:
    """Our windows over one file."""
    from model.data.batches import TokenFile, WindowedTokens

    return WindowedTokens([TokenFile(path, tokens)], WINDOW, BATCH, 6198, mask_repetitions)


def ours(path: Path, mask_repetitions: bool = True) -> Callable[[], int]:
    data, step = loader(path, TOKENS, mask_repetitions), iter(range(10**9))

    def run() -> int:
        data.batch(next(step))
        return data.batch_tokens

    return run


def torch_peer(path: Path) -> Callable[[], int]:
    """What a plain PyTorch script does."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Windows(Dataset):
        def __init__(self) -> None:
            self.ids = np.memmap(path, dtype="<u4", mode="r").reshape(-1, WINDOW)

        def __len__(self) -> int:
            return len(self.ids)

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.from_numpy(self.ids[index].astype(np.int64))

    def forever():
        while True:
            yield from DataLoader(Windows(), batch_size=BATCH, shuffle=True, drop_last=True)

    batches = forever()
    return lambda: next(batches).numel()


def copying(_: Path) -> Callable[[], int]:
    source = np.zeros((BATCH, WINDOW), dtype=np.uint32)
    return lambda: source.astype(np.int64).size


def against_trainer(path: Path, rounds: int, compiled: bool) -> dict[str, Any]:
    """Best rates of the trainer, our loader, the peer and a copy, in turns."""
    import torch
    from train import SIZES as TRAINED
    from train import ours as trainer

    torch.set_num_threads(1)
    step = trainer(TRAINED["11M"], compiled, True)
    for _ in range(2):
        step()
    size = TRAINED["11M"]
    assert (size["batch"], size["seq"]) == (BATCH, WINDOW), "the loader serves the trainer's own batches"
    contestants = {
        "loader": ours(path),
        "loader, no mask": ours(path, mask_repetitions=False),
        "torch DataLoader, no mask": torch_peer(path),
        "copy": copying(path),
    }
    best = dict.fromkeys(["trainer", *contestants], 0.0)
    for _ in range(rounds):
        began = time.process_time()
        step()
        best["trainer"] = max(best["trainer"], BATCH * WINDOW / (time.process_time() - began))
        for name, run in contestants.items():
            best[name] = max(best[name], rate(run))
    return {name: round(value) for name, value in best.items()}


def memory_of(tokens: int, folder: Path) -> dict[str, float]:
    """Growth of this process's memory and the time of a batch, over a sparse file of so many tokens."""
    path = folder / f"{tokens}.npy"
    with path.open("wb") as file:
        file.truncate(4 * tokens)
    data = loader(path, tokens)
    data.batch(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    for step in range(1, BATCHES):
        data.batch(step % data.steps_per_epoch)
    used = time.process_time() - began
    path.unlink()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "peak_mb": round(before / 1024 + grown, 1),
        "grown_mb": round(grown, 2),
        "ms": round(1e3 * used / BATCHES, 2),
    }


def trillion() -> dict[str, Any]:
    """Any place of the order of 10^12 tokens and back, without the order."""
    from model.data.order import Shuffle

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    order = Shuffle(TRILLION, seed=6198, epoch=0)
    places = np.random.default_rng(0).integers(0, TRILLION, 100_000)
    began = time.process_time()
    items = order.at(places)
    used = time.process_time() - began
    assert (order.place_of(items) == places).all()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"places_per_second": round(len(places) / used), "grown_mb": round(grown, 1)}


def hidden_latency() -> dict[str, float]:
    """Share of the time that a trainer of 40 ms a step waits for a store of 30 ms an answer, without and with read-ahead."""
    from model.data.read_ahead import ReadAhead

    def slow(step: int) -> list[dict[str, Any]]:
        time.sleep(0.03)
        return [{"step": step}]

    shares = {}
    for name, ahead in (("waited_without", 0), ("waited_with", 4)):
        with ReadAhead(slow, 40, ahead=ahead) as batches:
            began = time.perf_counter()
            for step in range(40):
                batches(step)
                time.sleep(0.04)
            shares[name] = round(batches.waited_seconds / (time.perf_counter() - began), 3)
    return shares


def child(*arguments: str) -> Any:
    """The last line of this file run in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="trainer steps, each beside half a second of loading")
    parser.add_argument("--compile", choices=["on", "off"], default="on", help="the trainer's blocks")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loader-") as name:
        folder = Path(name)
        if options.part == "trillion":
            print(json.dumps(trillion()))
            return
        if options.part:
            print(json.dumps(memory_of(int(options.part), folder)))
            return
        path = folder / "tokens.npy"
        np.random.default_rng(0).integers(0, 8192, TOKENS).astype("<u4").tofile(path)
        memory = {f"{tokens:.0e}": child("--part", str(tokens)) for tokens in SIZES}
        for tokens, found in memory.items():
            print(f"{tokens} tokens: {found}", file=sys.stderr, flush=True)
        order = child("--part", "trillion")
        rates = against_trainer(path, options.rounds, options.compile == "on")
        for who, value in rates.items():
            print(f"{who}: {value:,} tokens per second of processor time", file=sys.stderr, flush=True)
        result = {
            "ratio": round(rates["loader"] / rates["trainer"], 1),
            "peer_ratio": round(rates["loader, no mask"] / rates["torch DataLoader, no mask"], 2),
            "limit_share": round(rates["loader"] / rates["copy"], 3),
            "tokens_per_second": rates,
            "memory": memory,
            "memory_spread_mb": round(
                max(m["peak_mb"] for m in memory.values()) - min(m["peak_mb"] for m in memory.values()), 1
            ),
            "order_of_1e12": order,
        }
        print(json.dumps(result | hidden_latency()))


if __name__ == "__main__":
    main()
