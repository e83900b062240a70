"""Runs and plans of a recipe: opens the session, works out what `until` and `rerun` mean on this recipe's graph."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from flows.config.files import RecipeError, explain, load, nearest
from flows.config.recipe_config import CandidateConfig, RecipeConfig, resolved_candidate
from flows.config.rules import check_device, doubts
from flows.config.stages import COMPUTING, STAGES
from flows.evaluation import evaluate_some
from flows.inspection.artifacts import find_record
from flows.microanneal import sweep
from flows.recipe import recipe
from flows.running.readiness import asked_models, check_endpoints, check_generation
from flows.starting import GIVEN, check_base, checked_start
from infra.compute.processes import Interrupted
from infra.events import Listener
from infra.execution.plan import above, below
from infra.ray_address import check_ray
from infra.records.stale import stale_error
from infra.session import PlanRow, Session, matches, open_session
from infra.storage.store import Store
from tasks.artifacts import Checkpoint, Ranking, Report, Scores

_listener: ContextVar[Listener | None] = ContextVar("olmo2_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Runs started inside tell this listener; a flow run by the dashboard's worker has none."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class StageError(RuntimeError):
    """Stages failed: which, and of what."""


@contextmanager
def naming_failures() -> Iterator[None]:
    """Errors of stages are raised with their stages' names, unless a listener is there, which tells them itself."""
    if _listener.get() is not None:
        yield
        return
    failed: dict[str, BaseException] = {}

    def listen(label: str, kind: str, *values: Any) -> None:
        if kind == "failed":
            failed[label] = values[0]

    try:
        with listening(listen):
            yield
    except Exception as error:
        # Whatever a stage may raise, but a request to stop; what no stage raised says itself where it is from.
        if not failed or isinstance(error, Interrupted):
            raise
        said = (f"stage {label} failed: {type(cause).__name__}: {cause}" for label, cause in failed.items())
        raise StageError("; ".join(said)) from error


def load_recipe(recipe: str, overrides: list[str] | None = None, store: str | None = None) -> RecipeConfig:
    """A validated recipe. The store is, in this order: the argument, OLMO2_STORE, the recipe's `execution.store`."""
    config = load(RecipeConfig, recipe, overrides).resolved()
    url = store or os.environ.get("OLMO2_STORE") or config.execution.store
    config = config.model_copy(update={"execution": config.execution.model_copy(update={"store": url})})
    return checked_start(config, Store(url)) if config.start else config


def plan(config: RecipeConfig, until: str | None = None, rerun: list[str] | None = None) -> list[PlanRow]:
    """What a run would do, stage by stage; runs nothing."""
    return plan_rows(config, new_session(config, until, rerun or []))


def run(
    config: RecipeConfig, until: str | None = None, rerun: list[str] | None = None, *, cascade: bool = False
) -> Report | None:
    """Run a recipe: reuse, resume or run every stage. Returns the report, or None when `until` stops before it.

    `rerun` gives the named stages a new generation; with `cascade`, everything below them too.
    """
    with open_session(new_session(config, until, rerun or [], cascade=cascade)) as session:
        _check_ready(config, session, recipe)
        result = recipe(config)
    return result if isinstance(result, Report) else None


def run_sweep(config: RecipeConfig, candidates: list[CandidateConfig]) -> Ranking:
    """Only what a micro-anneal sweep needs, with candidates of its own.

    Raises RecipeError when the recipe starts past the base, from which a sweep anneals, or cannot have these candidates.
    """
    check_base(config)
    try:
        changed = RecipeConfig.model_validate(
            config.model_dump() | {"candidates": [item.model_dump() for item in candidates]}
        )
    except ValidationError as error:
        raise RecipeError(explain(error, RecipeConfig, f"{config.name} with these candidates")) from error
    changed = changed.model_copy(update={"candidates": tuple(resolved_candidate(item) for item in changed.candidates)})
    with open_session(new_session(config)) as session:
        _check_ready(changed, session, sweep)
        return sweep(changed)


