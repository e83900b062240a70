"""A stage whose process runs out of memory goes on with half as much at once. The limit is the kernel's own."""

import json
import resource
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from infra.events import Event, Warned
from infra.execution.attempt import run_stage
from infra.execution.runners import HALVINGS
from infra.session import Session
from infra.settings import ComputeSettings, Execution
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Workspace
from tests.infra.stages_for_tests import Number, NumberConfig

ROOM_BYTES = 400 * 2**20
WINDOW_BYTES = 16 * 2**20
BATCH = 64


def train_hungrily(ws: Workspace, config: NumberConfig) -> Number:
    """Two steps that need memory for the windows that go through at once, with a save point in between."""
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, used + ROOM_BYTES))
    windows = ws.compute.windows_at_once(BATCH) or BATCH
    first = 0
    if (point := ws.resume_point()) is not None:
        first = point[0]
    for step in range(first, 2):
        torch.empty((windows if step else 1) * WINDOW_BYTES, dtype=torch.uint8).fill_(step)
        with ws.staging() as folder:
            (folder / "state.json").write_text(json.dumps(step))
            ws.save_point(step + 1, [folder / "state.json"])
    return ws.artifact(Number, value=windows)


hungry = stage(train_hungrily, name="hungry", version=1, process=True)


def run(folder: Path, **settings: Any) -> tuple[Any, list[Event]]:
    told: list[Event] = []
    execution = Execution(ray="off", **settings)
    outcome = run_stage(hungry, Session(Store(str(folder)), execution), hungry.bind(NumberConfig()), told.append)
    return outcome, told


def test_it_goes_on_from_its_save_point_with_half_as_much_at_once(tmp_path: Path):
    outcome, told = run(tmp_path)
    assert outcome.artifact.value == 16, "64 windows of 16 MB, and then 32, do not fit into 400 MB"
    assert outcome.record.notes["out_of_memory"] == 2
    assert outcome.record.resumed_from == "step 1"
    warnings = [event.text for event in told if isinstance(event, Warned)]
    assert len(warnings) == 2
    assert all("out of memory" in text and "half as much" in text for text in warnings)


def test_an_error_of_another_kind_ends_it_at_once(tmp_path: Path):
    refusing = stage(refuse, name="hungry", version=1, process=True)
    session = Session(Store(str(tmp_path)), Execution(ray="off"))
    with pytest.raises(ValueError, match="nothing to do with memory"):
        run_stage(refusing, session, refusing.bind(NumberConfig()), lambda event: None)


def refuse(ws: Workspace, config: NumberConfig) -> Number:
    raise ValueError("nothing to do with memory")


@pytest.mark.parametrize(
    ("given", "batch", "expected"),
    [
        (0, 64, [0, 32, 16, 8, 4, 2]),
        (12, 24, [12, 6, 3, 1, 1, 1]),
        (0, 6, [0, 3, 1, 1, 1, 1]),
        (5, 10, [5, 2, 1, 1, 1, 1]),
    ],
)
def test_what_is_halved_still_divides_the_batch(given: int, batch: int, expected: list[int]):
    compute, found = ComputeSettings(micro_instances=given), []
    for _ in range(HALVINGS + 1):
        found.append(compute.windows_at_once(batch))
        compute = compute.halved()
    assert found == expected
