"""Logits, losses, every gradient and 50 updates against OLMo-core 3.0.0. Oracle: its `TransformerTrainModule` as it is,
which makes labels, micro-batches, divisor, clipping, learning rate and update.

OLMo-core needs an environment of its own (1.2 GB, other pins than ours), so this file belongs to `make parity`, which
makes that environment or takes OLMO_CORE_PYTHON; `make test` leaves it out by its marker. A missing environment is an
error here, never a skip.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.files.weights import save_hf
from model.network.transformer import Transformer
from model.training.configs import OptimConfig
from model.training.schedule import ScheduleConfig
from tests.parity.cases import (
    CASES,
    FORWARD_BOUND,
    MICRO_BATCH,
    PEAK_LR,
    STEPS,
    TRAINED_CONFIG,
    TRAINING_BOUND,
    WARMUP,
    Z_WEIGHT,
    Answer,
    Case,
    Text,
    batch,
    difference,
    differences,
    distance,
    our_training,
    ours,
    scrambled,
    text_windows,
    whole_batch,
)
from tests.parity.conftest import Check

pytestmark = [pytest.mark.parity, pytest.mark.olmo_core, pytest.mark.slow]
PEER = "OLMo-core"
KINDS = ("adamw", "skip_step_adamw", "skip_step_adamw_historical")
# Our metric and theirs.
METRICS = {"ce": "CE loss", "z": "Z loss", "grad_norm": "total grad norm", "lr": "LR (group 0)"}
TITLES = {"ce": "cross-entropy", "z": "z-loss", "grad_norm": "gradient norm", "lr": "learning rate"}


def ask(folder: Path, model: Transformer, batches: list[Text], **request: Any) -> None:
    """Write one request."""
    save_hf(model, model.config, None, folder)
    tensors = {}
    for step, text in enumerate(batches):
        fields = {"ids": text.ids, "trained": text.trained, "kept": text.kept}
        tensors |= {f"{name}/{step}": torch.from_numpy(value).contiguous() for name, value in fields.items()}
    save_file(tensors, folder / "batches.safetensors")
    request |= {"z_weight": Z_WEIGHT, "learning_rate": PEAK_LR, "warmup": WARMUP}
    (folder / "request.json").write_text(json.dumps(request))


@pytest.fixture(scope="module")
def answers(core_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of answered requests, all computed by one process."""
    root = tmp_path_factory.mktemp("olmo-core")
    for case in CASES:
        ask(root / str(case), scrambled(case.config), [batch(case)], train=False, kind="adamw", micro_instances=2)
    data = text_windows(root)
    texts = [whole_batch(data, step) for step in range(STEPS)]
    for kind in KINDS:
        model = Transformer(TRAINED_CONFIG, seed=0)
        ask(root / kind, model, texts, train=True, kind=kind, micro_instances=MICRO_BATCH)
    folders = [str(path.parent) for path in sorted(root.glob("*/request.json"))]
    script = Path(__file__).with_name("core_peer.py")
    command = [str(core_python), str(script), *folders]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, f"OLMo-core's side failed:\n{done.stderr[-4000:]}"
    return root


def theirs(folder: Path) -> Answer:
    """Their answer to a request without training."""
    row = json.loads((folder / "answers.json").read_text())[0]
    tensors = load_file(folder / "answers.safetensors")
    gradients = {name.removeprefix("gradient/0/"): t for name, t in tensors.items() if name.startswith("gradient/0/")}
    return Answer(tensors["logits/0"], row["CE loss"], row["Z loss"], gradients)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_losses_and_gradients(case: Case, check: Check, answers: Path) -> None:
    for what, tensor, value in differences(ours(case), theirs(answers / str(case))):
        check(what, PEER, f"{case} {tensor}".strip(), value, FORWARD_BOUND)


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_updates_on_real_text(kind: Any, check: Check, answers: Path, tmp_path: Path) -> None:
    schedule = ScheduleConfig(kind="cosine", unit="steps", learning_rate=PEAK_LR, warmup=WARMUP, length=STEPS)
    mine, weights = our_training(text_windows(tmp_path), OptimConfig(kind=kind, precision="fp32"), schedule)
    rows = json.loads((answers / kind / "answers.json").read_text())
    assert len(mine) == len(rows) == STEPS
    for step, (my_row, their_row) in enumerate(zip(mine, rows, strict=True), start=1):
        for name, their_name in METRICS.items():
            value = difference(torch.tensor(my_row[name]), torch.tensor(their_row[their_name]))
            check(f"{TITLES[name]}, 50 updates", PEER, f"{kind}, step {step}", value, TRAINING_BOUND)
        assert their_row.get("step skipped", 0.0) == my_row["skipped"]
    for name, parameter in load_file(answers / kind / "answers.safetensors").items():
        value = distance(weights[name.removeprefix("weight/")], parameter)
        check("every weight after 50 updates", PEER, f"{kind}, {name}", value, TRAINING_BOUND)
