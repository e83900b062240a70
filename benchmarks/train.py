"""Training speed on this machine's CPU against transformers and OLMo-core, and against the processor's own
matmul speed.

Run alone: `python benchmarks/train.py`, on an otherwise idle machine. Contestants are ours, as `model.training.loop.train`
runs it in bf16 (with the kernels of this package, and with torch.compile), and transformers' `Olmo2ForCausalLM` and
OLMo-core 3.0.0 (from `.venv-olmo-core`, made when missing), each eager and compiled, in fp32 and in bf16 autocast: the same
shapes, batch, threads, fused AdamW, clipping and settings of malloc (`model/training/allocator.py`), one process each. For
each of two models every contestant first runs alone, which gives its peak memory. Then the fastest configuration of ours
and of each peer and a large bf16 matmul take turns for some rounds, so that whatever else the machine does meets all of
them; compilation and the first steps are never timed, and a contestant's speed is that of its quickest step. The last line
is one JSON object: `ratio` is ours over the faster peer, the lower of both models; `gemm_share` our causal FLOPs per second
over the matmul's, the lower; `memory_ratio` the peak memory of our finalist over that of the leanest configuration of either
peer, the higher. The ratios by median step and by CPU time stand next to the first, to show whether the machine was idle.
`olmo2 profile` tells a step's time by part.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "11M": {"d": 256, "layers": 8, "heads": 4, "mlp": 768, "vocab": 8192, "batch": 8, "seq": 512},
    "60M": {"d": 384, "layers": 8, "heads": 8, "mlp": 1536, "vocab": 100_352, "batch": 4, "seq": 512},
    "toy": {"d": 128, "layers": 4, "heads": 4, "mlp": 512, "vocab": 640, "batch": 16, "seq": 128},
}
MODELS = ("11M", "60M")
PEERS = [
    f"{who}:{mode}:{kind}"
    for who in ("transformers", "olmo-core")
    for mode in ("compiled", "eager")
    for kind in ("bf16", "fp32")
]
OURS, PRODUCT = ("ours:kernels:bf16", "ours:compiled:bf16"), "product"
ROOT = Path(__file__).resolve().parents[1]


def ours(size: dict[str, int], compiled: bool, bf16: bool) -> Callable[[], float]:
    """One call is one step of our loop."""
    from model.config import Compute, ModelConfig
    from model.data.labels import next_token_labels
    from model.network.transformer import Transformer
    from model.training.configs import LossConfig, OptimConfig
    from model.training.loop import Course, Listeners, new_state, train
    from model.training.losses import language_model_objective
    from model.training.schedule import ScheduleConfig

    config = ModelConfig(
        d_model=size["d"], n_layers=size["layers"], n_heads=size["heads"], n_kv_heads=size["heads"],
        head_dim=size["d"] // size["heads"], mlp_hidden=size["mlp"], vocab_size=size["vocab"],
        max_sequence_length=size["seq"],
    )  # fmt: skip
    ids = token_ids(size)
    batch = [{"ids": ids, "labels": next_token_labels(ids)}]
    optim = OptimConfig(precision="bf16" if bf16 else "fp32")
    schedule = ScheduleConfig(kind="constant", unit="steps", warmup=0, length=0, learning_rate=3e-4)
    compute = Compute(compile="blocks" if compiled else "off")
    state = new_state(Transformer(config, seed=0), optim, compute)
    objective = language_model_objective(LossConfig())

    def step() -> float:
        losses: list[float] = []
        train(
            state,
            Course(objective=objective, batches=lambda _: batch, schedule=schedule, steps=state.step + 1),
            compute,
            Listeners(log=lambda _, metrics: losses.append(metrics["loss"])),
        )
        return losses[0]

    return step


def token_ids(size: dict[str, int]) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, size["vocab"], (size["batch"], size["seq"]), dtype=np.int64)


def peer_step(model: Any, loss_of: Callable[[Any], Any], bf16: bool) -> Callable[[], float]:
    """A plain training step around a peer's model."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def transformers_peer(size: dict[str, int], compiled: bool, bf16: bool) -> Callable[[], float]:
    import torch
    from transformers import Olmo2Config, Olmo2ForCausalLM

    model = Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=size["vocab"], hidden_size=size["d"], intermediate_size=size["mlp"],
            num_hidden_layers=size["layers"], num_attention_heads=size["heads"], num_key_value_heads=size["heads"],
            max_position_embeddings=size["seq"], rms_norm_eps=1e-6, use_cache=False, pad_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        )
    ).train()  # fmt: skip
    ids = torch.from_numpy(token_ids(size))
    if compiled:
        model.compile()
    return peer_step(model, lambda m: m(input_ids=ids, labels=ids).loss, bf16)


