"""A store of tiny artifacts, and stages run in it as a session runs them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.events import Event
from infra.execution.attempt import Outcome, run_stage
from infra.records.artifact import Artifact
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
from tasks.artifacts import Chats, Checkpoint, Preferences, Prompts

RANKS = 320
TOKENIZER = Tokenizer(RANKS)
TINY = ModelConfig(
    d_model=32,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    head_dim=16,
    mlp_hidden=64,
    vocab_size=TOKENIZER.padded_vocab_size,
    max_sequence_length=128,
)


class Seed(Config):
    seed: int = 0


class Rows(Config):
    rows: list[dict[str, Any]]


def make_checkpoint(ws: Workspace, config: Seed) -> Checkpoint:
    save_hf(Transformer(TINY, seed=config.seed), TINY, TOKENIZER, ws.scratch / "model")
    ws.put(ws.scratch / "model")
    return ws.artifact(Checkpoint, steps=0, tokens=0, parameters=TINY.parameters, loss=0.0, ranks=RANKS, parent="")


def make_chats(ws: Workspace, config: Rows) -> Chats:
    ws.write_jsonl("chats.jsonl.zst", config.rows)
    return ws.artifact(Chats, chats=len(config.rows), sources={"test": len(config.rows)})


def make_preferences(ws: Workspace, config: Rows) -> Preferences:
    ws.write_jsonl("preferences.jsonl.zst", config.rows)
    return ws.artifact(Preferences, pairs=len(config.rows), ties=0, mean_chosen=5.0, mean_rejected=1.0)


def make_prompts(ws: Workspace, config: Rows) -> Prompts:
    ws.write_jsonl("prompts.jsonl.zst", config.rows)
    return ws.artifact(Prompts, prompts=len(config.rows), datasets={"gsm8k": len(config.rows)})


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def sums(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Questions and answers of one-digit addition."""
    digits = np.random.default_rng(seed).integers(0, 5, (count, 2))
    return [(f"{a}+{b}", str(a + b)) for a, b in digits.tolist()]


class Bench:
    """Runs stage functions in a store under `root`; payload files can be read back."""

    def __init__(self, root: Path, **execution: Any):
        # Small passes, so that every training accumulates gradients over several of them.
        settings = {"pass_tokens": {"default": 256}} | execution
        self.session = Session(Store(str(root)), Execution(store=str(root), ray="off", cores=1, **settings))
        self.events: list[Event] = []

    def outcome(self, function: Callable[..., Artifact], name: str = "", **arguments: Any) -> Outcome:
        wrapped = stage(function, name=name or function.__name__, version=1)
        return run_stage(wrapped, self.session, arguments, self.events.append)

    def run(self, function: Callable[..., Artifact], name: str = "", **arguments: Any) -> Any:
        return self.outcome(function, name, **arguments).artifact

    def read(self, artifact: Artifact, name: str) -> bytes:
        return self.session.store.read(f"{payload_at(self.session.store, artifact.address)}/{name}")

    def base(self, seed: int = 0) -> Checkpoint:
        return self.run(make_checkpoint, config=Seed(seed=seed))

    def chats(self, count: int = 12) -> Chats:
        rows = [
            {"id": str(i), "messages": [user(q), assistant(a)], "source": "test"}
            for i, (q, a) in enumerate(sums(count))
        ]
        return self.run(make_chats, config=Rows(rows=rows))

    def preferences(self, count: int = 12) -> Preferences:
        rows = [
            {
                "id": str(i),
                "chosen": [user(q), assistant(a)],
                "rejected": [user(q), assistant("no idea at all")],
                "chosen_rating": 5.0,
                "rejected_rating": 1.0,
            }
            for i, (q, a) in enumerate(sums(count))
        ]
        return self.run(make_preferences, config=Rows(rows=rows))

    def prompts(self, count: int = 6) -> Prompts:
        rows = [
            {"id": str(i), "messages": [user(q)], "ground_truth": a, "dataset": "gsm8k"}
            for i, (q, a) in enumerate(sums(count))
        ]
        return self.run(make_prompts, config=Rows(rows=rows))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "store")


@pytest.fixture
def make_bench(tmp_path: Path) -> Callable[..., Bench]:
    """Benches with stores and execution settings of their own."""
    return lambda name, **execution: Bench(tmp_path / name, **execution)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`killed(n)` makes the next training stop with KeyboardInterrupt right after its save point of step n."""

    def arm(step: int) -> None:
        save_point = Workspace.save_point

        def save_and_die(self: Workspace, at: int, folder: Path, **options: Any) -> None:
            save_point(self, at, folder, **options)
            if at == step:
                monkeypatch.setattr(Workspace, "save_point", save_point)
                raise KeyboardInterrupt

        monkeypatch.setattr(Workspace, "save_point", save_and_die)

    return arm
