"""`olmo2 run` in a terminal: the recipe flow with live bars, an orderly Ctrl-C, and a clear end."""

import signal
import time
from types import FrameType

from rich.console import Console

from flows.deployments import recipe as recipe_flow
from flows.display import Display
from flows.run import listening, load_recipe, new_session
from infra.processes import Interrupted, stop_stages
from infra.store import Store


def run_in_terminal(
    console: Console,
    errors: Console,
    recipe: str,
    store: str | None,
    until: str | None,
    rerun: list[str],
    overrides: list[str],
    *,
    cascade: bool,
) -> int:
    """Run a recipe and say how it ended; returns the exit code (0 done, 1 a stage failed, 130 interrupted).

    Raises RecipeError, before anything is started, for input that cannot be used.
    """
    config = load_recipe(recipe, overrides, store)
    new_session(config, until, rerun, cascade=cascade).store.check_writable()
    signal.signal(signal.SIGINT, _on_interrupt)
    began = time.monotonic()
    with Display(console) as display, listening(display):
        try:
            address = recipe_flow(recipe, config.execution.store, until, rerun, overrides, cascade)
        except (KeyboardInterrupt, Interrupted):
            address = None
        except Exception:
            # Whatever a stage may raise ends here, told below; anything else is our defect and keeps its traceback.
            if not display.failed:
                raise
            address = None
    if _interrupted:
        errors.print("interrupted; the same command resumes where each stage was", style="yellow")
        return 130
    if display.failed:
        _tell_failures(errors, display, recipe, config.execution.store)
        return 1
    counts = f"{display.ran} stages run, {display.reused} reused, {time.monotonic() - began:,.0f} s"
    console.print(counts, highlight=False)
    if address:
        console.print(f"report: {report_path(Store(config.execution.store), address)}", highlight=False)
    return 0


def report_path(store: Store, address: str) -> str:
    """Where a person finds the report's page."""
    return store.full(f"{address}/report.html") if store.is_local else f"{store.url}/{address}/report.html"


_interrupted: list[int] = []


def _on_interrupt(number: int, _: FrameType | None) -> None:
    _interrupted.append(number)
    if len(_interrupted) > 1:
        # A second Ctrl-C does not wait for anything: what is committed is safe at any moment.
        raise SystemExit(130)
    stop_stages()
    raise KeyboardInterrupt


def _tell_failures(errors: Console, display: Display, recipe: str, store: str) -> None:
    for failure in display.failed:
        errors.print(
            f"stage {failure.label} failed: {type(failure.error).__name__}: {failure.error}",
            style="red",
            markup=False,
        )
        if failure.log:
            errors.print(f"  full traceback: {failure.log}", markup=False)
    errors.print(
        f"What is done is kept. When the cause is mended, resume with: olmo2 run {recipe} --store {store}",
        markup=False,
    )
