"""Commands for a store's day two: verify, repair, gc, cp, diff and the lists of what was accepted and approved."""

from typing import Annotated

import typer

from flows.cli.options import IdArgument, JsonOption, StoreOption, console, errors, existing_store, print_json

DoOption = Annotated[bool, typer.Option("--yes", help="Do it; without this it is only shown.")]


def verify_command(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Only these; all when left out.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hash every file of every artifact again and name what is damaged (exit 1). Interrupted, it goes on where it was."""
    from dataclasses import asdict

    from infra.records.upkeep import verify_artifacts as check

    found = existing_store(store)
    # An empty id begins every id.
    if "" in (ids or []):
        raise ValueError("an id is empty, which would mean every artifact; leave ids out for that")

    def tell(name: str, number: int, count: int) -> None:
        # Overwritten in place on a terminal; in a file it would be a line for each artifact.
        if errors.is_terminal:
            errors.print(f"{number}/{count} {name}", style="dim", markup=False, highlight=False, end="\r")

    count, damage = check(found, ids or [], tell)
    if ids and not count:
        raise ValueError(f"store {found.url} has no artifact with id {', '.join(ids)}; see: olmo2 ls")
    if as_json:
        print_json({"artifacts": count, "damage": [asdict(item) for item in damage]})
    else:
        for item in damage:
            where = f"{item.stage}/{item.id} generation {item.generation}"
            console.print(f"{where}: {item.file}: {item.finding}", style="red", markup=False, highlight=False)
        console.print(f"{count:,} artifacts verified, {len(damage):,} files damaged", highlight=False)
        for id in dict.fromkeys(item.id for item in damage):
            console.print(f"olmo2 repair {id} --store {found.url}", highlight=False, markup=False)
    raise typer.Exit(1 if damage else 0)


def repair_command(
    id: IdArgument,
    source: Annotated[
        str | None, typer.Option("--from", metavar="STORE", help="Take it from this store; else it is made anew.")
    ] = None,
    ray: Annotated[str, typer.Option("--ray", help="Where shards run: off, local or a cluster's address.")] = "off",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mend a damaged artifact where it is, so that what was made from it stays as it is."""
    from flows.running.repair import repair as mend
    from infra.storage.store import Store

    def tell(text: str) -> None:
        (errors if as_json else console).print(text, markup=False, highlight=False)

    mended = mend(existing_store(store), id, Store(source) if source else None, tell, ray)
    if as_json:
        print_json({"mended": mended})
        return
    tell(f"mended: {', '.join(mended)}" if mended else "nothing of it is damaged")


def gc(
    recipes: Annotated[
        list[str] | None, typer.Option("--recipe", metavar="RECIPE", help="Keep what this recipe uses; repeatable.")
    ] = None,
    keep: Annotated[list[str] | None, typer.Option("--keep", metavar="ID", help="Keep this too; repeatable.")] = None,
    newest: Annotated[
        int | None,
        typer.Option("--newest", min=1, metavar="N", help="Keep the newest N of each label, such as anneal:42."),
    ] = None,
    schedules: Annotated[
        bool, typer.Option("--schedules", help="Keep what the running dashboard's schedules use of this store.")
    ] = False,
    store: StoreOption = None,
    yes: DoOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show (with --yes, remove) what nobody reaches: leftovers of attempts and old generations; with --recipe, --keep,
    --newest or --schedules, everything that these were not made from. Tags and pins always keep theirs.
    """
    from flows.inspection.artifacts import find_record
    from flows.inspection.roots import newest_records, scheduled_recipes
    from flows.running.run import load_recipe, plan
    from infra.records.marks import marked_records
    from infra.records.record import record_of
    from infra.records.upkeep import garbage, remove

    target = existing_store(store)
    # Tags and pins are roots always: a person has said that these stay.
    roots = [*marked_records(target), *(find_record(target, id) for id in keep or [])]
    roots += newest_records(target, newest) if newest else []
    wanted = scheduled_recipes(target) if schedules else []
    for recipe in recipes or []:
        wanted.append((recipe, []))
    for recipe, overrides in wanted:
        # A plan and no run: it tells which artifacts of the store the recipe would use.
        rows = plan(load_recipe(recipe, overrides, target.url))
        roots += [record_of(target, row.artifact) for row in rows if row.artifact is not None]
    found = garbage(target, roots, everything_else=bool(recipes or keep or newest or schedules))
    if yes:
        remove(target, found)
    if as_json:
        print_json({"removed": yes, "objects": found.folders, "bytes": found.bytes})
        return
    for folder in found.folders:
        console.print(folder, markup=False, highlight=False)
    said = "removed" if yes else "could go; remove it with --yes" if found.folders else "could go"
    console.print(f"{found.bytes:,} bytes {said}", highlight=False)


def cp(
    id: IdArgument,
    target: Annotated[str, typer.Argument(metavar="STORE", help="Folder or fsspec URL.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy an artifact with its whole lineage to another store, every file verified. Interrupted, it goes on where it was."""
    from flows.inspection.artifacts import find_record
    from infra.records.upkeep import copy_lineage
    from infra.storage.store import Store

    source = existing_store(store)
    rows = []
    # A generator's rows are printed as they come, since a copy may take hours.
    for record, copied in copy_lineage(source, Store(target), find_record(source, id)):
        rows.append({"label": record.label, "id": record.id, "copied": copied})
        (errors if as_json else console).print(
            f"{record.label} {record.id} {'copied' if copied else 'was there'}", markup=False, highlight=False
        )
    if as_json:
        print_json(rows)


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="Artifact id, or its beginning.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how two artifacts differ: version, config, inputs, code, packages, facts, files."""
    from flows.inspection.artifacts import find_record
    from infra.execution.compare import record_differences

    found = existing_store(store)
    differences = record_differences(find_record(found, first), find_record(found, second))
    if as_json:
        print_json(differences)
        return
    for section, lines in differences.items():
        for line in lines:
            console.print(f"{section}: {line}", markup=False, highlight=False)
    if not any(differences.values()):
        console.print("they do not differ", highlight=False)


def accepted_command(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List what was accepted though its code had changed: who, when, why."""
    from infra.execution.stale import acceptances

    rows = acceptances(existing_store(store))
    if as_json:
        print_json(rows)
        return
    for said in rows:
        console.print(
            f"{said['when']} {said['who']} {said['label']}: {said['why']} ({'; '.join(said['changed'])})",
            markup=False,
            highlight=False,
        )


def approvals(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List what was approved or refused above execution.approve_above: who, when, why, at which price."""
    from dataclasses import asdict

    from infra.execution.approval import approvals as decisions
    from infra.execution.approval import as_money

    rows = [asdict(said) for said in decisions(existing_store(store))]
    if as_json:
        print_json(rows)
        return
    for said in rows:
        console.print(
            f"{said['when']} {said['who']} {said['decision']} {said['label']} {as_money(said['price'])}: {said['reason']}",
            markup=False,
            highlight=False,
        )


def add_store_commands(app: typer.Typer) -> None:
    """Add the commands to `olmo2`."""
    for command in (verify_command, repair_command, gc, cp, diff, accepted_command, approvals):
        app.command(command.__name__.removesuffix("_command"))(command)
