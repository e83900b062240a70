"""Metrics to trackers. Oracles: TensorBoard's event file, W&B's offline folder and MLflow's database, read back."""

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.events import Ended, Event, Metrics, Warned
from infra.execution.reporter import Reporter
from infra.execution.stage_page import StagePage
from infra.execution.tracking import TRACKERS, Tracked, check_trackers, finite, mlflow, start_trackers, trackio
from infra.storage.store import Store
from tests.infra.stages_for_tests import total

RUN = Tracked("anneal:42", "0123456789abcdef", {"schedule": {"length": 30}, "seed": 42})
EVENTS = [Metrics(10, {"loss": 2.5, "lr": 0.1}), Metrics(20, {"loss": 2.0, "lr": float("nan")}), Ended(None)]


def tell(listener: Any) -> None:
    for event in EVENTS:
        listener(event)


def test_tensorboard_has_every_finite_metric_at_its_step(tmp_path: Path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    tell(start_trackers({"tensorboard": str(tmp_path)}, RUN)[0])
    (file,) = (tmp_path / "anneal-42" / RUN.id).iterdir()
    data, found, place = file.read_bytes(), [], 0
    while place < len(data):  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[place : place + 8], "little")
        body = data[place + 12 : place + 12 + size]
        assert int.from_bytes(data[place + 12 + size : place + 16 + size], "little") == masked_crc32c(body)
        event = Event.FromString(body)
        found += [(event.step, value.tag, round(value.simple_value, 6)) for value in event.summary.value]
        place += 16 + size
    scalars = [item for item in found if not item[1].startswith("config")]
    assert scalars == [(10, "loss", 2.5), (10, "lr", 0.1), (20, "loss", 2.0)]


def chunks(data: bytes) -> Iterator[bytes]:
    """Records of a file of W&B's: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a record of its own, or the last part of one
            yield whole
            whole = b""


@pytest.mark.slow
def test_wandb_writes_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    from wandb.proto.wandb_internal_pb2 import Record

    tell(start_trackers({"wandb": "olmo2"}, RUN)[0])
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")

    def written() -> list[Any]:
        return [Record.FromString(data) for data in chunks(file.read_bytes())]

    # W&B's own process writes the file, some of it after `finish` has returned.
    deadline = time.monotonic() + 30
    while not any(record.WhichOneof("record_type") == "exit" for record in written()):
        assert time.monotonic() < deadline, "the run's end is written"
        time.sleep(0.05)
    history, name = [], ""
    for record in written():
        name = record.run.display_name or name
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            history.append({key: value for key, value in items.items() if key in ("loss", "lr", "_step")})
    assert name == RUN.label
    assert history == [{"_step": 10, "loss": 2.5, "lr": 0.1}, {"_step": 20, "loss": 2.0}]


def test_mlflow_has_the_metrics(tmp_path: Path):
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{tmp_path}/runs.db"
    tell(mlflow(address, RUN))
    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name("olmo2")
    (run,) = client.search_runs([experiment.experiment_id])
    assert [(item.step, item.value) for item in client.get_metric_history(run.info.run_id, "loss")] == [
        (10, 2.5),
        (20, 2.0),
    ]
    assert run.data.params["schedule.length"] == "30" and run.info.status == "FINISHED"


def test_trackio_is_given_a_project_the_finite_metrics_and_an_end(monkeypatch: pytest.MonkeyPatch):
    """In place of the package, which cannot be installed next to ours: it asks for Pillow before 13."""
    calls: list[tuple[str, Any]] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            calls.append(("log", (step, values)))

        def finish(self) -> None:
            calls.append(("finish", None))

    def init(**asked: Any) -> Run:
        calls.append(("init", asked))
        return Run()

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=init))
    tell(trackio("olmo2", RUN))
    assert calls == [
        ("init", {"project": "olmo2", "name": f"anneal-42-{RUN.id}", "config": RUN.config}),
        ("log", (10, {"loss": 2.5, "lr": 0.1})),
        ("log", (20, {"loss": 2.0})),
        ("finish", None),
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("trackio") is None, reason="trackio asks for Pillow before 13; ours is later"
)
def test_trackio_takes_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    tell(trackio("olmo2", RUN))
    assert list(tmp_path.glob("*.db"))


def test_a_tracker_that_is_not_installed_is_named_before_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TRACKERS, "mlflow", ("no_such_package", mlflow))
    with pytest.raises(ValueError, match=r"pip install 'olmo2-recipe\[mlflow\]'"):
        check_trackers({"mlflow": "x"})


def test_a_tracker_that_fails_is_told_once_and_ends_nothing(tmp_path: Path):
    told: list[Event] = []

    def broken() -> list[Any]:
        raise ConnectionError("nobody there")

    reporter = Reporter(
        total, lambda label, event: told.append(event), StagePage("total", Store(str(tmp_path))), broken
    )
    for event in EVENTS[:2]:
        reporter._tell_trackers(event)
    assert [event.text for event in told if isinstance(event, Warned)] == [
        "a tracker does not answer (ConnectionError: nobody there); the work goes on"
    ]


def test_what_cannot_be_drawn_is_left_out():
    assert finite({"a": 1, "b": float("inf"), "c": float("nan")}) == {"a": 1.0}
