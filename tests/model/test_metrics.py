"""Metrics, evaluation in the loop, and the error of a value that is not finite. Oracle: what the loop promises."""

import threading
from typing import Any

import pytest
import torch

from model.config import Compute
from model.training.configs import LossConfig, OptimConfig
from model.training.loop import Course, Evaluation, Listeners, Logging, TrainState, new_state, train
from model.training.losses import language_model_objective
from model.training.measuring import metrics as metrics_module
from model.training.measuring.metrics import EVERY_STEP, Crossing, MetricsLog
from model.training.measuring.throughput import Meter
from tests.model.groups import SCHEDULE, language_batches, model_of

OBJECTIVE = language_model_objective(LossConfig())


class Slow(Crossing):
    """Values that are on their way from the device until `arrived` is set."""

    arrived = threading.Event()

    def end(self) -> tuple[list[dict[str, float]], float]:
        assert self.arrived.wait(60)
        return super().end()


def metrics_to(log: Any, record: Any = None, instances: Any = None) -> MetricsLog:
    return MetricsLog(log, record, instances, saved=0, meter=Meter(0, "cpu", 1))


def run(state: TrainState, steps: int, told: Listeners | None = None, **course: Any) -> TrainState:
    followed = Course(
        **{"objective": OBJECTIVE, "batches": language_batches, "schedule": SCHEDULE, "steps": steps} | course
    )
    return train(state, followed, Compute(), told or Listeners())


def fresh(optim: OptimConfig | None = None) -> TrainState:
    return new_state(model_of("language model"), optim or OptimConfig(), Compute())


def test_no_step_waits_for_values_and_lines_keep_their_order_and_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "Crossing", Slow)
    lines: list[tuple[int, dict[str, float], str]] = []

    def log(step: int, metrics: dict[str, float]) -> None:
        lines.append((step, metrics, threading.current_thread().name))

    with metrics_to(log) as metrics:
        for step in (1, 2):
            metrics.collect(step, {"loss": torch.tensor(2.5), "grad_norm": 1.0})
            metrics.send(tokens=10 * step, facts={"known": float(step)}, logged=True)
            metrics.deliver(wait=False)
        assert lines == []
        Slow.arrived.set()
        metrics.deliver(wait=True)
    assert [(step, line["known"], line["loss"]) for step, line, _ in lines] == [(1, 1.0, 2.5), (2, 2.0, 2.5)]
    assert {name for *_, name in lines} == {threading.current_thread().name}
    assert all(line["tokens_per_second"] > 0 for _, line, _ in lines)


def test_values_cross_as_they_are() -> None:
    """Oracle: float of each value. Counts beyond fp32 and scalars of other types keep their value."""
    steps = [{"a": torch.tensor(0.1), "tokens": 4e12 + 1}, {"b": torch.tensor(3.0, dtype=torch.bfloat16), "a": 0.1}]
    assert Crossing(steps).end()[0] == [{name: float(value) for name, value in step.items()} for step in steps]
    assert Crossing([{"a": 1.0}]).end()[0] == [{"a": 1.0}]


def test_every_update_that_is_left_out_is_recorded_wherever_the_log_falls() -> None:
    """Spikes between two lines of the log: the record has them at their steps, the log counts them."""
    state = fresh(OptimConfig(kind="skip_step_adamw", precision="fp32"))
    # Each above what the ones before it add to the deviation.
    spikes = {73: 50.0, 77: 100.0, 83: 500.0}

    def spiking(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, metrics = OBJECTIVE(model, batch)
        return loss * spikes.get(state.step + 1, 1.0), metrics

    rows: dict[int, dict[str, float]] = {}
    lines: dict[int, dict[str, float]] = {}
    told = Listeners(log=lambda n, line: lines.update({n: line}), record=lambda n, row: rows.update({n: row}))
    run(state, 90, told, objective=spiking, logging=Logging(facts=lambda n: {"seen": torch.tensor(float(n))}))
    assert list(rows) == list(range(1, 91))
    assert [step for step, row in rows.items() if row["skipped"]] == list(spikes)
    usual = max(row["grad_norm"] for step, row in rows.items() if step not in spikes)
    assert all(rows[step]["grad_norm"] > 5 * usual for step in spikes)
    assert rows[73].keys() == set(EVERY_STEP)
    assert {n: line["skipped_steps"] for n, line in lines.items() if line["skipped_steps"]} == {80: 2.0, 90: 1.0}
    assert all(line.items() >= rows[n].items() and line["seen"] == n for n, line in lines.items())
    rates = {"skipped_steps", "tokens_per_second", "tokens_per_second_per_device", "data_wait_share"}
    assert lines[80].keys() - rows[80].keys() == rates


def test_a_save_point_changes_no_line_of_the_record() -> None:
    kept: list[list[tuple[int, dict[str, float]]]] = []
    saved: list[tuple[int, int]] = []
    for every in (0, 2):
        rows: list[tuple[int, dict[str, float]]] = []
        told = Listeners(
            record=lambda *row, rows=rows: rows.append(row),
            checkpoint=lambda state, rows=rows: saved.append((state.step, len(rows))),
            checkpoint_every=every,
        )
        run(fresh(), 7, told, logging=Logging(every=3))
        kept.append(rows)
    assert kept[0] == kept[1]
    assert saved == [(2, 2), (4, 4), (6, 6)], "a save point has the lines of all its steps"


def test_facts_are_those_of_their_step() -> None:
    """A stage's own metrics are asked for before the next batch is, however late the line arrives."""
    asked: list[int] = []

    def facts(step: int) -> dict[str, float]:
        asked.append(step)
        return {"asked": float(len(asked))}

    lines: dict[int, dict[str, float]] = {}
    run(fresh(), 7, Listeners(log=lambda step, line: lines.update({step: line})), logging=Logging(every=3, facts=facts))
    assert asked == [3, 6, 7]
    assert {step: line["asked"] for step, line in lines.items()} == {3: 1.0, 6: 2.0, 7: 3.0}


def test_evaluation_joins_its_steps_line_and_leaves_the_training_as_it_was() -> None:
    def evaluate(state: TrainState) -> dict[str, float]:
        assert not state.model.training
        assert not torch.is_grad_enabled()
        return {"evaluated": float(state.step)}

    lines: dict[int, dict[str, float]] = {}
    log = lambda step, line: lines.update({step: line})  # noqa: E731
    judged = run(fresh(), 6, Listeners(log=log), evaluation=Evaluation(evaluate, every=2), logging=Logging(every=3))
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
            state,
            9,
            Listeners(checkpoint=lambda state: None, checkpoint_every=2),
            objective=poisoned,
            logging=Logging(every=100, instances=lambda step: [f"file-{step}[0:16]", f"file-{step}[16:32]"]),
        )


def test_a_long_list_of_examples_is_cut() -> None:
    with metrics_to(None, instances=lambda step: range(1000)) as metrics:
        metrics.collect(1, {"loss": float("nan"), "grad_norm": 1.0})
        metrics.send(0, {}, logged=False)
        with pytest.raises(FloatingPointError, match=r"which holds 0, 1, .*, 63 and 936 more$"):
            metrics.deliver(wait=True)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_values_of_a_device_that_is_not_the_current_one_are_waited_for() -> None:
    """An event on the current device's stream would be there at once, before the copy."""
    with torch.cuda.device(1):
        torch.cuda._sleep(1_000_000_000)
        loss = torch.full((), 2.5, device="cuda:1") * 2
    with torch.cuda.device(0):
        ((found,), _) = Crossing([{"loss": loss}]).end()
    assert found == {"loss": 5.0}
