"""Carries a stage's events to the terminal's listener and to the dashboard: progress bar, live page, tables, texts, logs."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from infra.events import Listener
from infra.execution.attempt import Outcome
from infra.execution.markdown import slug
from infra.execution.stage_page import StagePage, page_key
from infra.stage import Stage
from infra.stopping import Interrupted

PUBLISH_SECONDS = 2.0
"""At most this often does a progress bar go to the dashboard."""
PAGE_SECONDS = 10.0
"""At most this often does a stage's page."""


class Reporter:
    """Carries a stage's events to the terminal's listener and to the dashboard, whose absence hinders no work."""

    def __init__(
        self, stage: Stage, listener: Listener | None, page: StagePage, track: Callable[[], list[Listener]] = list
    ):
        self._stage = stage
        self._listener = listener
        self._page = page
        self._track = track
        self._trackers: list[Listener] | None = None
        self._page_id: UUID | None = None
        self._page_time = 0.0
        self._bars: dict[str, UUID] = {}
        self._published: dict[str, float] = {}
        self._lock = threading.Lock()
        self._silent: set[str] = set()

    def __call__(self, kind: str, *values: Any) -> None:
        if self._listener is not None:
            self._listener(self._stage.label, kind, *values)
        self._tell_trackers(kind, *values)
        # Another stage's thread may call `used_by` at the same time.
        with self._lock, self._going_on("the dashboard"):
            if kind == "progress":
                self._publish_progress(*values)
            elif kind == "metrics":
                self._note_metrics(*values)
            elif kind == "markdown":
                create_markdown_artifact(values[1], key=slug(f"{self._stage.label}-{values[0]}"))
            elif kind == "log":
                get_run_logger().error("%s failed; full traceback: %s", self._stage.label, values[0])
            elif kind == "warning":
                get_run_logger().warning("%s: %s", self._stage.label, values[0])
            elif kind == "table":
                create_table_artifact(values[1], key=slug(f"{self._stage.label}-{values[0]}"))
            elif kind == "failed" and not isinstance(values[0], Interrupted):
                self._page.error = values[0]
                self._publish_page()

    def _tell_trackers(self, kind: str, *values: Any) -> None:
        """Hand the event on to the trackers. A stage has a run with them from its first metrics on."""
        if self._trackers is None and kind != "metrics":
            return
        with self._going_on("a tracker"):
            if self._trackers is None:
                # Empty first: a tracker that fails to start is not tried again at every event.
                self._trackers = []
                self._trackers = self._track()
            for tracker in self._trackers:
                tracker(kind, *values)

    @contextmanager
    def _going_on(self, who: str) -> Iterator[None]:
        """What a client of theirs raises (a server that restarts, one that is busy) is told once and ends nothing."""
        try:
            yield
        except Exception as error:
            text = f"{who} does not answer ({type(error).__name__}: {error}); the work goes on"
            if who in self._silent:
                return
            self._silent.add(who)
            if self._listener is not None:
                self._listener(self._stage.label, "warning", text)
            else:
                # Not the run's own logger, which is the dashboard's.
                logging.getLogger(__name__).warning("%s: %s", self._stage.label, text)

    def _publish_progress(self, description: str, done: float, total: float | None, unit: str) -> None:
        if not total:
            return
        percent = min(100.0, 100.0 * done / total)
        now = time.monotonic()
        self._page.progress = (description, done, total, unit)
        if description not in self._bars:
            key = slug(f"{self._stage.label}-progress")
            text = f"{self._stage.label}: {description} ({total:,.0f} {unit})"
            # Called without an event loop, Prefect's client waits and returns the id itself.
            self._bars[description] = cast(UUID, create_progress_artifact(percent, key=key, description=text))
            self._publish_page()
        elif done >= total or now - self._published[description] >= PUBLISH_SECONDS:
            update_progress_artifact(self._bars[description], percent)
            self._publish_page_in_time()
        else:
            return
        self._published[description] = now

    def _note_metrics(self, step: int, metrics: dict[str, float]) -> None:
        self._page.step, self._page.metrics = step, dict(metrics)
        if "loss" in metrics:
            self._page.loss.add(step, float(metrics["loss"]))
        self._publish_page_in_time()

    def _publish_page_in_time(self) -> None:
        if time.monotonic() - self._page_time >= PAGE_SECONDS:
            self._publish_page()

    def _publish_page(self) -> None:
        """Make the stage's page, or bring it up to date. Lists of artifacts then have one entry for each run of a stage."""
        text = self._page.text()
        if self._page_id is None:
            self._page_id = cast(UUID, create_markdown_artifact(text, key=page_key(self._stage.label)))
        else:
            with get_client(sync_client=True) as client:
                client.update_artifact(self._page_id, ArtifactUpdate(data=text))
        self._page_time = time.monotonic()

    def used_by(self, label: str) -> None:
        """Tell on the page, if there is one, that a stage takes this one's artifact."""
        self._page.used_by.append(label)
        if self._page_id is not None:
            with self._lock, self._going_on("the dashboard"):
                self._publish_page()

    def stopped(self, kept: str) -> None:
        """Tell on the page that the stage was stopped, and what is kept."""
        self._page.stopped = kept
        with self._lock, self._going_on("the dashboard"):
            self._publish_page()

    def finish(self, outcome: Outcome) -> None:
        """Tell the end, and leave a summary of the artifact in the dashboard."""
        if self._listener is not None:
            self._listener(self._stage.label, "end", outcome)
        self._tell_trackers("end", outcome)
        if not outcome.reused:
            self._page.record = outcome.record
            with self._lock, self._going_on("the dashboard"):
                self._publish_page()