def _check_ready(config: RecipeConfig, session: Session, flow: Callable[[RecipeConfig], object]) -> None:
    """Fail now for what would fail in days: a store that cannot be written, a language model or a checkpoint
    to be asked without an endpoint, a device that is not there. Tell what is only doubtful.
    """
    session.store.check_writable()
    for label, text in doubts(config).items():
        if session.listener:
            session.listener(label, "warning", text)
    models, on_cpu = asked_models(config), config.execution.device == "cpu"
    rows = plan_rows(config, session, flow)
    refuse_stale(rows)
    if models:
        check_endpoints(models, rows, config.execution)
    check_generation(rows, config.execution)
    if not on_cpu:
        check_device(config.execution, rows, COMPUTING)
    check_ray(config.execution.ray, rows)


def refuse_stale(rows: list[PlanRow]) -> None:
    """Raise StaleError, which names the ways out, when an artifact that the run would use was made by other code."""
    stale = [row for row in rows if row.action == "stale"]
    if stale:
        modules = {stage.name: stage.function.__module__ for stage in STAGES}
        raise stale_error((row.label, modules[row.stage], row.reason) for row in stale)


def run_evaluation(config: RecipeConfig, ids: list[str], *, chat: bool) -> list[Scores]:
    """Evaluate checkpoints of the store on the recipe's benchmarks.

    Raises ValueError when there are none, or for an id that is no checkpoint.
    """
    if not ids:
        raise ValueError("no checkpoint is given; give the ids of one or more (olmo2 ls shows them)")
    with open_session(new_session(config)) as session:
        found = [find_record(session.store, id).artifact() for id in ids]
        wrong = [f"{item.stage}/{item.id} ({item.kind})" for item in found if not isinstance(item, Checkpoint)]
        if wrong:
            raise ValueError(f"only checkpoints can be evaluated, not {', '.join(wrong)}; see: olmo2 ls")
        return evaluate_some([item for item in found if isinstance(item, Checkpoint)], config, chat=chat)


def new_session(
    config: RecipeConfig, until: str | None = None, rerun: Sequence[str] = (), *, cascade: bool = False
) -> Session:
    """The session of a request. Raises RecipeError for a stage that the recipe does not have."""
    session = Session(Store(config.execution.store), config.execution, listener=_listener.get())
    if until is None and not rerun:
        return session
    rows = plan_rows(config, session)
    forced = {label for name in rerun for label in made_labels(rows, name)}
    if cascade:
        forced = below(rows, forced)
    only = frozenset(above(rows, find_labels(rows, until))) if until is not None else None
    return replace(session, force=frozenset(forced), only=only)


def find_labels(rows: list[PlanRow], name: str) -> set[str]:
    """Labels of the stages that a name means: a stage, one instance of it, or a pattern."""
    found = {row.label for row in rows if matches(name, row.stage, row.label)}
    if not found:
        known = sorted({row.stage for row in rows} | {row.label for row in rows})
        starts = [row.label for row in rows if row.label.startswith(GIVEN)]
        shortened = f" (it begins at {starts[0]}, and what only leads there is left out)" if starts else ""
        raise RecipeError(f"the recipe has no stage {name!r}{shortened}{nearest(name, known)}")
    return found


def made_labels(rows: list[PlanRow], name: str) -> set[str]:
    """Those labels that a name means and that the recipe makes. Raises RecipeError when `start` gives all of them."""
    found = find_labels(rows, name)
    made = {label for label in found if not label.startswith(GIVEN)}
    if not made:
        raise RecipeError(f"{name!r} means {', '.join(found)}, which is given and not made; rerun a stage below it")
    return made


def plan_rows(config: RecipeConfig, session: Session, flow: Callable[[RecipeConfig], object] = recipe) -> list[PlanRow]:
    """The plan of the whole recipe, or of another flow of it, under a session's choices."""
    with open_session(replace(session, planning=True, rows=[], origins={})) as planning:
        flow(config)
    return planning.rows
