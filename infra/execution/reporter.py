"""Carries a stage's events to the terminal's listener and to the dashboard: progress bar, live page, tables, texts, logs."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast
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

from infra.events import (
    Ended,
    Event,
    Failed,
    LabelledListener,
    Listener,
    LogKept,
    Markdown,
    Metrics,
    Progress,
    TableRows,
    Warned,
)
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
        self,
        stage: Stage,
        listener: LabelledListener | None,
        page: StagePage,
        track: Callable[[], list[Listener]] = list,
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

    def __call__(self, event: Event) -> None:
        if self._listener is not None:
            self._listener(self._stage.label, event)
        self._tell_trackers(event)
        with self._lock, self._going_on("the dashboard"):
            self._publish(event)

    def _publish(self, event: Event) -> None:
        label = self._stage.label
        match event:
            case Progress():
                self._publish_progress(event)
            case Metrics():
                self._note_metrics(event)
            case Markdown(key, text):
                create_markdown_artifact(text, key=slug(f"{label}-{key}"))
            case TableRows(key, rows):
                create_table_artifact([dict(row) for row in rows], key=slug(f"{label}-{key}"))
            case LogKept(place):
                get_run_logger().error("%s failed; full traceback: %s", label, place)
            case Warned(text):
                get_run_logger().warning("%s: %s", label, text)
            case Failed(error) if not isinstance(error, Interrupted):
                self._page.error = error
                self._publish_page()

    def _tell_trackers(self, event: Event) -> None:
        """Hand the event on to the trackers. A stage has a run with them from its first metrics on."""
        if self._trackers is None and not isinstance(event, Metrics):
            return
        with self._going_on("a tracker"):
            if self._trackers is None:
                self._trackers = []
                self._trackers = self._track()
            for tracker in self._trackers:
                tracker(event)

    @contextmanager
    def _going_on(self, who: str) -> Iterator[None]:
        """What a client of theirs raises (a server that restarts, one that is busy) is told once and ends nothing."""
        try:
            yield
        except Exception as error:
            # Broad, for no two trackers raise the same, nor do Prefect's client, its HTTP library and its database.
            self._warn_once(who, f"{who} does not answer ({type(error).__name__}: {error}); the work goes on")

    def _warn_once(self, about: str, text: str) -> None:
        if about in self._silent:
            return
        self._silent.add(about)
        if self._listener is not None:
            self._listener(self._stage.label, Warned(text))
        else:
            # Not the run's own logger, which is the dashboard's.
            logging.getLogger(__name__).warning("%s: %s", self._stage.label, text)

    def _publish_progress(self, event: Progress) -> None:
        description, done, total, unit = event.description, event.done, event.total, event.unit
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
            self._published[description] = now
            self._publish_page()
        elif done >= total or now - self._published[description] >= PUBLISH_SECONDS:
            # Noted before: where nobody answers, a wait for them is not repeated at each event.
            self._published[description] = now
            update_progress_artifact(self._bars[description], percent)
            self._publish_page_in_time()

    def _note_metrics(self, event: Metrics) -> None:
        self._page.step, self._page.metrics = event.step, dict(event.values)
        if "loss" in event.values:
            self._page.loss.add(event.step, float(event.values["loss"]))
        self._publish_page_in_time()

    def _publish_page_in_time(self) -> None:
        if time.monotonic() - self._page_time >= PAGE_SECONDS:
            self._publish_page()

    def _publish_page(self) -> None:
        """Make the stage's page, or bring it up to date. Lists of artifacts then have one entry for each run of a stage."""
        # Noted before, as for the bars.
        self._page_time = time.monotonic()
        try:
            text = self._page.text()
        except Exception as error:
            # A training of days must not end because its page has a defect, and nobody should take that for a silent dashboard.
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error}, in {Path(where.filename).name}:{where.lineno}"
            self._warn_once("page", f"the page of this stage cannot be written ({said}); the work goes on")
            return
        if self._page_id is None:
            self._page_id = cast(UUID, create_markdown_artifact(text, key=page_key(self._stage.label)))
        else:
            with get_client(sync_client=True) as client:
                client.update_artifact(self._page_id, ArtifactUpdate(data=text))

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
            self._listener(self._stage.label, Ended(outcome))
        self._tell_trackers(Ended(outcome))
        if not outcome.reused:
            self._page.record = outcome.record
            with self._lock, self._going_on("the dashboard"):
                self._publish_page()
