"""Runs stages as Prefect tasks and phases as Prefect flows: one task per stage, small values between them, no second cache.

Our record alone decides what is reused (Prefect's own cache stays off); a reused stage ends in a state named Reused.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from prefect import Task, flow, get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled, Completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from infra.compute.processes import stop_stages
from infra.events import Listener
from infra.execution.attempt import Caller, Outcome, run_stage
from infra.execution.markdown import code, escaped, slug
from infra.execution.pages import ways_on
from infra.records.record import Record
from infra.session import Pending, Session
from infra.stage import Stage
from infra.stopping import Interrupted, check_stopping
from infra.storage.store import Store

R = TypeVar("R")

PUBLISH_SECONDS = 2.0
"""At most this often does a progress bar go to the dashboard."""
TELL_SECONDS = 10.0
"""How long a cancelled run waits for its stages to end, and for the news of it to be sent."""


_submitted: ContextVar[list[PrefectFuture]] = ContextVar("olmo2_submitted")


class PrefectEngine:
    """The engine of a run: each stage is one Prefect task, each phase one Prefect flow."""

    def stage(self, stage: Stage, session: Session, arguments: dict[str, Any]) -> PrefectFuture | Pending:
        """Hand a stage to Prefect; its future resolves to the artifact."""
        if session.is_left_out(stage.label):
            return Pending(stage.label, stage.result_kind)
        task = Task(
            _stage_task, name=stage.name, task_run_name=stage.label, cache_policy=NO_CACHE, persist_result=False
        )
        future = task.submit(stage, session, arguments)
        _submitted.get().append(future)
        return future

    def phase(self, name: str, function: Callable[[], R]) -> R:
        """Run a phase's function as a Prefect flow.

        It waits for all the stages it called, so that one failure does not stop its neighbours. Then it returns the result with
        the promises in it resolved, or raises the first error.
        """

        # A closure, so that artifacts and configs need not travel as flow parameters.
        def run() -> R:
            token = _submitted.set([])
            try:
                result = function()
                wait_for_all(_submitted.get())
            except TerminationSignal:
                # So Prefect tells a SIGTERM. It waits for the stages' threads next, so they have to be told too.
                stop_stages()
                _tell_ends(_submitted.get())
                raise
            finally:
                _submitted.reset(token)
            return _resolved(result)

        threads = cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=64))
        as_flow = flow(name=name, flow_run_name=name, task_runner=threads, persist_result=False)
        # A heartbeat thread would add a second to the end of each phase; our leases tell who lives.
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            return as_flow(run)()

    def given(self, label: str, record: Record) -> None:
        """Nothing is to be done for an artifact that exists."""


def _stage_task(stage: Stage, session: Session, arguments: dict[str, Any]):
    reporter = Reporter(stage, session.listener)
    context = FlowRunContext.get()
    flow_run = str(context.flow_run.id) if context is not None and context.flow_run is not None else ""
    slots, count = (session.waiting, 1) if stage.waits else (session.cores, session.execution.stage_cores(stage.name))
    with slots.take(count), _device(stage, session) as device:
        try:
            check_stopping()  # a request may have come while this waited
            reporter("begin")
            outcome = run_stage(stage, session, arguments, reporter, Caller(flow_run, device))
        except Interrupted as error:
            reporter("failed", error)
            return Cancelled(message=str(error))
        except BaseException as error:  # whatever ends a stage, interrupts too, is told and goes on to Prefect
            reporter("failed", error)
            raise
    reporter.finish(outcome, session.store)
    if outcome.reused:
        return Completed(name="Reused", message=f"made {outcome.record.created}", data=outcome.artifact)
    return outcome.artifact


@contextmanager
def _device(stage: Stage, session: Session) -> Iterator[str]:
    """The GPU that a stage has to itself on this machine; none where the recipe names one, and for those that need none.

    Ray gives out the GPUs of a group and of shards. It knows nothing of those taken here, so they take all.
    """
    execution = session.execution
    compute = execution.compute(stage.name)
    if not stage.process or execution.device != "cuda" or execution.cluster:
        yield ""
        return
    in_ray = compute.parallel.workers > 1 or (stage.sharded and execution.stage_generation(stage.name) == "local")
    with session.devices.take(together=in_ray) as number:
        yield "" if in_ray else f"cuda:{number}"


class Reporter:
    """Carries a stage's events to the terminal's listener and to the dashboard, whose absence hinders no work."""

    def __init__(self, stage: Stage, listener: Listener | None):
        self._stage = stage
        self._listener = listener
        self._bars: dict[str, Any] = {}
        self._published: dict[str, float] = {}
        self._losses: list[float] = []
        self._lock = threading.Lock()
        self._silent = False

    def __call__(self, kind: str, *values: Any) -> None:
        if self._listener is not None:
            self._listener(self._stage.label, kind, *values)
        with self._lock, self._going_on():
            if kind == "progress":
                self._publish_progress(*values)
            elif kind == "metrics":
                self._losses.append(float(values[1].get("loss", float("nan"))))
            elif kind == "markdown":
                create_markdown_artifact(values[1], key=slug(f"{self._stage.label}-{values[0]}"))
            elif kind == "log":
                get_run_logger().error("%s failed; full traceback: %s", self._stage.label, values[0])
            elif kind == "warning":
                get_run_logger().warning("%s: %s", self._stage.label, values[0])
            elif kind == "table":
                create_table_artifact(values[1], key=slug(f"{self._stage.label}-{values[0]}"))

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """What the dashboard's client raises (a server that restarts, one that is busy) is told once and ends nothing."""
        try:
            yield
        except Exception as error:
            text = f"the dashboard does not answer ({type(error).__name__}: {error}); the work goes on"
            if self._silent:
                return
            self._silent = True
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
        if description not in self._bars:
            key = slug(f"{self._stage.label}-progress")
            text = f"{self._stage.label}: {description} ({total:,.0f} {unit})"
            self._bars[description] = create_progress_artifact(percent, key=key, description=text)
        elif done >= total or now - self._published[description] >= PUBLISH_SECONDS:
            update_progress_artifact(self._bars[description], percent)
        else:
            return
        self._published[description] = now

    def finish(self, outcome: Outcome, store: Store) -> None:
        """Tell the end, and leave a summary of the artifact in the dashboard."""
        if self._listener is not None:
            self._listener(self._stage.label, "end", outcome)
        if not outcome.reused:
            with self._going_on():
                text = summary(outcome.record, self._losses) + ways_on(store, outcome.record)
                create_markdown_artifact(text, key=slug(f"{self._stage.label}-artifact"))


