"""What stages tell the dashboard. Oracle: the work goes on where there is none."""

from pathlib import Path
from typing import Any

from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from infra.events import Event, Metrics, Progress, TableRows, Warned
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


def test_a_page_that_cannot_be_written_is_told_as_such_and_ends_nothing(tmp_path: Path) -> None:
    """A metric that is no number: called a dashboard that does not answer, nobody would look for the defect here."""
    told: list[Event] = []
    reporter = Reporter(total, lambda _, event: told.append(event), StagePage("total", Store(str(tmp_path))))
    values: dict[str, Any] = {"accuracy": "high"}
    reporter(Metrics(1, values))
    reporter(Metrics(2, values))
    assert [type(event) for event in told] == [Metrics, Warned, Metrics]
    (warning,) = [event.text for event in told if isinstance(event, Warned)]
    assert "the page of this stage cannot be written (ValueError: " in warning and ".py:" in warning
