"""Our token files in OLMo-core 3.0.0. Oracle: its `NumpyFSLDataset` and data loader, reading what our encode stage wrote.

Like test_olmo_core.py this needs OLMo-core's own environment and runs in `make parity`.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from safetensors.numpy import load_file

from infra.execution.attempt import run_stage
from infra.session import Session
from infra.settings import Execution
from infra.stage import Stage
from infra.storage.store import Store
from model.data.batches import TokenFile, WindowedTokens, WindowRules
from model.data.labels import IGNORE
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Tokens
from tasks.data.collect import collect
from tasks.data.encode import EncodeConfig, encode
from tasks.data.sources.local import LocalSource
from tests.parity.cases import docstrings

pytestmark = [pytest.mark.parity, pytest.mark.olmo_core, pytest.mark.slow]
LENGTH, BATCH, SEED, EPOCHS = 64, 8, 6198, 2
TARGETS = (0, 4 * LENGTH)
"""Length of a later, longer training that the windows stay compatible with; 0 for none."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[TokenFile]:
    """Docstrings of the standard library as our stages encode them, in several files, one text of dashes among them."""
    root = tmp_path_factory.mktemp("tokens")
    texts = ["-\n" * 300, *(text for text, _ in zip(docstrings(), range(1500), strict=False))]
    rows = b"".join(orjson.dumps({"id": str(index), "text": text}) + b"\n" for index, text in enumerate(texts))
    (root / "text.jsonl").write_bytes(rows)
    store = Store(str(root / "store"))
    source = LocalSource(name="text", paths=(str(root / "text.jsonl"),), shard_bytes=100_000).pinned()
    made: Tokens = run(store, encode, run(store, collect, source), EncodeConfig())
    assert len(made.files) > 3
    return [TokenFile(Path(store.full(f"{made.address}/{name}")), count) for name, count in sorted(made.files.items())]


def run(store: Store, stage: Stage, *arguments: Any) -> Any:
    return run_stage(stage, Session(store, Execution(ray="off")), stage.bind(*arguments), lambda event: None).artifact


@pytest.fixture(scope="module")
def answers(files: list[TokenFile], core_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of answers by target length, all computed by one process."""
    root = tmp_path_factory.mktemp("core")
    tokenizer = Tokenizer()
    for target in TARGETS:
        request = {
            "files": [str(file.path) for file in files], "length": LENGTH, "target": target or None, "batch": BATCH,
            "seed": SEED, "epochs": EPOCHS, "pad": tokenizer.pad_id, "eos": tokenizer.eos_id, "vocab": tokenizer.vocab_size,
        }  # fmt: skip
        (root / str(target)).mkdir()
        (root / str(target) / "request.json").write_text(json.dumps(request))
    command = [str(core_python), str(Path(__file__).with_name("core_data_peer.py"))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    folders = [str(root / str(target)) for target in TARGETS]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, f"OLMo-core's side failed:\n{done.stderr[-4000:]}"
    return root


def windows(files: list[TokenFile], target: int) -> WindowedTokens:
    return WindowedTokens(files, LENGTH, BATCH, SEED, rules=WindowRules(order="published_core", target_length=target))


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_instances_and_the_same_masked_ones(target: int, files: list[TokenFile], answers: Path) -> None:
    theirs = load_file(answers / str(target) / "answer.safetensors")
    data = windows(files, target)
    assert data.instances == len(theirs["instances"])
    seen: dict[bytes, bool] = {}
    for step in range(data.steps_per_epoch):
        (batch,) = data.batch(step)
        kept = (batch["labels"] != IGNORE).any(axis=1)
        seen |= {row.astype(np.int64).tobytes(): bool(keep) for row, keep in zip(batch["ids"], kept, strict=True)}
    expected = {row.tobytes(): bool(keep) for row, keep in zip(theirs["instances"], theirs["kept"], strict=True)}
    # What is left over of an epoch, less than a batch, is not read.
    assert len(expected) - len(seen) < BATCH
    assert seen.items() <= expected.items()
    assert set(seen.values()) == {True, False}


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_batches_in_the_same_order(target: int, files: list[TokenFile], answers: Path) -> None:
    """With a target length the windows of a longer one stay together in the shuffle."""
    theirs = load_file(answers / str(target) / "answer.safetensors")
    data = windows(files, target)
    for epoch in range(EPOCHS):
        batches = theirs[f"batches/{epoch + 1}"]
        assert len(batches) == data.steps_per_epoch
        for index, batch in enumerate(batches):
            step = epoch * data.steps_per_epoch + index
            np.testing.assert_array_equal(data.batch(step)[0]["ids"], batch)