def summary(record: Record, losses: list[float]) -> str:
    """A stage's result as Markdown: facts, cost, where it is."""
    lines = [
        f"## {escaped(record.label)}",
        "",
        f"{code(record.address)} in {record.seconds:,.1f} s",
        "",
        "| fact | value |",
        "|---|---|",
    ]
    for name, value in record.facts.items():
        text = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        lines.append(f"| {escaped(name)} | {escaped(text[:200])} |")
    if len(losses) > 1:
        lines += ["", f"loss {losses[0]:.3f} `{sparkline(losses)}` {losses[-1]:.3f}"]
    return "\n".join(lines)


def sparkline(values: list[float], width: int = 60) -> str:
    """A curve in block characters, averaged into at most `width` columns."""
    columns = [values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width)]
    means = [sum(column) / len(column) for column in columns if column]
    low, high = min(means), max(means)
    blocks = "▁▂▃▄▅▆▇█"
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((mean - low) * scale)] for mean in means)


def _tell_ends(futures: list[PrefectFuture]) -> None:
    """Wait until the server knows how the stages ended: Prefect ends this process next, and what is not sent is lost.

    Without this a stage of a cancelled run would be shown as running for ever.
    """
    deadline = time.monotonic() + TELL_SECONDS
    for future in futures:
        future.wait(timeout=max(0.0, deadline - time.monotonic()))
    EventsWorker.drain_all(timeout=TELL_SECONDS)


def wait_for_all(futures: list[PrefectFuture]) -> None:
    """Wait for every stage, then raise the error of the first that failed of itself (not for want of its inputs)."""
    for future in futures:
        future.wait()
    failed = [future for future in futures if not future.state.is_completed()]
    for future in sorted(failed, key=lambda future: future.state.name == "NotReady"):
        future.result()


def _resolved(value: Any) -> Any:
    if isinstance(value, PrefectFuture):
        return value.result()
    if isinstance(value, dict):
        return {name: _resolved(member) for name, member in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_resolved(member) for member in value))
    if isinstance(value, list | tuple):
        return type(value)(_resolved(member) for member in value)
    return value
