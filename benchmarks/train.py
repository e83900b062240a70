"""Training speed on this machine's CPU against transformers and OLMo-core, and against the processor's own
product speed.

Run alone: `python benchmarks/train.py [--size 11M] [--steps 12] [--core-python PATH]`. Each contestant runs
in its own process: ours as `model.loop.train` runs it, transformers' `Olmo2ForCausalLM` and OLMo-core 3.0.0
(from an environment of its own, made when missing) eager and compiled, in fp32 and in bf16 autocast, all with
the same shapes, batch, fused AdamW and clipping. The figure is the best of the timed steps. The last line is
one JSON object: `ratio` is ours over the fastest peer, `gemm_share` is our causal FLOPs per second over that
of a large bf16 product, `memory_ratio` our peak memory over the leanest peer's.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "11M": {"d": 256, "layers": 8, "heads": 4, "mlp": 768, "vocab": 8192, "batch": 8, "seq": 512},
    "60M": {"d": 384, "layers": 8, "heads": 8, "mlp": 1536, "vocab": 100_352, "batch": 4, "seq": 512},
    "toy": {"d": 128, "layers": 4, "heads": 4, "mlp": 512, "vocab": 640, "batch": 16, "seq": 128},
}
PEERS = [
    (who, mode, kind) for who in ("transformers", "olmo-core") for mode in ("off", "on") for kind in ("fp32", "bf16")
]
OURS = [("ours", mode, kind) for mode in ("off", "on") for kind in ("fp32", "bf16")]
CORE = "ai2-olmo-core==3.0.0"


def ours(size: dict[str, int], compiled: bool, bf16: bool) -> Callable[[], float]:
    """One call is one step of our loop."""
    from model.config import Compute, ModelConfig
    from model.loop import new_state, train
    from model.losses import LossConfig, language_model_objective, next_token_labels
    from model.optim import OptimConfig
    from model.schedule import ScheduleConfig
    from model.transformer import Transformer

    config = ModelConfig(
        d_model=size["d"], n_layers=size["layers"], n_heads=size["heads"], n_kv_heads=size["heads"],
        head_dim=size["d"] // size["heads"], mlp_hidden=size["mlp"], vocab_size=size["vocab"],
        max_sequence_length=size["seq"],
    )  # fmt: skip
    ids = token_ids(size)
    batch = [{"ids": ids, "labels": next_token_labels(ids)}]
    optim = OptimConfig(precision="bf16" if bf16 else "fp32")
    schedule = ScheduleConfig(kind="constant", unit="steps", warmup=0, length=0, peak_lr=3e-4)
    compute = Compute(compile="blocks" if compiled else "off")
    state = new_state(Transformer(config, seed=0), optim, compute)
    objective = language_model_objective(LossConfig())

    def step() -> float:
        losses: list[float] = []
        train(
            state.model, objective, lambda _: batch, optim=optim, schedule=schedule, steps=state.step + 1, compute=compute,
            state=state, log=lambda _, metrics: losses.append(metrics["loss"]),
        )  # fmt: skip
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


def contest(who: str, mode: str, kind: str, size_name: str, steps: int) -> dict[str, Any]:
    """Time one contestant in this process."""
    import torch

    build = {"ours": ours, "transformers": transformers_peer, "olmo-core": core_peer}[who]
    size = SIZES[size_name]
    torch.manual_seed(0)
    began = time.perf_counter()
    step = build(size, mode == "on", kind == "bf16")
    first = step()
    step()
    ready = time.perf_counter() - began
    times, processor = [], []
    for _ in range(steps):
        start, start_processor = time.perf_counter(), time.process_time()
        last = step()
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    tokens = size["batch"] * size["seq"]
    return {
        "who": who, "compiled": mode == "on", "precision": kind, "tokens_per_second": round(tokens / min(times)),
        "median": round(tokens / sorted(times)[len(times) // 2]), "tokens_per_cpu_second": round(tokens / min(processor)),
        "first_steps_seconds": round(ready, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "first_loss": round(first, 4), "last_loss": round(last, 4),
    }  # fmt: skip


def gemm_limit() -> float:
    """GFLOP/s of the quickest of three large bf16 products."""
    import torch

    best = 0.0
    for rows, inner, columns in ((2048, 2048, 2048), (4096, 1024, 1024), (4096, 256, 1536)):
        a, b = torch.randn(rows, inner).bfloat16(), torch.randn(inner, columns).bfloat16()
        for _ in range(8):
            start = time.perf_counter()
            a @ b
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - start) / 1e9)
    return best


def causal_flops(size: dict[str, int]) -> int:
    """Training FLOPs per token: 6 per weight of a product, attention with the causal half only."""
    block = 4 * size["d"] ** 2 + 3 * size["d"] * size["mlp"]
    return 6 * (size["layers"] * block + size["vocab"] * size["d"]) + 6 * size["layers"] * size["d"] * size["seq"]


def core_python(given: str | None) -> str:
    """Python of an environment with OLMo-core; made once under the temporary directory."""
    folder = Path(tempfile.gettempdir()) / "olmo2-recipe-olmo-core"
    python = Path(given) if given else folder / "bin/python"
    if not python.exists():
        import torch

        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        torch_version = f"torch=={torch.__version__.split('+')[0]}"
        subprocess.run([str(python), "-m", "pip", "install", "-q", torch_version, CORE], check=True)
    return str(python)


def run(python: str, arguments: list[str]) -> dict[str, Any]:
    """Run one contestant in a fresh process and read its line."""
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([python, __file__, *arguments], capture_output=True, text=True, env=environment, cwd=root)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="11M")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each contestant")
    parser.add_argument("--core-python", help="Python of an environment with OLMo-core")
    parser.add_argument("--only", default="", help="comma-separated contestants, such as ours:on:bf16")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant == "gemm":
        print(json.dumps({"gflops": gemm_limit()}))
        return
    if options.contestant:
        print(json.dumps(contest(*options.contestant.split(":"), options.size, options.steps)))
        return
    chosen = [":".join(c) for c in OURS + PEERS if not options.only or ":".join(c) in options.only.split(",")]
    limit = run(sys.executable, ["--contestant", "gemm"])["gflops"]
    rows = []
    for name in chosen:
        python = core_python(options.core_python) if name.startswith("olmo-core") else sys.executable
        rows.append(run(python, ["--contestant", name, "--size", options.size, "--steps", str(options.steps)]))
        print(rows[-1], file=sys.stderr, flush=True)
    limit = max(limit, run(sys.executable, ["--contestant", "gemm"])["gflops"])
    print(json.dumps(summary(options.size, rows, limit)))


def summary(size: str, rows: list[dict[str, Any]], limit: float) -> dict[str, Any]:
    """The figures that count, and every row."""
    mine = max((r for r in rows if r["who"] == "ours"), key=lambda r: r["tokens_per_second"])
    peers = [r for r in rows if r["who"] != "ours"]
    gflops = causal_flops(SIZES[size]) * mine["tokens_per_second"] / 1e9
    result = {
        "size": size,
        "gemm_gflops": round(limit),
        "gemm_share": round(gflops / limit, 3),
        "best": mine,
        "rows": rows,
    }
    if peers:
        fastest = max(peers, key=lambda r: r["tokens_per_second"])
        leanest = min(peers, key=lambda r: r["peak_mb"])
        result["ratio"] = round(mine["tokens_per_second"] / fastest["tokens_per_second"], 3)
        result["fastest_peer"] = f"{fastest['who']} compiled={fastest['compiled']} {fastest['precision']}"
        result["memory_ratio"] = round(mine["peak_mb"] / leanest["peak_mb"], 3)
    return result


if __name__ == "__main__":
    main()
