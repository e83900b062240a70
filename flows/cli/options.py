"""What the commands of `olmo2` share: options, consoles, and how JSON is printed. Light to import: help must be quick."""

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli.plain_console import PlainConsole

if TYPE_CHECKING:
    from rich.table import Table

    from infra.storage.store import Store

WIDE = 1000
"""Columns of what goes to a file or a pipe: nothing is cut there."""
FOLDED = 120
"""Columns of a table with sentences in it where there is no terminal; COLUMNS says otherwise."""
console = PlainConsole(soft_wrap=True, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)
errors = PlainConsole(stderr=True, soft_wrap=True)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="Name in recipes/ or path of a YAML file.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Artifact id, or its beginning; see olmo2 ls.")]


def _only_once(context: typer.Context, option: typer.CallbackParam, value: str | None) -> str | None:
    """Refuse a second `--store`, of which the last would count in silence."""
    # Typer hands over the last of several, so the command line itself is counted.
    given = sum(word == "--store" or word.startswith("--store=") for word in sys.argv[1:])
    if given > 1:
        raise typer.BadParameter(f"--store is given {given} times; give one")
    # An empty value comes from a shell variable that is not set.
    if value == "":
        raise typer.BadParameter("--store is empty; give a folder or a URL, or leave it out")
    return value


StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Root of the artifacts: folder or fsspec URL; else OLMO2_STORE.", callback=_only_once),
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="STAGE", help="Run only this stage and what it needs.")
]
RerunOption = Annotated[
    list[str] | None,
    typer.Option("--rerun", metavar="STAGE", help="Make this stage anew, though it exists; repeatable."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Change a recipe value (YAML); repeatable."),
]
NoRehearsalOption = Annotated[
    bool, typer.Option("--no-rehearsal", help="Run an expensive recipe that was not rehearsed; see olmo2 rehearse.")
]
AcceptOption = Annotated[
    str | None,
    typer.Option("--accept", metavar="WHY", help="Use what was made by earlier code; who, when and why is kept."),
]
ApproveOption = Annotated[
    str | None,
    typer.Option(
        "--approve", metavar="WHY", help="Approve stages above execution.approve_above; who, when and why is kept."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def accepting(overrides: list[str] | None, accept: str | None, approve: str | None = None) -> list[str]:
    """Overrides with the reasons of `--accept` and `--approve`, so that they travel with the run. ValueError for an empty one."""
    said = list(overrides or [])
    for name, why in (("accept", accept), ("approve", approve)):
        if why is None:
            continue
        if not why.strip():
            raise ValueError(f"--{name} is kept with its reason; give one, such as --{name} 'only a message changed'")
        # As JSON, which YAML reads as a text whatever stands in it.
        said.append(f"execution.{name}={json.dumps(why)}")
    return said


def open_store(url: str | None) -> "Store":
    """The store of a command that names no recipe: the option, OLMO2_STORE, or `store` here."""
    from infra.storage.store import Store

    return Store(url or os.environ.get("OLMO2_STORE") or "store")


def existing_store(url: str | None) -> "Store":
    """The same for a command that only reads. Raises ValueError where there is none: a typo is no empty store."""
    store = open_store(url)
    if not store.is_there():
        raise ValueError(f"there is no store {store.url}; check --store (or OLMO2_STORE), or make one with olmo2 run")
    return store


def print_whole(console: Console, table: "Table") -> None:
    """Print a table as wide as it is, however narrow the terminal: what is cut or broken up cannot be read or copied."""
    from rich.measure import Measurement

    # Measured without the terminal's width, since rich would cut the table to it.
    table.width = Measurement.get(console, console.options.update(max_width=WIDE), table).maximum
    console.print(table, crop=False)


def print_folded(console: Console, table: "Table") -> None:
    """Print a table that folds what is long to fit; where there is no terminal, without the spaces that fill a row."""
    if console.is_terminal:
        console.print(table)
        return
    # Captured, because rich fills each row with spaces up to its width.
    with console.capture() as captured:
        console.print(table, width=FOLDED if console.width == WIDE else console.width)
    for line in captured.get().splitlines():
        console.print(line.rstrip(), markup=False, highlight=False)


def print_json(value: object) -> None:
    """One JSON value on standard output, keys sorted; dataclasses as their fields."""
    from dataclasses import asdict

    import orjson

    # Metrics may have numbers as keys, such as steps.
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    # orjson would write dataclasses itself, but with their fields in the order of the class.
    options |= orjson.OPT_PASSTHROUGH_DATACLASS
    sys.stdout.write(orjson.dumps(value, default=asdict, option=options).decode() + "\n")
