"""`olmo2 data`: what curation did with documents."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import JsonOption, RecipeArgument, SetOption, StoreOption, console, print_json

data_app = typer.Typer(help="What curation did: how many went, which ones, and why one did.", no_args_is_help=True)

RunOption = Annotated[str | None, typer.Option("--run", metavar="RECIPE|ID", help="Only what this was made from.")]


@data_app.command("funnel")
def funnel_command(
    run: Annotated[str, typer.Argument(metavar="RECIPE|ID", help="A recipe, or any artifact made of data.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Documents, bytes and tokens in and out of every step, and what was dropped for which reason."""
    from flows.inspection.curated import curated
    from flows.inspection.funnel import funnel as count
    from flows.inspection.funnel import print_funnel

    steps = count(curated(run, store))
    if as_json:
        print_json(steps)
    else:
        print_funnel(console, steps)


@data_app.command("look")
def look_command(
    reason: Annotated[
        str,
        typer.Option("--dropped", "--dropped-by", metavar="REASON", help="A rule, or another reason of the funnel."),
    ],
    count: Annotated[int, typer.Option("--sample", "-n", min=1, help="How many documents.")] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Another seed shows others.")] = 0,
    run: RunOption = None,
    store: StoreOption = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write whole texts as a page to browse.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Examples of what was dropped for a reason, with what matched marked."""
    from flows.inspection.curated import curated
    from flows.inspection.documents import dropped_documents, print_examples
    from flows.inspection.documents import look as sample
    from flows.inspection.examples_page import write_page

    # A page shows whole texts, so it takes the documents before they are cut to excerpts.
    if html is not None:
        documents = dropped_documents(curated(run, store), reason, count, seed)
        write_page(html, reason, documents)
        console.print(f"{html}: {len(documents):,} documents", markup=False, highlight=False)
        return
    examples = sample(curated(run, store), reason, count, seed)
    if as_json:
        print_json(examples)
    else:
        print_examples(console, examples)


@data_app.command("why")
def why_command(
    id: Annotated[str, typer.Argument(metavar="DOC_ID", help="A document's id.")],
    run: RunOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every score and decision of one document through all steps."""
    from flows.inspection.curated import curated
    from flows.inspection.documents import print_why
    from flows.inspection.documents import why as explain

    steps = explain(curated(run, store), id)
    if as_json:
        print_json(steps)
    else:
        print_why(console, id, steps)


@data_app.command()
def bench(
    recipe: RecipeArgument,
    source: Annotated[list[str] | None, typer.Option("--source", help="Only this source; repeatable.")] = None,
    megabytes: Annotated[float, typer.Option("--megabytes", min=0.1, help="Files to read of each source.")] = 16.0,
    cores: Annotated[int, typer.Option("--cores", min=1, help="Cores that the projection has.")] = 64,
    price: Annotated[float, typer.Option("--price", min=0, help="Price of a core-hour.")] = 0.05,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """MB/s per core of each data stage on a sample, and the hours and the cost of whole sources."""
    from flows.inspection.data_speed import data_speed, file_sources, print_speeds
    from flows.running.run import load_recipe

    config = load_recipe(recipe, overrides)
    names = source or file_sources(config)
    if not names:
        raise ValueError(f"recipe {recipe!r} reads no files: nothing to measure")
    speeds = [data_speed(config, name, megabytes) for name in names]
    if as_json:
        print_json(speeds)
    else:
        print_speeds(console, speeds, cores, price)
