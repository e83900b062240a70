"""Runs and plans of a recipe: opens the session, works out what `until` and `rerun` mean on this recipe's graph."""

import os
from dataclasses import replace

from flows.config import RecipeConfig
from flows.loading import RecipeError, load, nearest
from infra.events import Listener
from infra.plan import above, below
from infra.session import PlanRow, Session, matches, open_session
from infra.store import Store
from tasks.artifacts import Report


def load_recipe(recipe: str, overrides: list[str] | None = None, store: str | None = None) -> RecipeConfig:
    """A validated recipe. The store is, in this order: the argument, OLMO2_STORE, the recipe's `execution.store`."""
    config = load(RecipeConfig, recipe, overrides)
    url = store or os.environ.get("OLMO2_STORE") or config.execution.store
    return config.model_copy(update={"execution": config.execution.model_copy(update={"store": url})})


def plan(
    config: RecipeConfig, until: str | None = None, rerun: list[str] | None = None, *, cascade: bool = False
) -> list[PlanRow]:
    """What a run would do, stage by stage; runs nothing."""
    session = new_session(config, until, rerun or [], cascade)
    return _plan(config, replace(session, planning=True))


def run(
    config: RecipeConfig,
    until: str | None = None,
    rerun: list[str] | None = None,
    *,
    cascade: bool = False,
    listener: Listener | None = None,
) -> Report | None:
    """Run a recipe: reuse, resume or run every stage. Returns the report, or None when `until` stops before it.

    `rerun` gives the named stages a new generation; with `cascade`, everything below them too.
    """
    from flows.recipe import recipe

    session = new_session(config, until, rerun or [], cascade)
    session.store.check_writable()
    session.listener = listener
    with open_session(session):
        report = recipe(config)
    return report if isinstance(report, Report) else None


def new_session(config: RecipeConfig, until: str | None, rerun: list[str], cascade: bool) -> Session:
    """The session of a request. Raises RecipeError for a stage that the recipe does not have."""
    session = Session(Store(config.execution.store), config.execution)
    if until is None and not rerun:
        return session
    rows = _plan(config, replace(session, planning=True))
    forced = {label for name in rerun for label in find_labels(rows, name)}
    if cascade:
        forced = below(rows, forced)
    only = frozenset(above(rows, find_labels(rows, until))) if until else None
    return replace(session, force=frozenset(forced), only=only)


def find_labels(rows: list[PlanRow], name: str) -> set[str]:
    """Labels of the stages that a name means: a stage, one instance of it, or a pattern."""
    found = {row.label for row in rows if matches(name, row.stage, row.label)}
    if not found:
        known = sorted({row.stage for row in rows} | {row.label for row in rows})
        raise RecipeError(f"the recipe has no stage {name!r}{nearest(name, known)}")
    return found


def _plan(config: RecipeConfig, session: Session) -> list[PlanRow]:
    from flows.recipe import recipe

    session.rows = []
    with open_session(session):
        recipe(config)
    return session.rows
