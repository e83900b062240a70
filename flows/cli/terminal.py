"""Runs a recipe in a terminal: live bars, an orderly end on Ctrl-C or SIGTERM, and a clear word on how it ended."""

import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Literal, NotRequired, TypedDict

from rich.console import Console

from flows.cli.deferred_imports import import_deferred
from flows.cli.display import Display, EndedStage, reused_line
from flows.config.recipe_config import RecipeConfig
from flows.inspection.steps import TRAININGS
from flows.running.commands import resume_command, run_command
from flows.running.prefect_server import start_own_server
from flows.running.pricing import asking
from flows.running.readiness import refuse_stale
from flows.running.run import load_recipe, made_report, plan, running
from flows.running.sessions import listening, new_session
from infra.compute.processes import stop_stages
from infra.execution.approval import as_money
from infra.execution.plan import PlanRow
from infra.json_values import JsonObject
from infra.records.record import payload_at
from infra.stopping import Interrupted, wait_for_stop
from infra.storage.store import Store
from tasks.artifacts import Report


class RunEnding(TypedDict):
    """How a run ended, for programs."""

    ended: Literal["done", "failed", "interrupted"]
    store: str
    """Its URL."""
    stages: list[EndedStage]
    report: NotRequired[str | None]
    """Where the report's page is, if the run made or found one."""
    resume: NotRequired[str]
    """The command that goes on after a failure."""


@dataclass(frozen=True)
class RunRequest:
    """What a person asked of a recipe."""

    recipe: str
    store: str | None
    until: str | None
    rerun: list[str]
    overrides: list[str]
    cascade: bool = False

    def again(self, store: str) -> str:
        """The command that goes on with this run."""
        return run_command(self.recipe, store, self.until, self.rerun, self.overrides, cascade=self.cascade)

    def parameters(self, store: str) -> JsonObject:
        """The same as parameters of the flow that a form starts."""
        return asdict(self) | {"store": store}


@dataclass
class WatchedRun:
    """A run that a terminal watches."""

    flow: Callable[[], object] | None = None
    """The recipe as a flow, which the block calls; None where everything exists already."""
    made: object = None
    """What the flow returned."""
    ending: tuple[int, RunEnding] | None = None

    @property
    def ended(self) -> tuple[int, RunEnding]:
        """The exit code (0 done, 1 a stage failed, 130 Ctrl-C, 143 SIGTERM) and how the run ended, for programs."""
        assert self.ending is not None, "asked after the block"
        return self.ending


@contextmanager
def watched(console: Console, errors: Console, asked: RunRequest) -> Iterator[WatchedRun]:
    """Show a run that the block starts, end it in order, and say how it ended.

        with watched(console, errors, asked) as run:
            if run.flow:
                run.made = run.flow()

    The block's own error is told here and goes no further, unless no stage raised it. Raises RecipeError, before anything is
    started, for input that cannot be used.
    """
    config = load_recipe(asked.recipe, asked.overrides, asked.store)
    target = Store(config.execution.store)
    console.print(f"store {target.url}", style="dim", markup=False, highlight=False)
    target.check_writable()
    run, began = WatchedRun(), time.monotonic()
    # A dashboard that watches wants to see the run, even one that does nothing.
    if not asked.rerun and "PREFECT_API_URL" not in os.environ:
        rows = plan(config, asked.until)
        refuse_stale(rows)
        # An acceptance is written down by the engine that runs, so a run that accepts is never answered from the plan.
        if not config.execution.accept and all(row.action in ("reused", "left out") for row in rows):
            run.ending = 0, tell_all_reused(console, rows, target)
            yield run
            return
        if not config.execution.approve:
            _refuse_without_dashboard(config, rows)
    else:
        # Refuses a stage that the recipe does not have, as the plan does.
        new_session(config, asked.until, asked.rerun, cascade=asked.cascade)
    for number in _ENDING:
        signal.signal(number, _on_interrupt)
    how = (
        "resumes what is under way and makes what was rerun anew again"
        if asked.rerun
        else "resumes where each stage was"
    )
    interrupted = f"interrupted; the same command {how}"
    threading.Thread(target=_end_in_time, args=(errors, interrupted), daemon=True).start()
    # Where a cluster runs the stages, this process waits for them and never needs PyTorch, which is half of its memory.
    if not config.execution.cluster:
        import_deferred()
    # Prefect is imported here, since it takes seconds and a run without work does not need it.
    from flows.deployments import loaded_recipe

    with Display(console) as display, listening(display):
        try:
            start_own_server()
            again = asked.again(config.execution.store)
            with running(config, asked.until, asked.rerun, cascade=asked.cascade, again=again):
                run.flow = loaded_recipe(config, asked.parameters(config.execution.store))
                yield run
        except (KeyboardInterrupt, Interrupted):
            pass
        except Exception:
            # Whatever a stage may raise ends here, told below; anything else is our defect and keeps its traceback.
            if not display.failed and not wait_for_stop(0):
                raise
    # A request to stop goes before failures: stages that it ended are no errors.
    if wait_for_stop(0):
        errors.print(interrupted, style="yellow")
        run.ending = _exit_code(), _ending("interrupted", target, display.stages)
    elif display.failed:
        run.ending = 1, _tell_failed(errors, asked, target, display)
    else:
        counts = f"{display.ran} stages run, {display.reused} reused, {time.monotonic() - began:,.0f} s"
        run.ending = 0, _tell_done(console, counts, target, display.stages, made_report(run.made))
    if run.flow is None:
        # Stopped while the server started: the block is entered all the same, as it has to be, and has nothing to call.
        yield run


