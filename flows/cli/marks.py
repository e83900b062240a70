"""Commands for finding artifacts and marking them: tag, pin, note, search."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from flows.cli.options import IdArgument, JsonOption, StoreOption, console, existing_store, print_json

if TYPE_CHECKING:
    from flows.inspection.search import FoundArtifact

R = TypeVar("R")

RemoveOption = Annotated[bool, typer.Option("--remove", help="Take it away; its history stays in the store.")]
OptionalId = Annotated[str | None, typer.Argument(metavar="[ID]", help="Artifact id or tag; lists all if left out.")]


def tag(
    id: OptionalId = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Such as best or paper-v2.")] = None,
    remove: RemoveOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give an artifact a name, which works wherever an id does and which gc keeps. `tag NAME --remove` takes it away."""
    from dataclasses import asdict

    from flows.inspection.artifacts import find_record
    from infra.records.marks import remove_tag, set_tag, tags

    found = existing_store(store)
    if remove:
        # With `--remove` the first word is the tag itself, so a second one is a mistake.
        if id is None or name is not None:
            raise ValueError("olmo2 tag NAME --remove takes the tag's name and nothing else")
        marks = [remove_tag(found, id)]
    elif id is None:
        marks = list(tags(found).values())
    elif name is None:
        raise ValueError(f"give the name too: olmo2 tag {id} NAME")
    else:
        marks = [set_tag(found, name, find_record(found, id))]
    _tell([asdict(mark) for mark in marks], as_json, lambda mark: f"{mark['name']}  {mark['address'] or 'taken away'}")


def pin(
    id: OptionalId = None,
    remove: RemoveOption = False,
    why: Annotated[str, typer.Option("--why", help="A reason that is kept with it.")] = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep an artifact and all that it was made from whenever gc removes what nobody reaches."""
    from dataclasses import asdict

    from flows.inspection.artifacts import find_record
    from infra.records.marks import pins, set_pin

    found = existing_store(store)
    marks = pins(found) if id is None else [set_pin(found, find_record(found, id), pinned=not remove, why=why)]
    rows = [asdict(mark) for mark in marks]
    _tell(
        rows, as_json, lambda mark: f"{mark['address'] or mark['name'] + ' no longer pinned'}  {mark['text']}".rstrip()
    )


def note(
    id: IdArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What you want to remember of it.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a note to an artifact; `olmo2 show` tells all of them, with who and when."""
    from dataclasses import asdict

    from flows.inspection.artifacts import find_record
    from infra.records.marks import add_note

    found = existing_store(store)
    said = asdict(add_note(found, find_record(found, id), text))
    _tell([said], as_json, lambda mark: f"{mark['address']}  {mark['when']} {mark['who']}: {mark['text']}")


def search_command(
    conditions: Annotated[
        list[str], typer.Argument(metavar="CONDITION...", help="Such as 'loss<2.5', stage=dpo or 'label~anneal'.")
    ],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find artifacts by metrics, config fields, label or time: FIELD OP VALUE with = != < <= > >= ~, all of which must hold."""
    from flows.inspection.search import search as look

    found = existing_store(store)
    rows = look(found, conditions)

    def line(row: "FoundArtifact") -> str:
        said = ", ".join(f"{path} {value}" for path, value in row["found"].items())
        return f"{row['id']}  {row['label']}  {row['created']}  {said}"

    _tell(rows, as_json, line)
    if not rows and not as_json:
        console.print(f"no artifact of store {found.url} is like that; see: olmo2 ls", highlight=False)


def _tell(rows: Sequence[R], as_json: bool, line: Callable[[R], str]) -> None:
    if as_json:
        print_json(rows)
        return
    for row in rows:
        console.print(line(row), highlight=False)


def add_mark_commands(app: typer.Typer) -> None:
    """Add the commands to `olmo2`."""
    for command in (tag, pin, note, search_command):
        app.command(command.__name__.removesuffix("_command"))(command)
