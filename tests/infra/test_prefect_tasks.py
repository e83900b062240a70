"""What stages tell the dashboard. Oracle: the work goes on where there is none."""

from pathlib import Path
from typing import Any

from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from infra.execution.reporter import Reporter
from infra.execution.stage_page import StagePage
from infra.storage.store import Store
from tests.infra.stages_for_tests import total


def test_a_dashboard_that_is_gone_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    """Nobody listens on the discard port."""
    told: list[tuple[Any, ...]] = []
    reporter = Reporter(total, lambda *event: told.append(event), StagePage("total", Store(str(tmp_path))))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        reporter("progress", "train", 0.0, 10.0, "steps")
        reporter("table", "ranking", [{"a": 1}])
        reporter("progress", "train", 10.0, 10.0, "steps")
    warnings = [event[2] for event in told if event[1] == "warning"]
    assert len(warnings) == 1
    assert "the dashboard does not answer" in warnings[0]
    assert [event[1] for event in told if event[1] != "warning"] == ["progress", "table", "progress"]
