"""What stages tell the dashboard. Oracle: the work goes on where there is none."""

from pathlib import Path

from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from infra.events import Event, Progress, TableRows, Warned
from infra.execution.reporter import Reporter
from infra.execution.stage_page import StagePage
from infra.storage.store import Store
from tests.infra.stages_for_tests import total


def test_a_dashboard_that_is_gone_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    """Nobody listens on the discard port."""
    told: list[Event] = []
    reporter = Reporter(total, lambda label, event: told.append(event), StagePage("total", Store(str(tmp_path))))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        reporter(Progress("train", 0.0, 10.0, "steps"))
        reporter(TableRows("ranking", [{"a": 1}]))
        reporter(Progress("train", 10.0, 10.0, "steps"))
    warnings = [event.text for event in told if isinstance(event, Warned)]
    assert len(warnings) == 1
    assert "the dashboard does not answer" in warnings[0]
    assert [type(event) for event in told if not isinstance(event, Warned)] == [Progress, TableRows, Progress]
