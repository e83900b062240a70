"""The `olmo2` command: run, plan and rerun recipes; look at artifacts; start the dashboard.

Exit codes: 0 done, 1 a stage failed, 2 bad input. Imports that take time happen inside the commands, so that help is quick.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from infra.session import PlanRow

app = typer.Typer(
    help="The OLMo 2 training recipe: run it whole, rerun a stage, look at what was made.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(soft_wrap=True)
errors = Console(stderr=True, soft_wrap=True)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="Name in recipes/ or path of a YAML file.")]
StoreOption = Annotated[str | None, typer.Option("--store", help="Root of the artifacts: folder or fsspec URL.")]
UntilOption = Annotated[str | None, typer.Option("--until", help="Run only this stage and what it needs.")]
RerunOption = Annotated[list[str] | None, typer.Option("--rerun", help="Make this stage anew, though it exists.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Change a recipe value.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def run(
    recipe: RecipeArgument,
    store: StoreOption = None,
    until: UntilOption = None,
    rerun: RerunOption = None,
    set: SetOption = None,
) -> None:
    """Run a recipe: what exists is reused, what was interrupted is resumed, what changed is rerun."""
    _run(recipe, store, until, rerun or [], set or [], cascade=False)


@app.command()
def rerun(
    recipe: RecipeArgument,
    stage: Annotated[str, typer.Argument()],
    store: StoreOption = None,
    set: SetOption = None,
) -> None:
    """Make a stage and everything below it anew."""
    _run(recipe, store, None, [stage], set or [], cascade=True)


@app.command()
def plan(
    recipe: RecipeArgument,
    store: StoreOption = None,
    until: UntilOption = None,
    rerun: RerunOption = None,
    set: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run would do with each stage, and why. Runs nothing."""
    from flows.run import load_recipe
    from flows.run import plan as plan_recipe

    config = load_recipe(recipe, set, store)
    rows = plan_recipe(config, until, rerun)
    if as_json:
        _print_json(
            [
                {
                    "label": row.label,
                    "stage": row.stage,
                    "action": row.action,
                    "why": row.reason,
                    "id": row.id,
                    "inputs": list(row.inputs),
                    "estimate": row.estimate,
                }
                for row in rows
            ]
        )
        return
    _print_plan(rows)


@app.command(name="ls")
def list_artifacts(
    store: StoreOption = None,
    stage: Annotated[str | None, typer.Option("--stage")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the artifacts of a store, oldest first."""
    from flows.look import list_rows, print_list

    rows = list_rows(_store(store), stage)
    if as_json:
        _print_json(rows)
    else:
        print_list(console, rows)


@app.command()
def show(
    id: Annotated[str, typer.Argument(help="Artifact id, or its beginning.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an artifact: its record, metrics, and lineage up to the raw inputs."""
    from flows.look import print_record, show_record

    shown = show_record(_store(store), id)
    if as_json:
        _print_json(shown)
    else:
        print_record(console, shown)


@app.command()
def export(
    id: Annotated[str, typer.Argument()], folder: Annotated[Path, typer.Argument()], store: StoreOption = None
) -> None:
    """Copy a checkpoint out as a Hugging Face folder."""
    from flows.look import export_checkpoint

    written = export_checkpoint(_store(store), id, folder)
    console.print(f"{folder}: {', '.join(written)}", highlight=False)


@app.command()
def dashboard(port: Annotated[int, typer.Option(help="Port on the loopback interface.")] = 4200) -> None:
    """Start the Prefect server, a worker and the deployments; Ctrl-C stops what this started."""
    from flows.dashboard import serve

    serve(console, port)


def _store(url: str | None):
    import os

    from infra.store import Store

    return Store(url or os.environ.get("OLMO2_STORE") or "store")


def _print_json(value: object) -> None:
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    sys.stdout.write(orjson.dumps(value, option=options).decode() + "\n")


def _run(
    recipe: str,
    store: str | None,
    until: str | None,
    rerun: list[str],
    overrides: list[str],
    *,
    cascade: bool,
) -> None:
    from flows.prefect_home import prepare_prefect

    prepare_prefect()
    from flows.terminal import run_in_terminal

    raise typer.Exit(run_in_terminal(console, errors, recipe, store, until, rerun, overrides, cascade=cascade))


def _print_plan(rows: "list[PlanRow]") -> None:
    from rich.table import Table

    styles = {"reused": "dim", "run": "green", "resume": "yellow", "left out": "dim", "corrupt": "red"}
    table = Table("stage", "action", "why", "tokens", "FLOPs", box=None, pad_edge=False)
    for row in rows:
        tokens, flops = row.estimate.get("tokens"), row.estimate.get("flops")
        table.add_row(
            row.label,
            row.action,
            row.reason,
            f"{tokens:,.0f}" if tokens else "",
            f"{flops:.3g}" if flops else "",
            style=styles[row.action],
        )
    console.print(table)
    counts = {action: sum(row.action == action for row in rows) for action in styles}
    console.print(", ".join(f"{count} {action}" for action, count in counts.items() if count), highlight=False)


def main() -> None:
    """Entry point: turns the errors that users can cause into a message and exit code 2."""
    try:
        app()
    except (ValueError, FileNotFoundError, PermissionError) as error:
        if type(error).__module__.startswith(("flows", "builtins", "infra")):
            errors.print(f"error: {error}", style="red", markup=False, highlight=False)
            sys.exit(2)
        raise


if __name__ == "__main__":
    main()
