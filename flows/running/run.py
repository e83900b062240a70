"""Runs and plans a recipe: each function opens a session and calls the flows inside it."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from flows.config.files import checked_recipe, load
from flows.config.parts import CandidateConfig
from flows.config.pinning import pin_recipe
from flows.config.recipe_config import RecipeConfig
from flows.config.sizes.fit import fitted
from flows.config.sizes.training_runs import with_estimates
from flows.inspection.artifacts import find_record
from flows.phases.evaluation import evaluate_some
from flows.phases.microanneal import sweep
from flows.recipe import recipe
from flows.running.pricing import priced
from flows.running.readiness import check_ready
from flows.running.sessions import new_session, plan_rows
from flows.starting import check_base, checked_start
from infra.execution.plan import PlanRow
from infra.session import Session, open_session
from infra.storage.store import Store
from tasks.artifacts import Checkpoint, Ranking, Report, Scores


def load_recipe(recipe: str, overrides: list[str] | None = None, store: str | None = None) -> RecipeConfig:
    """Load and validate a recipe. Its store is, in this order: the argument, OLMO2_STORE, the recipe's `execution.store`."""
    config = fitted(pin_recipe(load(recipe, overrides)))
    # The command line goes before the environment, and both before the recipe.
    url = store or os.environ.get("OLMO2_STORE") or config.execution.store
    config = config.model_copy(update={"execution": config.execution.model_copy(update={"store": url})})
    return checked_start(config, Store(url)) if config.start else config


def plan(config: RecipeConfig, until: str | None = None, rerun: list[str] | None = None) -> list[PlanRow]:
    """Say what a run would do, stage by stage; nothing runs."""
    return with_estimates(plan_rows(config, new_session(config, until, rerun or [])), config)


@contextmanager
def running(
    config: RecipeConfig,
    until: str | None = None,
    rerun: Sequence[str] = (),
    *,
    cascade: bool = False,
    again: str = "",
    flow: Callable[[RecipeConfig], object] = recipe,
) -> Iterator[Session]:
    """Open a session in which a flow of the recipe runs, once everything that it needs answers.

    `rerun` gives the named stages a new generation; with `cascade`, everything below them too. `again` is the command that goes
    on with this run, for its pages.
    """
    asked = replace(new_session(config, until, rerun, cascade=cascade), again=again)
    price = priced(config, asked, flow) if config.execution.approve_above is not None else None
    with _engine_of(replace(asked, price=price)) as session:
        # Before the first stage, so that what is missing on day ten is told on day one.
        check_ready(config, session, flow)
        yield session


@contextmanager
def _engine_of(session: Session) -> Iterator[Session]:
    """Open the session with the engine that runs. Prefect is imported here: it takes seconds, which no plan has to wait for."""
    from infra.execution.prefect_engine import PrefectEngine, without_heartbeats

    with without_heartbeats(), open_session(replace(session, engine=PrefectEngine())) as opened:
        yield opened


def run(
    config: RecipeConfig,
    until: str | None = None,
    rerun: Sequence[str] = (),
    *,
    cascade: bool = False,
    again: str = "",
) -> Report | None:
    """Run a recipe: reuse, resume or run every stage. Returns the report, or None when `until` stops before it.

    The arguments are those of `running`.
    """
    with running(config, until, rerun, cascade=cascade, again=again):
        return made_report(recipe(config))


def made_report(result: object) -> Report | None:
    """What a recipe returned; None where `until` left the report out, so that something pending stands for it."""
    return result if isinstance(result, Report) else None


def run_sweep(config: RecipeConfig, candidates: list[CandidateConfig]) -> Ranking:
    """Run only what a micro-anneal sweep needs, with candidates of its own.

    Raises RecipeError when the recipe starts past the base, from which a sweep anneals, or cannot have these candidates.
    """
    check_base(config)
    # The whole recipe is validated again: candidates of a form may contradict it.
    data = config.model_dump() | {"candidates": [item.model_dump() for item in candidates]}
    changed = checked_recipe(data, f"{config.name} with these candidates")
    changed = changed.model_copy(update={"candidates": tuple(item.pinned() for item in changed.candidates)})
    with running(changed, flow=sweep):
        return sweep(changed)


def run_evaluation(config: RecipeConfig, ids: list[str], *, chat: bool) -> list[Scores]:
    """Evaluate checkpoints of the store on the recipe's benchmarks.

    Raises ValueError when there are none, or for an id that is no checkpoint.
    """
    if not ids:
        raise ValueError("no checkpoint is given; give the ids of one or more (olmo2 ls shows them)")
    with _engine_of(new_session(config)) as session:
        found = [find_record(session.store, id).artifact() for id in ids]
        wrong = [f"{item.stage}/{item.id} ({item.kind})" for item in found if not isinstance(item, Checkpoint)]
        if wrong:
            raise ValueError(f"only checkpoints can be evaluated, not {', '.join(wrong)}; see: olmo2 ls")
        return evaluate_some([item for item in found if isinstance(item, Checkpoint)], config, chat=chat)
