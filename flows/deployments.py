"""What the dashboard can start (prefect.yaml names these): the recipe, one stage, a micro-anneal sweep, an evaluation.

Parameters are names and small configs; their docstrings and defaults become the forms. Artifacts of stages belong to
the phases' runs, so what came out is left in the run that was started too.
"""

from functools import partial, update_wrapper

from prefect import Flow, State, flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from flows.config.recipe_config import RecipeConfig
from flows.recipe import recipe as make_model
from flows.running.commands import run_command
from flows.running.forms import CandidateForm
from flows.running.promotion import promoted_path, write_promoted
from flows.running.run import load_recipe, made_report, run, run_evaluation, run_sweep
from flows.running.sessions import naming_failures
from infra.execution.markdown import code, escaped
from infra.json_values import JsonObject
from infra.records.record import payload_at
from infra.storage.store import Store
from tasks.artifacts import Ranking, Report


# Prefect keeps no results: what a flow returns is the address of an artifact, which the store has.
@flow(name="recipe", flow_run_name="recipe {recipe}", persist_result=False)
def recipe(
    recipe: str = "laptop",
    store: str | None = None,
    until: str | None = None,
    rerun: list[str] | None = None,
    overrides: list[str] | None = None,
    cascade: bool = False,
) -> str | None:
    """Run a recipe: what exists is reused, what was interrupted resumes, what changed is rerun.

    Args:
        recipe: Name in recipes/ or path of a YAML file.
        store: Root of the artifacts; the recipe's own when empty.
        until: Run only this stage and what it needs.
        rerun: Stages to make again though they exist.
        overrides: Changes as stage.field=value.
        cascade: Make everything below the rerun stages again too.
    """
    # Loaded before anything runs, so that a form with a typing error fails at once.
    config = load_recipe(recipe, overrides, store)
    again = run_command(recipe, config.execution.store, until, rerun or [], overrides or [], cascade=cascade)
    with naming_failures():
        report = run(config, until, rerun or [], cascade=cascade, again=again)
    return shown_report(config, report)


def loaded_recipe(config: RecipeConfig, asked: JsonObject) -> Flow[[], Report]:
    """The recipe as a flow of a config that was loaded already, inside a session that is open: what a command calls.

    `asked` is what the person gave, as parameters of `recipe`: its run shows them. The function itself has none, since a config
    may name thousands of pinned files.
    """

    def show_parameters(flow: Flow, flow_run: FlowRun, state: State) -> None:
        # Once the run has begun: given to the flow, they would have to go through its function, a call more.
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, parameters=asked).raise_for_status()

    def leave_report(flow: Flow, flow_run: FlowRun, state: State) -> None:
        shown_report(config, made_report(state.result(raise_on_failure=False)))

    bound = partial(make_model, config)
    update_wrapper(bound, make_model)
    # Prefect would find the config again as a parameter through what was wrapped.
    vars(bound).pop("__wrapped__")
    # Braces are Prefect's way to name parameters in a run's name.
    title = f"recipe {asked['recipe']}".replace("{", "{{").replace("}", "}}")
    shown = flow(name="recipe", flow_run_name=title, persist_result=False, on_running=[show_parameters],
                 on_completion=[leave_report])  # fmt: skip
    return shown(bound)


@flow(name="stage", flow_run_name="rerun {stage} of {recipe}", persist_result=False)
def stage(
    stage: str, recipe: str = "laptop", store: str | None = None, overrides: list[str] | None = None
) -> str | None:
    """Make one stage and everything below it again.

    Args:
        stage: A stage such as dpo, or one instance of it such as anneal:42.
        recipe: Name in recipes/ or path of a YAML file.
        store: Root of the artifacts; the recipe's own when empty.
        overrides: Changes as stage.field=value.
    """
    config = load_recipe(recipe, overrides, store)
    again = run_command(recipe, config.execution.store, None, [stage], overrides or [], cascade=True)
    with naming_failures():
        report = run(config, None, [stage], cascade=True, again=again)
    return shown_report(config, report)


@flow(name="microanneal-sweep", flow_run_name="sweep on {recipe}", persist_result=False)
def sweep(
    candidates: list[CandidateForm] | None = None,
    recipe: str = "laptop",
    store: str | None = None,
    overrides: list[str] | None = None,
    promote_as: str | None = None,
) -> str:
    """Anneal the base checkpoint on each candidate source mixed with web text, evaluate, and rank.

    Args:
        candidates: The sources to compare; the recipe's own when empty.
        recipe: Name in recipes/ or path of a YAML file; gives base checkpoint, web text and evaluation.
        store: Root of the artifacts; the recipe's own when empty.
        overrides: Changes as stage.field=value; start={base: ID} anneals a checkpoint that is in the store.
        promote_as: Name of a mix file below promoted/ for recipes to extend; it is written if the sweep decides.
    """
    config = load_recipe(recipe, overrides, store)
    # The name is checked before days of training, and the file is written only after them.
    mix_file = promoted_path(promote_as) if promote_as else None
    tried = [*(candidates or config.candidates)]
    with naming_failures():
        ranking = run_sweep(config, tried)
    rows, text = shown_ranking(config, ranking)
    create_table_artifact(rows, key="sweep-ranking", description=text)
    # An undecided sweep names no winner, so there is nothing to promote.
    if mix_file and ranking.outcome in ranking.order:
        write_promoted(mix_file, config.model_copy(update={"candidates": tuple(tried)}), ranking)
    return ranking.address


@flow(name="evaluation", flow_run_name="evaluation with {recipe}", persist_result=False)
def evaluation(
    checkpoints: list[str],
    recipe: str = "laptop",
    chat: bool = False,
    store: str | None = None,
    overrides: list[str] | None = None,
) -> list[str]:
    """Evaluate checkpoints of a store on a recipe's benchmarks.

    Args:
        checkpoints: Artifact ids, or their beginnings.
        recipe: Name in recipes/ or path of a YAML file; gives the benchmarks.
        chat: Address the models through the chat template.
        store: Root of the artifacts; the recipe's own when empty.
        overrides: Changes as stage.field=value.
    """
    config = load_recipe(recipe, overrides, store)
    with naming_failures():
        found = run_evaluation(config, checkpoints, chat=chat)
    rows = [
        {"checkpoint": scores.label, "benchmark": name, "score": score, "standard error": scores.stderr[name]}
        for scores in found
        for name, score in scores.primary.items()
    ]
    create_table_artifact(rows, key="evaluation-scores", description=f"Benchmarks of {escaped(config.name)}")
    return [scores.address for scores in found]


def shown_ranking(config: RecipeConfig, ranking: Ranking) -> tuple[list[JsonObject], str]:
    """The ranking's table, the candidates tied with the best told apart, and where it is."""
    store = Store(config.execution.store)
    file = f"{payload_at(store, ranking.address)}/ranking.json"
    text = (
        f"Best first on {escaped(config.microanneal.rank_by)}; the order among those tied with the best is no evidence. "
        f"All figures: {code(f'{store.url}/{file}')}"
    )
    return store.read_json(file)["candidates"], text


def shown_report(config: RecipeConfig, report: Report | None) -> str | None:
    """Leave the report's figures and its place in the dashboard; returns its address, or None where there is none."""
    if report is None:
        return None
    rows = [{"figure": name, "value": value} for name, value in report.summary.items()]
    store = Store(config.execution.store)
    text = code(f"{store.url}/{payload_at(store, report.address)}/report.html")
    create_table_artifact(rows, key="recipe-report", description=text)
    return report.address