def core_peer(size: dict[str, int], compiled: bool, bf16: bool) -> Callable[[], float]:
    import torch
    from olmo_core.nn.feed_forward import FeedForwardConfig
    from olmo_core.nn.layer_norm import LayerNormType
    from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig

    model = TransformerConfig.llama_like(
        d_model=size["d"], vocab_size=size["vocab"], n_layers=size["layers"], n_heads=size["heads"], qk_norm=True,
        layer_norm_eps=1e-6, rope_theta=500_000, block_name=TransformerBlockType.reordered_norm,
        layer_norm_name=LayerNormType.rms, feed_forward=FeedForwardConfig(hidden_size=size["mlp"], bias=False),
    ).build()  # fmt: skip
    model.init_weights(max_seq_len=size["seq"])
    ids = torch.from_numpy(token_ids(size))
    labels = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)
    if compiled:
        model.apply_compile()
    return peer_step(model, lambda m: m(ids, labels=labels, z_loss_multiplier=1e-5).loss, bf16)


def product(_: dict[str, int], compiled: bool, bf16: bool) -> Callable[[], float]:
    """One call measures the GFLOP/s of the quickest of three large bf16 matmuls."""
    import torch

    pairs = [
        (torch.randn(rows, inner).bfloat16(), torch.randn(inner, columns).bfloat16())
        for rows, inner, columns in ((2048, 2048, 2048), (4096, 1024, 1024), (4096, 256, 1536))
    ]

    def best() -> float:
        found = 0.0
        for a, b in pairs * 8:
            start = time.perf_counter()
            torch.mm(a, b)
            found = max(found, 2 * a.shape[0] * a.shape[1] * b.shape[1] / (time.perf_counter() - start) / 1e9)
        return found

    return best


def serve(name: str, size: str, threads: int) -> None:
    """Be one contestant: after two untimed steps, run as many as each line of the input says and answer with a line of
    seconds, what the last step returned, and the peak memory so far.
    """
    import torch

    from model.training.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    who, mode, kind = name.split(":") if ":" in name else (name, "eager", "bf16")
    build = {"ours": ours, "transformers": transformers_peer, "olmo-core": core_peer, PRODUCT: product}[who]
    step = build(SIZES[size], mode == "compiled", kind == "bf16")
    first = step()
    step()
    print(json.dumps({"first": first}), flush=True)
    for line in sys.stdin:
        wall, processor, value = [], [], first
        for _ in range(int(line)):
            start, start_processor = time.perf_counter(), time.process_time()
            value = step()
            wall.append(time.perf_counter() - start)
            processor.append(time.process_time() - start_processor)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"wall": wall, "processor": processor, "value": value, "peak_mb": peak}), flush=True)


