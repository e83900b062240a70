"""What one GPU does with this project's code, in one table: first whether it computes the same as the CPU, then how fast.

Run alone: `benchmarks/gpu.sh` (at most ten minutes), or `benchmarks/gpu.sh --device cpu --toy`, which goes through the same rows
with toy sizes on any machine, as the tests do. Rows: correctness (logits and losses against the CPU's fp32), training of the
190M, the 1B and four blocks of the 7B, SFT with rows of unequal length, generation, evaluation, the stall of a save point.
Peer: transformers' `Olmo2ForCausalLM` with the same shapes, compiled, bf16 autocast, fused AdamW. A row that does not fit into
memory says so; the others go on. MFU counts the FLOPs of RECIPE A.7 against the data sheet's peak where the device is known,
else against large matmuls measured in the same run. The last line is JSON. Nothing here has been measured on a GPU yet.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import Olmo2Config, Olmo2ForCausalLM

from infra.processor import processor_name
from model.config import Compute, ModelConfig
from model.data.chat_batches import make_row, token_batches
from model.decoding.generate import Sampling, generate
from model.decoding.prefix_scoring import tree_log_likelihoods
from model.files.weights import save_hf
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from model.training.configs import LossConfig, OptimConfig
from model.training.loop import Course, compile_model, new_state, train_step
from model.training.losses import language_model_objective
from model.training.measuring.profile import StepShape, product_flops, profile_steps
from model.training.measuring.throughput import peak_flops
from model.training.schedule import ScheduleConfig
from model.training.state_files import snapshot

TOLERANCE = 1e-3
"""Largest difference of logits, as a share of the largest logit, and of losses. GPUs may multiply fp32 in TF32."""
SECONDS = 540.0
"""No row begins later than this after the start."""


@dataclass(frozen=True)
class Shape:
    """A model to train, and the windows of a step."""

    model: ModelConfig
    rows: int
    micro_rows: int
    length: int


def shapes(toy: bool) -> dict[str, Shape]:
    """Name -> what is trained. The 7B's rows are four of its 32 blocks: the whole needs 117 GB with its optimizer."""
    if toy:
        tiny = ModelConfig(d_model=64, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=32, mlp_hidden=96, vocab_size=512,
                           max_sequence_length=128)  # fmt: skip
        return {name: Shape(tiny, 2, 1, 64) for name in ("190M", "1B", "7B, 4 blocks")}
    return {
        "190M": Shape(ModelConfig(size="190M"), 32, 16, 4096),
        "1B": Shape(ModelConfig(size="1B"), 8, 4, 4096),
        "7B, 4 blocks": Shape(ModelConfig.model_validate({"size": "7B", "n_layers": 4}), 8, 2, 4096),
    }


