"""Logits, losses, every gradient and 50 updates against transformers. Oracles: `Olmo2ForCausalLM` with eager attention,
torch's cross-entropy and plain AdamW, transformers' cosine schedule.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model.files.weights import save_hf
from model.network.transformer import Transformer
from model.training.configs import OptimConfig
from model.training.schedule import ScheduleConfig
from tests.parity.cases import (
    CASES,
    FORWARD_BOUND,
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

pytestmark = pytest.mark.parity
PEER = "transformers"


def load(model: Transformer, folder: Path, **changes: Any) -> Any:
    """Their model with our weights, from a folder as we write it."""
    from transformers import AutoModelForCausalLM

    save_hf(model, model.config, None, folder)
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", use_cache=False, **changes
    )


def losses(logits: torch.Tensor, text: Text) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and weighted z-loss by torch's own functions, from labels and divisor spelled out here."""
    targets, wanted = torch.from_numpy(text.ids)[:, 1:], torch.from_numpy(text.trained & text.kept[:, None])[:, 1:]
    divisor = wanted.sum() + (~text.kept).sum() * text.ids.shape[1]
    ce = F.cross_entropy(logits[:, :-1][wanted], targets[wanted], reduction="sum") / divisor
    z = Z_WEIGHT * logits[:, :-1][wanted].logsumexp(-1).square().sum() / divisor
    return ce, z


def theirs(case: Case, folder: Path, **changes: Any) -> Answer:
    """Numbers of transformers for a case."""
    model, text = load(scrambled(case.config), folder, **changes), batch(case)
    logits = model(torch.from_numpy(text.ids)).logits
    ce, z = losses(logits, text)
    (ce + z).backward()
    return Answer(logits.detach(), ce.item(), z.item(), {name: p.grad for name, p in model.named_parameters()})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_losses_and_gradients(case: Case, check: Check, tmp_path: Path) -> None:
    for what, tensor, value in differences(ours(case), theirs(case, tmp_path)):
        check(what, PEER, f"{case} {tensor}".strip(), value, FORWARD_BOUND)


def test_their_own_loss_is_our_cross_entropy(check: Check, tmp_path: Path) -> None:
    """With the repetition filter's instance left in, the divisor is the number of labels, as in transformers."""
    case = CASES[0]
    text = batch(case)
    labels = torch.from_numpy(text.ids).masked_fill(torch.from_numpy(~text.trained), -100)
    model = load(scrambled(case.config), tmp_path)
    with torch.no_grad():
        loss = model(torch.from_numpy(text.ids), labels=labels).loss
        mine = Text(text.ids, text.trained, text.kept | True)
        ce = losses(scrambled(case.config)(torch.from_numpy(text.ids)), mine)[0]
    check("cross-entropy", PEER, "their loss function", difference(ce, loss), FORWARD_BOUND)


@pytest.mark.parametrize(
    "change",
    [
        {"rms_norm_eps": 1e-5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
        {"hidden_act": "gelu"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_measure_notices_another_model(change: dict[str, Any], tmp_path: Path) -> None:
    found = differences(ours(CASES[0]), theirs(CASES[0], tmp_path, **change))
    beyond = {what for what, _, value in found if value > 3 * FORWARD_BOUND}
    assert {"logits", "every gradient"} <= beyond


@pytest.mark.slow
def test_fifty_updates_on_real_text(check: Check, tmp_path: Path) -> None:
    """Learning rates as transformers counts them: the first update's is 0."""
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    data = text_windows(tmp_path)
    schedule = ScheduleConfig(
        kind="cosine", unit="steps", learning_rate=PEAK_LR, warmup=WARMUP, length=STEPS, counter="before"
    )
    mine, weights = our_training(data, OptimConfig(precision="fp32"), schedule)
    model = load(Transformer(TRAINED_CONFIG, seed=0), tmp_path / "hf").train()
    embedding = model.get_input_embeddings().weight
    others = [parameter for parameter in model.parameters() if parameter is not embedding]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.1}, {"params": [embedding], "weight_decay": 0.0}],
        lr=PEAK_LR, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False,
    )  # fmt: skip
    scheduler = get_cosine_with_min_lr_schedule_with_warmup(optimizer, WARMUP, STEPS, min_lr_rate=0.1)
    filtered = 0
    for step, row in enumerate(mine):
        text = whole_batch(data, step)
        filtered += int((~text.kept).sum())
        ce, z = losses(model(torch.from_numpy(text.ids)).logits, text)
        (ce + z).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        pairs = {"cross-entropy": ("ce", ce), "z-loss": ("z", z), "gradient norm": ("grad_norm", norm)}
        pairs["learning rate"] = ("lr", torch.tensor(scheduler.get_last_lr()[0]))
        for what, (name, value) in pairs.items():
            value = difference(torch.tensor(row[name]), value.detach())
            check(f"{what}, 50 updates", PEER, f"step {step + 1}", value, TRAINING_BOUND)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert filtered, "no window was removed by the repetition filter: the divisor is not tested"
    for name, parameter in model.named_parameters():
        value = distance(weights[name], parameter.detach())
        check("every weight after 50 updates", PEER, name, value, TRAINING_BOUND)