class Contestant:
    """A process that runs steps of one contestant when it is told to, and waits meanwhile."""

    def __init__(self, name: str, size: str, python: str, threads: int) -> None:
        self.name, self.tokens = name, SIZES[size]["batch"] * SIZES[size]["seq"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        command = [python, __file__, "--serve", name, "--size", size, "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.values = [self._answer()["first"]]
        self.peak_mb = 0.0

    def run(self, steps: int) -> None:
        """Run and time some steps."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        answer = self._answer()
        self.wall += answer["wall"]
        self.processor += answer["processor"]
        self.values.append(answer["value"])
        self.peak_mb = answer["peak_mb"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with exit code {self.process.wait()}; its own message is above")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def figures(self) -> dict[str, Any]:
        """Speeds, memory and losses so far."""
        return {
            "name": self.name, "tokens_per_second": round(self.tokens / min(self.wall)),
            "median_tokens_per_second": round(self.tokens / sorted(self.wall)[len(self.wall) // 2]),
            "tokens_per_cpu_second": round(self.tokens / min(self.processor)), "peak_mb": round(self.peak_mb),
            "first_loss": round(self.values[0], 4), "last_loss": round(self.values[-1], 4), "steps": len(self.wall) + 2,
        }  # fmt: skip


def causal_flops(size: dict[str, int]) -> int:
    """Training FLOPs per token: 6 per weight of a matmul, attention with the causal half only."""
    block = 4 * size["d"] ** 2 + 3 * size["d"] * size["mlp"]
    return 6 * (size["layers"] * block + size["vocab"] * size["d"]) + 6 * size["layers"] * size["d"] * size["seq"]


def core_python() -> str:
    """Python of the environment with OLMo-core that `make parity` uses; made when missing."""
    python = ROOT / ".venv-olmo-core/bin/python"
    if not python.exists():
        command = ["make", f"PYTHON={sys.executable}", ".venv-olmo-core/installed"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    return str(python)


def alone(names: Sequence[str], size: str, core: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every contestant by itself: what it needs and about how fast it is."""
    rows = {}
    for name in names:
        contestant = Contestant(name, size, core if name.startswith("olmo-core") else sys.executable, options.threads)
        contestant.run(options.steps)
        contestant.close()
        rows[name] = contestant.figures()
        show(size, rows[name])
    return rows


def in_turns(names: Sequence[str], size: str, core: str, options: argparse.Namespace) -> dict[str, Contestant]:
    """The named contestants and the matmul, alive together, a step each per turn."""
    contestants = {
        name: Contestant(name, size, core if name.startswith("olmo-core") else sys.executable, options.threads)
        for name in (*names, PRODUCT)
    }
    for _ in range(options.rounds):
        for contestant in contestants.values():
            contestant.run(1)
    for contestant in contestants.values():
        contestant.close()
    return contestants


def compete(size: str, core: str, options: argparse.Namespace) -> dict[str, Any]:
    """All contestants on one model."""
    rows = alone([*OURS, *PEERS], size, core, options)
    mine, *finalists = (
        max((name for name in rows if name.startswith(who)), key=lambda name: rows[name]["tokens_per_second"])
        for who in ("ours", "transformers", "olmo-core")
    )
    last = in_turns([mine, *finalists], size, core, options)
    print(f"{size}: in turns, {options.rounds} rounds")
    final = {name: last[name].figures() for name in (mine, *finalists)}
    for row in final.values():
        show(size, row)
    limit = max(last[PRODUCT].values)
    speed = final[mine]["tokens_per_second"]
    fastest = max(finalists, key=lambda name: final[name]["tokens_per_second"])
    other_clocks = {
        f"ratio_by_{clock}": round(final[mine][clock] / max(final[name][clock] for name in finalists), 3)
        for clock in ("median_tokens_per_second", "tokens_per_cpu_second")
    }
    leanest = min(PEERS, key=lambda name: rows[name]["peak_mb"])
    result = {
        "ratio": round(speed / final[fastest]["tokens_per_second"], 3),
        **other_clocks,
        "ours": mine,
        "fastest_peer": fastest,
        "gemm_share": round(causal_flops(SIZES[size]) * speed / 1e9 / limit, 3),
        "gemm_gflops": round(limit),
        "memory_ratio": round(rows[mine]["peak_mb"] / rows[leanest]["peak_mb"], 3),
        "leanest_peer": leanest,
        "tokens_per_second": {name: row["tokens_per_second"] for name, row in final.items()},
    }
    print(f"{size}: {result}", flush=True)
    return result


def show(size: str, row: dict[str, Any]) -> None:
    print(
        f"{size} {row['name']:<28} {row['tokens_per_second']:>7,} tokens/s (median {row['median_tokens_per_second']:,}; "
        f"{row['tokens_per_cpu_second']:,} per CPU second)  peak {row['peak_mb']:,} MB  "
        f"loss {row['first_loss']} -> {row['last_loss']} in {row['steps']} steps",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, help="one model only")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of every contestant")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each contestant alone")
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of each in turns")
    parser.add_argument("--core-python", help="Python of an environment with OLMo-core, instead of .venv-olmo-core")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.size, options.threads)
        return
    core = options.core_python or core_python()
    models = {size: compete(size, core, options) for size in ([options.size] if options.size else MODELS)}
    worst = {"ratio": min, "gemm_share": min, "memory_ratio": max}
    print(json.dumps({key: pick(m[key] for m in models.values()) for key, pick in worst.items()} | {"models": models}))


if __name__ == "__main__":
    main()
