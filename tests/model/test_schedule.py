"""Learning rates. Oracle: golden/schedules.json (values of the released runs), RECIPE F for the ratio
warm-up.
"""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model.training.schedule import ScheduleConfig, learning_rate, update_learning_rate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/schedules.json").read_text())
TOKENS = {"unit": "tokens", "warmup": 8_388_608_000, "length": 5_000_000_000_000}
STAGE_1 = {
    "stage1_1B_lr4e-4_batch512x4096": ScheduleConfig(learning_rate=4e-4, **TOKENS),
    "stage1_7B_lr3e-4_batch1024x4096": ScheduleConfig(),
    "stage1_13B_lr9e-4_batch2048x4096": ScheduleConfig(learning_rate=9e-4, **TOKENS),
    "stage1_32B_lr6e-4_steps": ScheduleConfig(learning_rate=6e-4, unit="steps", warmup=2000, length=774_861),
}


@pytest.mark.parametrize("name", STAGE_1)
def test_stage_1_equals_golden(name: str) -> None:
    for row in GOLDEN[name]:
        got = learning_rate(STAGE_1[name], step=row["step"], tokens=row["tokens"], steps=0)
        assert got == pytest.approx(row["lr"], rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("name", GOLDEN["stage2_linear_to_zero"])
def test_linear_to_zero_equals_golden(name: str) -> None:
    peak = float(name.split("_lr")[1].split("_")[0])
    rows = GOLDEN["stage2_linear_to_zero"][name]
    length = next(row["step"] for row in rows if row["lr"] == 0)
    schedule = ScheduleConfig(kind="linear", learning_rate=peak, unit="steps", warmup=0, length=length)
    for row in rows:
        got = learning_rate(schedule, step=row["step"], tokens=0, steps=length)
        assert got == pytest.approx(row["lr"], rel=1e-9, abs=1e-18)


RATIO = ScheduleConfig(
    kind="linear", learning_rate=1e-5, unit="steps", warmup=0, length=0, warmup_ratio=0.03, counter="before"
)


@pytest.mark.parametrize("steps", [8, 34, 199, 14_673])
def test_ratio_warmup_is_that_of_the_published_scripts(steps: int) -> None:
    """Transcribed: open-instruct's `int(steps * ratio)` and the linear schedule of transformers, which it calls."""
    warmup = int(steps * 0.03)
    for step in {0, 1, warmup - 1, warmup, warmup + 1, steps // 2, steps - 1} - {-1}:
        share = step / max(1, warmup) if step < warmup else (steps - step) / max(1, steps - warmup)
        got = update_learning_rate(RATIO, step=step, tokens=0, batch_tokens=9, steps=steps)
        assert got == pytest.approx(1e-5 * share, rel=1e-12), step


def test_ratio_warmup_then_linear_counts_before_the_update() -> None:
    schedule = RATIO
    rates = [update_learning_rate(schedule, step=step, tokens=0, batch_tokens=9, steps=200) for step in range(200)]
    assert rates[0] == 0
    assert rates[6] == max(rates) == 1e-5
    assert rates[-1] == pytest.approx(1e-5 / 194)


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_cosine_never_rises_after_the_warmup_nor_leaves_its_range(a: int, b: int) -> None:
    schedule = ScheduleConfig(learning_rate=1.0, unit="steps", warmup=1000, length=5_000_000)
    low, high = sorted((a + 1000, b + 1000))
    first, second = (learning_rate(schedule, step=step, tokens=0, steps=0) for step in (low, high))
    assert 0.1 <= second <= first <= 1.0
    assert math.isfinite(first)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValidationError, match="exclude"):
        ScheduleConfig(warmup_ratio=0.1)
    with pytest.raises(ValidationError, match="length=0"):
        ScheduleConfig(length=0, warmup=0)
    with pytest.raises(ValidationError, match="ends before"):
        ScheduleConfig(length=5)
