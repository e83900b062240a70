"""Runs stages as Prefect tasks and phases as Prefect flows: one task per stage, small values between them, no second cache.

Our record alone decides what is reused (Prefect's own cache stays off); a reused stage ends in a state named Reused.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar, cast

from prefect import Task, flow
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled, Completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from infra.compute.cordoning import unfit_slots
from infra.compute.processes import stop_stages
from infra.events import Failed
from infra.execution.approval import check_approved
from infra.execution.asking import ask_on_dashboard
from infra.execution.attempt import Caller, attempting
from infra.execution.plan import kept_work
from infra.execution.reporter import Reporter
from infra.execution.stage_page import StagePage
from infra.execution.tracking import Tracked, start_trackers
from infra.records.artifact import Artifact
from infra.records.record import Record, identity
from infra.session import Arguments, HeldDevice, Pending, Session
from infra.stage import Stage
from infra.stopping import Interrupted, check_stopping

R = TypeVar("R")

TELL_SECONDS = 16.0
"""How long a cancelled run waits for its stages to end, and for the news of it to be sent."""


_submitted: ContextVar[list[PrefectFuture]] = ContextVar("olmo2_submitted")


class PrefectEngine:
    """The engine of a run: each stage is one Prefect task, each phase one Prefect flow."""

    def __init__(self) -> None:
        self._labels: dict[str, str] = {}  # address of an artifact -> label of the stage that gave it
        self._reporters: dict[str, Reporter] = {}

    def reporter(self, stage: Stage, session: Session, arguments: Arguments) -> Reporter:
        """Who tells of a stage whose inputs exist; the pages of these name it from now on."""
        call = stage.sort(arguments)
        inputs = [item for _, item in call.flat() if isinstance(item, Artifact)]
        found = [(self._labels.get(item.address, item.stage), item.id) for item in inputs]
        for label, _ in found:
            if label in self._reporters:
                self._reporters[label].used_by(stage.label)
        page = StagePage(stage.label, session.store, session.again, list(dict.fromkeys(found)))
        run = Tracked(stage.label, identity(stage.name, stage.version, call.config, call.records()), call.config)
        track = partial(start_trackers, session.execution.track, run)
        reporter = self._reporters[stage.label] = Reporter(stage, session.listener, page, track)
        return reporter

    def made(self, label: str, address: str) -> None:
        """Remember which stage gave an artifact."""
        self._labels[address] = label

    def taker(self, stage: Stage, session: Session) -> Callable[[Stage, Session, Arguments], PrefectFuture | Pending]:
        """The `submit` of a Prefect task, whose future resolves to the artifact; for a stage that is left out, what says so."""
        if session.is_left_out(stage.label):
            return _left_out
        # Without Prefect's cache and result files: the store alone says what exists.
        return Task(
            _stage_task, name=stage.name, task_run_name=stage.label, cache_policy=NO_CACHE, persist_result=False
        ).submit

    def promised(self, promise: object) -> None:
        """Let the phase wait for a stage that was submitted."""
        if isinstance(promise, PrefectFuture):
            _submitted.get().append(promise)

    def phase(self, name: str, function: Callable[[], R]) -> Callable[[], R]:
        """The Prefect flow of a phase's function.

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
        return flow(name=name, flow_run_name=name, task_runner=threads, persist_result=False)(run)

    def given(self, label: str, record: Record) -> None:
        """Nothing is to be done for an artifact that exists."""
        self.made(label, record.address)


@contextmanager
def without_heartbeats() -> Iterator[None]:
    """Flows started inside send none: a heartbeat thread would add a second to the end of each phase, and our leases tell
    who lives.
    """
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _left_out(stage: Stage, session: Session, arguments: Arguments) -> Pending:
    return Pending(stage.label, stage.result_kind)


def _stage_task(stage: Stage, session: Session, arguments: Arguments):
    engine = session.engine
    assert isinstance(engine, PrefectEngine), "this engine has submitted it"
    reporter = engine.reporter(stage, session, arguments)
    context = FlowRunContext.get()
    flow_run = str(context.flow_run.id) if context is not None and context.flow_run is not None else ""
    slots, count = (session.waiting, 1) if stage.waits else (session.cores, session.execution.stage_cores(stage.name))
    try:
        check_approved(stage, session, arguments, ask_on_dashboard)  # before any core is taken: an answer may take days
        with slots.take(count), _device(stage, session) as held:
            check_stopping()  # a request may have come while this waited
            with attempting(stage, session, arguments, reporter, Caller(flow_run, held)) as attempts:
                # Called from here and not by `run_stage`: the task holds its cores directly above what uses them.
                for one in attempts.tries:
                    with one:
                        attempts.finished = attempts.run()
            outcome = attempts.outcome
    except Interrupted as error:
        kept = f"{error} ({kept_work(stage, session, arguments)})"
        reporter(Failed(error))
        reporter.stopped(kept)
        return Cancelled(message=kept)
    except BaseException as error:  # whatever ends a stage, interrupts too, is told and goes on to Prefect
        reporter(Failed(error))
        raise
    engine.made(stage.label, outcome.artifact.address)
    reporter.finish(outcome)
    if outcome.reused:
        return Completed(name="Reused", message=f"made {outcome.record.created}", data=outcome.artifact)
    return outcome.artifact


@contextmanager
def _device(stage: Stage, session: Session) -> Iterator[HeldDevice | None]:
    """The GPU that a stage has to itself on this machine; none where the recipe names one, and for those that need none.

    Ray gives out the GPUs of a group and of shards. It knows nothing of those taken here, so they take all.
    """
    execution = session.execution
    compute = execution.compute(stage.name)
    if not stage.process or execution.device != "cuda" or execution.cluster:
        yield None
        return
    in_ray = compute.parallel.workers > 1 or (stage.sharded and execution.stage_generation(stage.name) == "local")
    unfit = unfit_slots(session.store, session.devices.kind)
    with session.devices.take(together=in_ray, unfit=unfit) as held:
        yield None if in_ray else held


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
    # Stable sort: errors of stages that only lacked an input go to the end.
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
