"""`olmo2 profile`: where the time of a training step goes on this machine. Imports that take time happen inside the command."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import JsonOption, RecipeArgument, SetOption, console, print_json


def profile(
    recipe: RecipeArgument,
    stage: Annotated[str, typer.Argument(help="pretrain or anneal.")] = "pretrain",
    rows: Annotated[int | None, typer.Option("--rows", help="Windows of a step; else the stage's batch.")] = None,
    steps: Annotated[int, typer.Option("--steps", help="Steps that are timed.")] = 3,
    trace: Annotated[Path | None, typer.Option("--trace", help="File for a trace that ui.perfetto.dev opens.")] = None,
    set: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a training stage's step on this machine by part: matmuls, attention, optimizer, copies, Python."""
    from flows.inspection.costs.profile_table import print_profile, profile_of, profile_row

    found = profile_of(recipe, set, stage, rows, steps, trace)
    if as_json:
        print_json(profile_row(found))
    else:
        print_profile(console, found)
        if trace:
            console.print(f"trace: {trace}", highlight=False, markup=False)
