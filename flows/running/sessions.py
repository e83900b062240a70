"""The session of a request: who listens, and what `until` and `rerun` mean on the graph of this recipe.

A name means a stage (`anneal`), one instance of it (`anneal:42`), or a pattern over instances (`anneal:*`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

from flows.config.errors import RecipeError, nearest
from flows.config.recipe_config import RecipeConfig
from flows.recipe import recipe
from flows.starting import GIVEN
from infra.events import Event, Failed, LabelledListener
from infra.execution.plan import Plan, PlanRow, above, below
from infra.session import Session, matches, open_session
from infra.stopping import Interrupted
from infra.storage.store import Store
from model.network import transformer

PRELOADED = (transformer.__name__,)
"""What every training imports, which takes seconds."""
_listener: ContextVar[LabelledListener | None] = ContextVar("olmo2_listener", default=None)
GRIDDED = {"rlvr": "ppo"}
"""Stages of another name than the section whose grid is theirs."""


@contextmanager
def listening(listener: LabelledListener) -> Iterator[None]:
    """Runs started inside tell this listener; a flow run by the dashboard's worker has none."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def new_session(
    config: RecipeConfig, until: str | None = None, rerun: Sequence[str] = (), *, cascade: bool = False
) -> Session:
    """The session of a request. Raises RecipeError for a stage that the recipe does not have."""
    session = Session(_store_of(config), config.execution, listener=_listener.get(), preload=PRELOADED)
    # Without choices no graph is needed.
    if until is None and not rerun:
        return session
    rows = plan_rows(config, session)
    forced = {label for name in rerun for label in made_labels(rows, name)}
    if cascade:
        forced = below(rows, forced)
    only = frozenset(_with_grids(rows, above(rows, find_labels(rows, until)), config)) if until is not None else None
    return replace(session, force=frozenset(forced), only=only)


def _with_grids(rows: list[PlanRow], needed: set[str], config: RecipeConfig) -> set[str]:
    """The labels with what chooses the settings of their stages: a plan does not know yet that a stage waits for its grid."""
    # Grids may stand above grids, so this goes on until nothing is added.
    while True:
        stages = {label.partition(":")[0] for label in needed}
        judging = {f"rank:grid-{section}" for section in config.grid if {section, GRIDDED.get(section)} & stages}
        wider = needed | above(rows, judging & {row.label for row in rows})
        if wider == needed:
            return needed
        needed = wider


def _store_of(config: RecipeConfig) -> Store:
    return Store(config.execution.store, cache_bytes=config.execution.cache_bytes)


def find_labels(rows: list[PlanRow], name: str) -> set[str]:
    """Labels that a name means: that of one step, all of a stage's, or those of a pattern.

    Example: `pretrain` is the recipe's pre-training, though trials of curation train in the same stage (`pretrain:*`).
    """
    exact = {row.label for row in rows if row.label == name}
    # A label of its own goes before the stage of that name.
    found = exact or {row.label for row in rows if matches(name, row.stage, row.label)}
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
    plan = Plan()
    with open_session(replace(session, engine=plan)):
        flow(config)
    return plan.rows


class StageError(RuntimeError):
    """Stages failed: which, and of what."""


@contextmanager
def naming_failures() -> Iterator[None]:
    """Errors of stages are raised with their stages' names, unless a listener is there, which tells them itself."""
    if _listener.get() is not None:
        yield
        return
    failed: dict[str, BaseException] = {}

    def listen(label: str, event: Event) -> None:
        if isinstance(event, Failed):
            failed[label] = event.error

    try:
        with listening(listen):
            yield
    except Exception as error:
        # Whatever a stage may raise, but a request to stop; what no stage raised says itself where it is from.
        if not failed or isinstance(error, Interrupted):
            raise
        said = (f"stage {label} failed: {type(cause).__name__}: {cause}" for label, cause in failed.items())
        raise StageError(
            f"{'; '.join(said)}. Mend the cause and start the same run again: what is done is kept"
        ) from error