def _tell_failed(errors: Console, asked: RunRequest, store: Store, display: Display) -> RunEnding:
    """Say which stages failed, of what, and the command that resumes; and return it for programs."""
    _tell_failures(errors, display)
    failed = [failure.label for failure in display.failed]
    url = store.url
    again = resume_command(asked.recipe, url, asked.until, asked.rerun, asked.overrides, failed, cascade=asked.cascade)
    _tell_traces(errors, display, asked.recipe, url, asked.overrides)
    errors.print(f"What is done is kept. When the cause is mended, resume with: {again}", markup=False)
    return {**_ending("failed", store, display.stages), "resume": again}


def _tell_done(
    console: Console, counts: str, store: Store, stages: list[EndedStage], report: Report | None
) -> RunEnding:
    """Say how much was done and where the report is, and return it for programs."""
    console.print(counts, highlight=False)
    path = report_path(store, report.address) if report else None
    if path:
        console.print(f"report: {path}", highlight=False)
    return {**_ending("done", store, stages), "report": path}


def _ending(how: Literal["done", "failed", "interrupted"], store: Store, stages: list[EndedStage]) -> RunEnding:
    """How a run ended, for programs; stages stand as they ended."""
    return {"ended": how, "store": store.url, "stages": stages}


def _refuse_without_dashboard(config: RecipeConfig, rows: list[PlanRow]) -> None:
    """Raise ValueError, before hours of work, for stages that need an approval when nobody could be asked."""
    waiting = ", ".join(f"{label} ({as_money(price.money)})" for label, price in asking(config, rows).items())
    if waiting:
        raise ValueError(
            f"above execution.approve_above={config.execution.approve_above:,g} and not approved: {waiting}. Say --approve "
            "'why', which is kept in the store; or start `olmo2 dashboard` and give the same command again: it waits there"
        )


def tell_all_reused(console: Console, rows: list[PlanRow], store: Store) -> RunEnding:
    """Say that there is nothing to do, and return it for programs. This needs no Prefect server of its own."""
    reused = [row for row in rows if row.artifact is not None]
    for row in reused:
        console.print(reused_line(row.label, row.id), style="dim", markup=False, highlight=False)
    reports = [row.artifact for row in reused if isinstance(row.artifact, Report)]
    stages: list[EndedStage] = [{"label": row.label, "action": "reused", "id": row.id} for row in reused]
    return _tell_done(console, f"0 stages run, {len(reused)} reused", store, stages, reports[-1] if reports else None)


def report_path(store: Store, address: str) -> str:
    """Where a person finds the report's page."""
    file = f"{payload_at(store, address)}/report.html"
    return store.full(file) if store.is_local else f"{store.url}/{file}"


_ENDING = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what kill, timeout and batch systems send. While a flow runs Prefect takes SIGTERM, ends the stages
(`infra.execution.prefect_engine`) and hands it on to us."""
ENDING_SECONDS = 20.0
"""After a signal, an end that takes longer is cut short; Slurm kills 30 s after SIGTERM, and a person at a terminal waits."""
_interrupted: list[int] = []


def _on_interrupt(number: int, _: FrameType | None) -> None:
    _interrupted.append(number)
    if len(_interrupted) > 1:
        # A second one does not wait for anything, threads neither: what is committed is safe at any moment, and what this
        # process started ends with it.
        Console().show_cursor()
        os._exit(_exit_code())
    stop_stages()
    # Prefect and the stages' threads hear of it by the event; this thread by the exception.
    raise KeyboardInterrupt


def _exit_code() -> int:
    """What shells say of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM (which Prefect may keep to itself)."""
    return 128 + (_interrupted[0] if _interrupted else signal.SIGTERM)


def _end_in_time(errors: Console, interrupted: str) -> None:
    """End the process in time after a signal: one that goes to a whole group may end what Prefect then asks for minutes.

    What is committed is safe at any moment, and what this process started ends with it.
    """
    wait_for_stop()
    time.sleep(ENDING_SECONDS)
    errors.print(interrupted, style="yellow")
    # A live bar hides the cursor, and this exit runs no clean-up.
    Console().show_cursor()
    os._exit(_exit_code())


def _tell_traces(errors: Console, display: Display, recipe: str, store: str, overrides: list[str]) -> None:
    """Say which command names the documents of a batch that gave values that are not finite."""
    sets = [word for item in overrides for word in ("--set", item)]
    for failure in display.failed:
        # Only trainings on a mix can be traced from a step to documents.
        if isinstance(failure.error, FloatingPointError) and failure.label.partition(":")[0] in TRAININGS:
            words = ["olmo2", "trace", recipe, "--stage", failure.label, "--store", store, *sets]
            errors.print(f"the documents of that step: {shlex.join(words)} --step STEP", markup=False)


def _tell_failures(errors: Console, display: Display) -> None:
    for failure in display.failed:
        errors.print(
            f"stage {failure.label} failed: {type(failure.error).__name__}: {failure.error}",
            style="red",
            markup=False,
        )
        if failure.log:
            errors.print(f"  full traceback: {failure.log}", markup=False)
