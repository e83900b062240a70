"""`olmo2 promote`: a sweep's winner as a mix file. Imports that take time happen inside the command."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import IdArgument, JsonOption, SetOption, StoreOption, console, existing_store, print_json


def promote(
    id: IdArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The mix file to write.")],
    recipe: Annotated[str, typer.Option("--recipe", help="The recipe whose sweep it is: its candidates and mix.")],
    candidate: Annotated[
        str, typer.Option("--candidate", help="Take this one, also where the ranking is undecided.")
    ] = "",
    set: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what a ranking decided as a mix file, for recipes to extend: `extends: [laptop, FILE]`."""
    from flows.config.files import load
    from flows.inspection.artifacts import find_record
    from flows.running.promotion import write_promoted
    from tasks.artifacts import Ranking

    ranking = find_record(existing_store(store), id).artifact()
    if not isinstance(ranking, Ranking):
        raise ValueError(f"{ranking.address} is a {ranking.kind}, not a ranking; see: olmo2 ls --stage rank")
    winner = write_promoted(out, load(recipe, set), ranking, candidate)
    if as_json:
        print_json({"file": str(out), "candidate": winner, "recipe": recipe})
        return
    console.print(f"{out}: {winner}; a recipe takes it by extends: [{recipe}, {out}]", markup=False, highlight=False)