class Bench:
    """Runs the rows and keeps what they found."""

    def __init__(self, device: str, toy: bool):
        self.device, self.toy = device, toy
        self.compute = Compute(device=device, compile="off" if toy else "blocks")
        self.optim = OptimConfig(precision="bf16")
        self.found: dict[str, dict[str, Any]] = {}
        self._began = time.monotonic()

    def row(self, name: str, run: Callable[[], dict[str, Any]]) -> None:
        """Run one row; out of memory and out of time are told in its place."""
        if time.monotonic() - self._began > SECONDS:
            self.found[name] = {"left out": f"{SECONDS:.0f} s have passed"}
            return
        try:
            self.found[name] = run()
        except torch.OutOfMemoryError:
            self.found[name] = {"left out": "does not fit into the device's memory"}
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def timed(self, run: Callable[[], Any], repeats: int = 3) -> float:
        """Least seconds of some runs, after one that is not counted."""
        run()
        best = float("inf")
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            best = min(best, time.perf_counter() - start)
        return best

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device.startswith("cuda") else 0

    # -- rows ---------------------------------------------------------------------------------------------

    def correctness(self) -> dict[str, Any]:
        """The same weights and windows in fp32: logits against transformers' on this device and the CPU's, then the
        losses of five updates here and on the CPU.
        """
        config = shapes(toy=True)["190M"].model
        ids = torch.randint(0, config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(1))
        model = Transformer(config, seed=3)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            save_hf(model, config, None, Path(folder))
            peer: Any = Olmo2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
            peer = peer.to(self.device).eval()
            expected = model(ids)
            here = model.to(self.device)(ids.to(self.device)).cpu()
            theirs = peer(input_ids=ids.to(self.device)).logits.cpu()
        largest = float(expected.abs().max())
        losses = []
        for device in (self.device, "cpu"):
            state = new_state(Transformer(config, seed=3), OptimConfig(), Compute(device=device))
            losses.append([self._update(state, ids, device) for _ in range(5)])
        found = {
            "logits, CPU": float((here - expected).abs().max()) / largest,
            "logits, transformers": float((here - theirs).abs().max()) / largest,
            "losses": max(abs(a - b) for a, b in zip(*losses, strict=True)),
        }
        return found | {"passed": max(found.values()) < TOLERANCE}

    def _update(self, state: Any, ids: torch.Tensor, device: str) -> float:
        batches = [{"ids": ids, "labels": ids.roll(-1, dims=1)}]
        schedule = ScheduleConfig(learning_rate=1e-3, unit="steps", warmup=0, length=0, kind="constant")
        course = Course(language_model_objective(LossConfig()), lambda _: batches, schedule, 10)
        return float(train_step(state, batches, course, device)["loss"])

    def training(self, shape: Shape) -> dict[str, Any]:
        step = StepShape(shape.rows, shape.length, shape.micro_rows)
        found = profile_steps(shape.model, self.optim, LossConfig(), step, compute=self.compute)
        peak = peak_flops(self.device) or found.product_flops
        return {
            "tokens/s": found.tokens_per_second,
            "MFU": found.flops / found.seconds / peak,
            "of matmuls": found.of_roofline,
            "memory": self.peak_bytes(),
        }

    def peer_training(self, shape: Shape) -> dict[str, Any]:
        """transformers with the same shapes and windows."""
        model = shape.model
        peer: Any = Olmo2ForCausalLM(
            Olmo2Config(
                vocab_size=model.vocab_size, hidden_size=model.d_model, intermediate_size=model.mlp_hidden,
                num_hidden_layers=model.n_layers, num_attention_heads=model.n_heads,
                num_key_value_heads=model.n_kv_heads, max_position_embeddings=model.max_sequence_length, use_cache=False,
                pad_token_id=0, eos_token_id=0,
            )
        )  # fmt: skip
        peer = peer.to(self.device).train()
        if not self.toy:
            peer.compile()
        on_gpu = self.device.startswith("cuda")
        optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, fused=on_gpu)
        ids = torch.randint(0, model.vocab_size, (shape.rows, shape.length), device=self.device)

        def step() -> None:
            for part in ids.split(shape.micro_rows):
                with torch.autocast(self.device.split(":")[0], torch.bfloat16):
                    loss = peer(input_ids=part, labels=part).loss
                loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return {"tokens/s": ids.numel() / self.timed(step), "memory": self.peak_bytes()}

    def sft(self, shape: Shape) -> dict[str, Any]:
        """One update on chats of unequal length."""
        random = np.random.default_rng(0)
        lengths = random.integers(shape.length // 8, shape.length // 2, size=4 * shape.rows)
        rows = [
            make_row(random.integers(0, shape.model.vocab_size, n).astype(np.uint32), np.arange(n) >= n // 2)
            for n in lengths.tolist()
        ]
        state = new_state(Transformer(shape.model), self.optim, self.compute)
        if self.compute.compile == "blocks":
            compile_model(state.model)
        batches = token_batches(
            rows, pad_id=0, reduction="mean", micro_batch=len(rows), pass_tokens=shape.micro_rows * shape.length
        )
        schedule = ScheduleConfig(learning_rate=1e-5, unit="steps", warmup=0, length=0, kind="constant")
        course = Course(language_model_objective(LossConfig()), lambda _: batches, schedule, 10)
        seconds = self.timed(lambda: float(train_step(state, batches, course, self.device)["loss"]))
        return {"tokens/s": int(lengths.sum()) / seconds, "memory": self.peak_bytes()}

    def generation(self, shape: Shape, rows: int) -> dict[str, Any]:
        """Greedy answers that never end early."""
        tokenizer = Tokenizer(shape.model.vocab_size - 22) if self.toy else Tokenizer(100_256)
        config = shape.model.model_copy(update={"vocab_size": tokenizer.padded_vocab_size})
        model = Transformer(config, seed=0).to(self.device)
        with torch.no_grad():
            model.get_parameter("head.weight")[tokenizer.eos_id] = 0.0
        new = 16 if self.toy else 256
        random = np.random.default_rng(0)
        prompts = [random.integers(0, tokenizer.ranks, size=32).tolist() for _ in range(rows)]

        def answer() -> None:
            with torch.autocast(self.device.split(":")[0], torch.bfloat16):
                generate(model, tokenizer, prompts, Sampling(new), batch_size=rows)

        weights = sum(parameter.numel() for parameter in model.parameters()) * 2
        seconds = self.timed(answer)
        return {
            "tokens/s": rows * new / seconds,
            "weights read/s": weights * new / seconds,
            "memory": self.peak_bytes(),
        }

    def evaluation(self, shape: Shape) -> dict[str, Any]:
        """Requests of four choices that share their questions and shots."""
        random = np.random.default_rng(0)
        questions, shots = (8, 32) if self.toy else (256, 700)
        shared = random.integers(0, shape.model.vocab_size, shots).tolist()
        sequences = []
        for _ in range(questions):
            question = random.integers(0, shape.model.vocab_size, 16 if self.toy else 60).tolist()
            sequences += [
                (shared + question + random.integers(0, shape.model.vocab_size, 4).tolist(), 4) for _ in range(4)
            ]
        model = Transformer(shape.model).to(self.device).eval()

        def score() -> None:
            with torch.autocast(self.device.split(":")[0], torch.bfloat16):
                tree_log_likelihoods(model, sequences, batch_tokens=65_536)

        return {"requests/s": len(sequences) / self.timed(score), "memory": self.peak_bytes()}

    def save_point(self, shape: Shape) -> dict[str, Any]:
        """How long a training stands still for a save point: the copy of its state to the host."""
        state = new_state(Transformer(shape.model), self.optim, self.compute)
        first = snapshot(state)
        seconds = self.timed(lambda: snapshot(state, first))
        held = sum(value.nbytes for value in state.model.parameters())
        return {"stall s": seconds, "bytes/s": held / seconds}


def cell(name: str, value: Any) -> str:
    """A figure for people."""
    if isinstance(value, bool | str):
        return str(value)
    if name in ("MFU", "of matmuls"):
        return f"{value:.1%}"
    if name == "memory":
        return f"{value / 1e9:.1f} GB" if value else "-"
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="toy sizes, for a run through on any machine")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu --toy goes through the same rows")
    bench, every = Bench(options.device, options.toy), shapes(options.toy)
    bench.row("correctness", bench.correctness)
    if not bench.found["correctness"]["passed"]:
        raise SystemExit(f"not the CPU's results, so no speed is measured: {bench.found['correctness']}")
    bench.row("matmuls", lambda: {"FLOP/s": product_flops(options.device, "bf16")})
    for name, shape in every.items():
        bench.row(f"train {name}", lambda shape=shape: bench.training(shape))
        bench.row(f"train {name}, transformers", lambda shape=shape: bench.peer_training(shape))
    middle = every["1B"]
    bench.row("SFT 1B", lambda: bench.sft(middle))
    for rows in (1, 32):
        bench.row(f"generate 1B, batch {rows}", lambda rows=rows: bench.generation(middle, rows))
    bench.row("evaluate 1B", lambda: bench.evaluation(middle))
    bench.row("save point 1B", lambda: bench.save_point(middle))
    on_gpu = options.device.startswith("cuda")
    where = torch.cuda.get_device_name(options.device) if on_gpu else processor_name()
    table = Table("row", "found", title=f"{where}{', toy sizes' if options.toy else ''}")
    for name, values in bench.found.items():
        table.add_row(name, "  ".join(f"{key} {cell(key, value)}" for key, value in values.items()))
    Console(width=130).print(table)
    print(json.dumps({"device": where, "toy": options.toy, "rows": bench.found}))


if __name__ == "__main__":
    main()
