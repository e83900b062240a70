"""Metrics, evaluation in the loop, and the error of a value that is not finite. Oracle: what the loop promises."""

import threading
from typing import Any

import pytest
import torch

from model.config import Compute
from model.loop import TrainState, new_state, train
from model.losses import LossConfig, language_model_objective
from model.metrics import Metrics
from model.optim import OptimConfig
from tests.model.groups import SCHEDULE, language_batches, model_of

OBJECTIVE = language_model_objective(LossConfig())


class Slow:
    """A value that is on its way from the device until `arrived` is set."""

    def __init__(self, arrived: threading.Event) -> None:
        self.arrived = arrived

    def __float__(self) -> float:
        assert self.arrived.wait(60)
        return 2.5


def run(state: TrainState, steps: int, objective: Any = OBJECTIVE, **options: Any) -> TrainState:
    return train(
        state.model, objective, language_batches, optim=OptimConfig(), schedule=SCHEDULE, steps=steps, compute=Compute(),
        state=state, **options,
    )  # fmt: skip


def fresh() -> TrainState:
    return new_state(model_of("language model"), OptimConfig(), Compute())


def test_no_step_waits_for_values_and_lines_keep_their_order_and_thread() -> None:
    arrived = threading.Event()
    lines: list[tuple[int, dict[str, float], str]] = []

    def log(step: int, metrics: dict[str, float]) -> None:
        lines.append((step, metrics, threading.current_thread().name))

    with Metrics(log, None, saved=0, tokens=0) as metrics:
        for step in (1, 2):
            metrics.collect(step, {"loss": Slow(arrived), "grad_norm": 1.0})
            metrics.send(tokens=10 * step, facts={"known": float(step)}, logged=True)
            metrics.deliver(wait=False)
        assert lines == []
        arrived.set()
        metrics.deliver(wait=True)
    assert [(step, line["known"], line["loss"]) for step, line, _ in lines] == [(1, 1.0, 2.5), (2, 2.0, 2.5)]
    assert {name for *_, name in lines} == {threading.current_thread().name}
    assert all(line["tokens_per_second"] > 0 for _, line, _ in lines)


def test_facts_are_those_of_their_step() -> None:
    """A stage's own metrics are asked for before the next batch is, however late the line arrives."""
    asked: list[int] = []

    def facts(step: int) -> dict[str, float]:
        asked.append(step)
        return {"asked": float(len(asked))}

    lines: dict[int, dict[str, float]] = {}
    run(fresh(), 7, facts=facts, log=lambda step, line: lines.update({step: line}), log_every=3)
    assert asked == [3, 6, 7]
    assert {step: line["asked"] for step, line in lines.items()} == {3: 1.0, 6: 2.0, 7: 3.0}


def test_evaluation_joins_its_steps_line_and_leaves_the_training_as_it_was() -> None:
    def evaluate(state: TrainState) -> dict[str, float]:
        assert not state.model.training
        assert not torch.is_grad_enabled()
        return {"evaluated": float(state.step)}

    lines: dict[int, dict[str, float]] = {}
    log = lambda step, line: lines.update({step: line})  # noqa: E731
    judged = run(fresh(), 6, evaluate=evaluate, evaluate_every=2, log=log, log_every=3)
    assert {step: line.get("evaluated") for step, line in lines.items()} == {2: 2.0, 3: None, 4: 4.0, 6: 6.0}
    assert judged.model.training
    plain = run(fresh(), 6)
    assert all(torch.equal(a, b) for a, b in zip(judged.model.parameters(), plain.model.parameters(), strict=True))


def test_a_value_that_is_not_finite_names_step_batch_and_last_good_state() -> None:
    state = fresh()

    def poisoned(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, metrics = OBJECTIVE(model, batch)
        return (loss * float("inf") if state.step == 5 else loss), metrics

    message = (
        r"step 6: loss inf, .* last good state is step 4\. .* batch of step 5 \(0-based\), which holds file-5\[0:16\], "
        r"file-5\[16:32\]$"
    )
    with pytest.raises(FloatingPointError, match=message):
        run(
            state, 9, objective=poisoned, checkpoint=lambda state: None, checkpoint_every=2, log_every=100,
            instances=lambda step: [f"file-{step}[0:16]", f"file-{step}[16:32]"],
        )  # fmt: skip


def test_a_long_list_of_examples_is_cut() -> None:
    with Metrics(None, lambda step: range(1000), saved=0, tokens=0) as metrics:
        metrics.collect(1, {"loss": float("nan"), "grad_norm": 1.0})
        metrics.send(0, {}, logged=False)
        with pytest.raises(FloatingPointError, match=r"which holds 0, 1, .*, 63 and 936 more$"):
            metrics.deliver(wait=True)
