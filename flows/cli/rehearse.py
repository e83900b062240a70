"""`olmo2 rehearse` and what belongs to it. Imports that take time happen inside the commands, so that help is quick."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import JsonOption, RecipeArgument, SetOption, console, errors, print_json

if TYPE_CHECKING:
    from flows.config.recipe_config import RecipeConfig

RowsOption = Annotated[
    Path | None,
    typer.Option("--rows", metavar="FOLDER", help="Samples in place of the hub's data sets; see olmo2 sample."),
]


def rehearse(
    recipe: RecipeArgument,
    rows: RowsOption = None,
    store: Annotated[
        str | None, typer.Option("--store", help="Root of the rehearsal's artifacts; else rehearsals/RECIPE here.")
    ] = None,
    set: SetOption = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Stop after this stage; the recipe then counts as not rehearsed.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print the rule that scales a recipe down.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the recipe's whole graph in minutes: every stage as it is, the first rows of every source, a tiny model."""
    from flows.rehearsing.rehearsal import explain_rule as rules

    if explain:
        console.print("\n".join(rules()), highlight=False, markup=False, soft_wrap=True)
        return
    from flows.config.files import find_recipe, load
    from flows.rehearsing.rehearsal import rehearsed
    from flows.rehearsing.rehearsal_record import remember
    from flows.running.prefect_server import prepare_prefect

    root = store or f"rehearsals/{find_recipe(recipe).stem}"
    full = load(recipe, set)
    small = rehearsed(full, rows, root)
    prepare_prefect()
    with _written(small, root) as path:
        from flows.cli.terminal import RunRequest, watched

        _check_cleaned(path, root)
        # With `--json`, standard output carries the JSON alone.
        asked = RunRequest(str(path), root, until, [], [])
        with watched(errors if as_json else console, errors, asked) as run:
            if run.flow:
                run.made = run.flow()
        code, _ = run.ended
        _tell(path, root, until, as_json=as_json)
    # A rehearsal up to one stage has not shown that the rest of the graph runs.
    if code == 0 and until is None:
        remember(full, how=f"rehearsed in {root}")
    raise typer.Exit(code)


@contextmanager
def _written(small: "RecipeConfig", root: str) -> Iterator[Path]:
    """The rehearsal's recipe as a file, where a person may read it and run it again; language models that it names no
    endpoint for are stood in for as long as it runs."""
    import yaml

    from flows.rehearsing.stand_in_writer import stand_in_writer
    from flows.running.readiness import asked_models
    from infra.settings import EndpointSettings

    # A remote store has no folder here, so the recipe is written where the command was given.
    folder = Path.cwd() if "://" in root else Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{small.name}.yaml"
    execution = small.execution
    # Models that the recipe names an endpoint for are asked there, in a rehearsal too.
    asked = {model for models in asked_models(small).values() for model in models}
    unknown = asked - execution.endpoints.keys()
    with stand_in_writer() as url:
        if unknown and "default" not in execution.endpoints:
            console.print(
                f"no endpoint is named for {', '.join(sorted(unknown))}: a stand-in answers by rule", style="dim"
            )
            stand_in = {name: EndpointSettings(url=url) for name in unknown}
            small = small.model_copy(
                update={"execution": execution.model_copy(update={"endpoints": execution.endpoints | stand_in})}
            )
        path.write_text(yaml.safe_dump(small.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
        yield path


def _check_cleaned(path: Path, root: str) -> None:
    """Raise RecipeError where text would be trained on that no stage decontaminated."""
    from flows.config.errors import RecipeError
    from flows.rehearsing.uncleaned import uncleaned, uncleaned_error
    from flows.running.run import load_recipe, plan

    if found := uncleaned(plan(load_recipe(str(path), store=root))):
        raise RecipeError(uncleaned_error(found))


def _tell(path: Path, root: str, until: str | None, *, as_json: bool) -> None:
    from flows.rehearsing.findings import findings, print_findings
    from flows.running.run import load_recipe, plan
    from infra.storage.store import Store

    found = findings(Store(root), plan(load_recipe(str(path), store=root), until))
    if as_json:
        print_json(found)
    else:
        print_findings(console, found)


def conformance_command(
    size: Annotated[str, typer.Argument(metavar="SIZE", help="1b, 7b, 13b or 32b.")],
    set: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a published recipe with the paper and the released code, value by value, with the reason of each choice."""
    from flows.inspection.conformance import conformance as compare
    from flows.inspection.conformance import print_conformance

    rows = compare(size, set)
    if as_json:
        print_json(rows)
    else:
        print_conformance(console, rows)


def sample_command(
    recipe: RecipeArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the samples go, a folder per data set.")],
    rows: Annotated[int, typer.Option("-n", min=1, help="Rows of each file.")] = 100,
    set: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download the first rows of all that a recipe reads from the hub, for rehearsals with --rows FOLDER."""
    from flows.config.files import load
    from flows.rehearsing.sample_rows import sample as download

    written = download(load(recipe, set), folder, rows)
    if as_json:
        print_json(written)
        return
    for name, count in written.items():
        console.print(f"{count:>6,} rows  {name}", highlight=False, markup=False)
    console.print(f"{len(written):,} files; olmo2 rehearse {recipe} --rows {folder}", highlight=False, markup=False)
