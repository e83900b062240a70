"""GRPO on this machine's CPU against TRL's `GRPOTrainer`: same policy, prompts, reward, budget and learning rate.

Run alone: `python benchmarks/rlvr.py [--rollouts 48] [--warm-up 35] [--peer-python PYTHON]`. The peer has an environment of
its own (TRL from PyPI); `--peer-python` gives one that exists. A model of 0.2M parameters first learns one-digit sums in part,
as SFT here. Both sides then sample 16 answers to each of 16 prompts a rollout, and make two updates of it: KL to the start at
0.01 (k3), sampling at temperature 1, clip 0.2, AdamW at a constant rate. One thread each, in turns, so a busy machine changes
little: what is told are CPU seconds of sampling and learning, without imports and loading. Each side runs in fp32 and in bf16,
its weights being fp32 in both, and the precision counts in which it reaches the target in fewer seconds.

The last line is one JSON object. `reward`: share of right answers over the last 8 rollouts of each side. `target`: the lowest.
`seconds_to_target`: CPU seconds until the mean over 8 rollouts reached it, each rollout taken to cost the same. `ratio`: the
peer's over ours, of the better precision of each; `ratios`: by precision. `seconds`: of the whole budget.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pydantic import Field

from benchmarks.peers.environment import ROOT, peer_python
from infra.execution.attempt import run_stage
from infra.processor import processor_name
from infra.records.record import payload_at
from infra.session import Session
from infra.settings import Execution
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Workspace
from model.config import Config, ModelConfig
from model.files.weights import save_hf
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Chats, Checkpoint, Prompts
from tasks.training.rlvr import RLVRConfig, train_rlvr
from tasks.training.sft import SFTConfig, train_sft

TOKENIZER = Tokenizer(320)
SHAPE = ModelConfig(
    d_model=64, n_layers=3, n_heads=4, n_kv_heads=4, head_dim=16, mlp_hidden=192, max_sequence_length=128,
    vocab_size=TOKENIZER.padded_vocab_size,
)  # fmt: skip
SUMS = [(f"{a}+{b}", str(a + b)) for a in range(10) for b in range(10)]
ANSWERS = {q: f"The sum of {q.replace('+', ' and ')} is {a}." for q, a in SUMS}
"""What finetuning teaches: some 26 tokens, as sentences are."""
PROMPTS, SAMPLES, UPDATES, NEW_TOKENS = 16, 16, 2, 40
LEARNING_RATE, KL = 2e-4, 0.01
PRECISIONS = ("fp32", "bf16")
LAST = 8
"""Rollouts that a reward is averaged over."""


class Given(Config):
    """Rows, or what a start needs no more of."""

    rows: list[dict[str, Any]] = Field(default_factory=list)


def make_start(ws: Workspace, config: Given) -> Checkpoint:
    save_hf(Transformer(SHAPE, seed=0), SHAPE, TOKENIZER, ws.scratch / "model")
    ws.put(ws.scratch / "model")
    return ws.artifact(
        Checkpoint, steps=0, tokens=0, parameters=SHAPE.parameters, loss=0.0, ranks=TOKENIZER.ranks, parent=""
    )


def make_chats(ws: Workspace, config: Given) -> Chats:
    ws.write_jsonl("chats.jsonl.zst", config.rows)
    return ws.artifact(Chats, chats=len(config.rows), sources={"sums": len(config.rows)})


def make_prompts(ws: Workspace, config: Given) -> Prompts:
    ws.write_jsonl("prompts.jsonl.zst", config.rows)
    return ws.artifact(Prompts, prompts=len(config.rows), datasets={"gsm8k": len(config.rows)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=48)
    parser.add_argument("--warm-up", type=float, default=35, help="passes over the sums before reinforcement")
    parser.add_argument("--peer-python", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        session = Session(store, Execution(store=folder, ray="off", cores=1, pass_tokens={"default": 4096}))

        def run(function: Any, **arguments: Any) -> Any:
            return run_stage(stage(function, name=function.__name__, version=1), session, arguments, print_nothing)

        policy = warmed_up(run, options.warm_up)
        told: dict[str, dict[str, Any]] = {}
        for precision in PRECISIONS:
            told[f"ours {precision}"] = reinforced(run, store, policy, options.rollouts, precision)
            told[f"trl {precision}"] = of_peer(Path(folder), store, policy, options, precision)
    reward = {name: mean_of_last(side["rewards"]) for name, side in told.items()}
    target = min(reward.values())
    reached = {name: seconds_to(target, side) for name, side in told.items()}
    result = {
        "processor": processor_name(),
        "start": {name: side["rewards"][0] for name, side in told.items()},
        "reward": reward,
        "target": target,
        "seconds": {name: side["seconds"] for name, side in told.items()},
        "seconds_to_target": reached,
        "ratio": best(reached, "trl") / best(reached, "ours"),
        "ratios": {precision: reached[f"trl {precision}"] / reached[f"ours {precision}"] for precision in PRECISIONS},
    }
    print(json.dumps(result))


def warmed_up(run: Any, epochs: float) -> Checkpoint:
    """A model that has learnt a part of the sums."""
    rows = [
        {
            "id": q,
            "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": ANSWERS[q]}],
            "source": "sums",
        }
        for q, _ in SUMS
    ]
    config = SFTConfig(learning_rate=2e-3, batch_size=20, epochs=epochs, max_tokens=80, precision="fp32")
    chats = run(make_chats, config=Given(rows=rows)).artifact
    return run(train_sft, parent=run(make_start, config=Given()).artifact, chats=chats, config=config).artifact


def reinforced(run: Any, store: Store, policy: Checkpoint, rollouts: int, precision: str) -> dict[str, Any]:
    """Our side: share of right answers by rollout, and CPU seconds."""
    rows = [
        {"id": q, "messages": [{"role": "user", "content": q}], "ground_truth": a, "dataset": "gsm8k"} for q, a in SUMS
    ]
    prompts = run(make_prompts, config=Given(rows=rows)).artifact
    config = RLVRConfig.model_validate({
        "learning_rate": LEARNING_RATE, "episodes": rollouts * PROMPTS * SAMPLES, "prompts_per_rollout": PROMPTS,
        "samples": SAMPLES, "mini_batches": UPDATES, "kl_coefficient": KL, "correct_score": 1.0, "max_prompt_tokens": 48,
        "max_new_tokens": NEW_TOKENS, "precision": precision,
    })  # fmt: skip
    began = cpu_seconds()
    made = run(train_rlvr, policy=policy, prompts=prompts, config=config).artifact
    seconds = cpu_seconds() - began
    lines = store.read(f"{payload_at(store, made.address)}/metrics.jsonl").splitlines()
    return {"rewards": [json.loads(line)["correct"] for line in lines[::UPDATES]], "seconds": seconds}


def of_peer(
    folder: Path, store: Store, policy: Checkpoint, options: argparse.Namespace, precision: str
) -> dict[str, Any]:
    """TRL's side, in a process of its environment."""
    job = folder / "job.json"
    job.write_text(
        json.dumps(
            {
                "model": str(folder / payload_at(store, policy.address)),
                "sums": SUMS,
                "rollouts": options.rollouts,
                "prompts": PROMPTS,
                "samples": SAMPLES,
                "updates": UPDATES,
                "new_tokens": NEW_TOKENS,
                "learning_rate": LEARNING_RATE,
                "kl": KL,
                "bf16": precision == "bf16",
                "folder": str(folder / "trl"),
            }
        )
    )
    python = peer_python("trl", ["trl"], options.peer_python)
    command = [python, str(ROOT / "benchmarks/peers/trl_grpo.py"), str(job)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def best(seconds: dict[str, float], side: str) -> float:
    return min(found for name, found in seconds.items() if name.startswith(side))


def mean_of_last(rewards: list[float]) -> float:
    return sum(rewards[-LAST:]) / len(rewards[-LAST:])


def seconds_to(target: float, side: dict[str, Any]) -> float:
    """CPU seconds until the mean over `LAST` rollouts reached the target."""
    rewards = side["rewards"]
    for end in range(LAST, len(rewards) + 1):
        if sum(rewards[end - LAST : end]) / LAST >= target - 1e-9:
            return side["seconds"] * end / len(rewards)
    raise SystemExit(f"{rewards} never reach {target}")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def print_nothing(*event: Any) -> None:
    """No listener is needed."""


if __name__ == "__main__":
    sys.exit(main())
