"""The `olmo2` command: run, plan and rerun recipes; look at artifacts; start the dashboard.

Exit codes: 0 done, 1 a stage failed, 2 bad input, 130 interrupted (Ctrl-C), 143 ended by SIGTERM. Imports that take time
happen inside the commands, so that help is quick.
"""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.data import data_app
from flows.cli.deferred_imports import defer_imports
from flows.cli.evaluation import add_commands
from flows.cli.marks import add_mark_commands
from flows.cli.options import (
    AcceptOption,
    ApproveOption,
    IdArgument,
    JsonOption,
    NoRehearsalOption,
    RecipeArgument,
    RerunOption,
    SetOption,
    StoreOption,
    UntilOption,
    accepting,
    console,
    errors,
    existing_store,
    open_store,
    print_json,
)
from flows.cli.plan import plan_command
from flows.cli.profile import profile
from flows.cli.promote import promote
from flows.cli.rehearse import conformance_command, rehearse, sample_command
from flows.cli.scale import fit_command, nodes_command, scale_command
from flows.cli.store import add_store_commands
from infra.processor import wait_passively

if TYPE_CHECKING:
    from flows.cli.terminal import RunEnding

app = typer.Typer(
    help="The OLMo 2 training recipe: run it whole, rerun a stage, look at what was made.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
add_commands(app)
app.command("plan")(plan_command)
app.command()(rehearse)
app.command("scale")(scale_command)
app.command()(profile)
app.command()(promote)
app.command("fit")(fit_command)
app.command("nodes")(nodes_command)
app.command("sample")(sample_command)
app.command("conformance")(conformance_command)
add_store_commands(app)
add_mark_commands(app)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        console.print(f"olmo2 {version('olmo2-recipe')}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command("run")
def run_command(
    recipe: RecipeArgument,
    store: StoreOption = None,
    until: UntilOption = None,
    rerun: RerunOption = None,
    set: SetOption = None,
    no_rehearsal: NoRehearsalOption = False,
    accept: AcceptOption = None,
    approve: ApproveOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe: what exists is reused, what was interrupted is resumed, what changed is rerun."""
    overrides = accepting(set, accept, approve)
    _prepare(recipe, overrides, no_rehearsal)
    from flows.cli.terminal import RunRequest, watched

    asked = RunRequest(recipe, store, until, rerun or [], overrides)
    with watched(errors if as_json else console, errors, asked) as run:
        if run.flow:
            run.made = run.flow()
    _end(run.ended, as_json)


@app.command()
def rerun(
    recipe: RecipeArgument,
    stage: Annotated[
        str, typer.Argument(metavar="STAGE", help="Such as dpo, anneal:42 (one of several) or 'anneal:*'.")
    ],
    store: StoreOption = None,
    set: SetOption = None,
    no_rehearsal: NoRehearsalOption = False,
    accept: AcceptOption = None,
    approve: ApproveOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a stage and everything below it again; what was there stays as an earlier generation."""
    overrides = accepting(set, accept, approve)
    _prepare(recipe, overrides, no_rehearsal)
    from flows.cli.terminal import RunRequest, watched

    asked = RunRequest(recipe, store, None, [stage], overrides, cascade=True)
    with watched(errors if as_json else console, errors, asked) as run:
        if run.flow:
            run.made = run.flow()
    _end(run.ended, as_json)


@app.command(name="ls")
def list_artifacts(
    store: StoreOption = None,
    stage: Annotated[str | None, typer.Option("--stage", help="Only this stage's, such as dpo or anneal:42.")] = None,
    save_points: Annotated[
        bool, typer.Option("--save-points", help="The permanent save points of trainings instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the artifacts of a store, oldest first."""
    from flows.inspection.artifacts import kept_rows, list_rows, print_kept, print_list

    found = existing_store(store)
    if save_points:
        kept = kept_rows(found, stage)
        nothing = f"store {found.url} has no permanent save points; execution.keep_every says how often one is kept"
        if as_json:
            print_json(kept)
        else:
            print_kept(console, kept, nothing)
        return
    rows = list_rows(found, stage)
    if as_json:
        print_json(rows)
    else:
        print_list(console, rows, f"store {found.url} has no artifacts{f' of stage {stage!r}' if stage else ''}")


@app.command()
def show(
    id: IdArgument,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an artifact: its record, metrics, and lineage up to the raw inputs."""
    from flows.inspection.artifacts import print_record, show_record

    shown = show_record(existing_store(store), id)
    if as_json:
        print_json(shown)
    else:
        print_record(console, shown)


@app.command("export")
def export_command(
    id: IdArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a checkpoint out as a Hugging Face folder with a model card: data, scores with errors, recipe, how to load."""
    from flows.inspection.artifacts import export_checkpoint

    written = export_checkpoint(existing_store(store), id, folder)
    if as_json:
        print_json({"folder": str(folder), "files": written})
        return
    console.print(f"{folder}: {', '.join(written)}", highlight=False)


@app.command("adopt")
def adopt_checkpoint_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH|HUB_ID|ID@STEP",
            help="Olmo2 Hugging Face folder (of a reward model too), hub id, or a permanent save point (olmo2 ls --save-points).",
        ),
    ],
    place: Annotated[str, typer.Option("--as", help="What it stands for: base, soup, sft, dpo, reward or rlvr.")],
    store: StoreOption = None,
    revision: Annotated[str, typer.Option("--revision", help="Branch, tag or commit on the hub.")] = "",
    into: Annotated[
        str | None,
        typer.Option("--into", metavar="RECIPE", help="Also write a recipe that extends this one and begins there."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make any Olmo2 checkpoint an artifact that mid-training, post-training or evaluation can start from."""
    from flows.starting import adopt_command

    if not source:
        raise ValueError("the source is empty; give a folder, a hub id, or ID@STEP (see: olmo2 ls --save-points)")
    adopted = adopt_command(open_store(store), source, revision, place, into)
    if as_json:
        print_json(adopted)
        return
    console.print(f"{adopted['id']}  {'Reused' if adopted['reused'] else 'adopted'} as {place}", highlight=False)
    if adopted["recipe"]:
        console.print(f"olmo2 run {adopted['recipe']} --store {adopted['store']}", highlight=False, markup=False)
    else:
        console.print(f"start a recipe from it: start: {{{place}: {adopted['id']}}}", highlight=False, markup=False)


@app.command("trace")
def trace_command(
    target: Annotated[str, typer.Argument(metavar="RECIPE|ID", help="A recipe, or a pretrain or anneal id.")],
    step: Annotated[int | None, typer.Option("--step", help="Name the documents of this update (from 1).")] = None,
    document: Annotated[str | None, typer.Option("--document", help="Name the updates that read this one.")] = None,
    stage: Annotated[str, typer.Option("--stage", help="Which training of a recipe.")] = "pretrain",
    store: StoreOption = None,
    set: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go from a training step to its documents, or from a document to the steps that saw it; also of one that failed."""
    from flows.inspection.steps import trace_document, trace_step, trained
    from flows.inspection.traces import print_trace

    if (step is None) == (document is None):
        raise ValueError("give exactly one of --step and --document")
    training = trained(target, stage, store, set)
    traced = trace_step(training, step) if step is not None else trace_document(training, document or "")
    if as_json:
        print_json(traced)
    else:
        print_trace(console, traced)


@app.command()
def diagnose(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Checkpoints with metrics.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the figures and their JSON.")] = Path("diagnosis"),
    init: Annotated[str, typer.Option("--init", help="Variants at initialisation, such as olmo2,olmo-0424.")] = "",
    widths: Annotated[str, typer.Option("--widths", help="Model widths of --init.")] = "64,128,256,512",
    layers: Annotated[int, typer.Option("--layers", help="Layers of --init.")] = 8,
    window: Annotated[
        int, typer.Option("--window", help="Values before each that the paper's spike score judges it by.")
    ] = 1000,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw loss and gradient norm with spike scores, or how activations and gradients grow at initialisation."""
    from flows.inspection.stability import diagnose_initialisation, diagnose_runs, print_diagnosis

    if not ids and not init:
        raise ValueError("give checkpoint ids, or --init with variants such as olmo2,olmo-0424")
    runs = diagnose_runs(existing_store(store), ids, out, window) if ids else None
    growth = diagnose_initialisation(init, widths, layers, out) if init else None
    if as_json:
        print_json({**(runs or {}), **(growth or {})})
    else:
        print_diagnosis(console, runs, growth)


@app.command("clean")
def clean_command(
    store: StoreOption = None,
    hours: Annotated[float, typer.Option("--hours", min=1, help="Idle so long, when nothing else tells.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """Remove what killed processes left: temporary files and unfinished uploads of the store, half copies in its
    cache, scratch folders of this machine.

    Artifacts, save points and finished shards stay, and so does what a living process writes.
    """
    from flows.inspection.artifacts import clean_rows, print_cleaned

    rows = clean_rows(existing_store(store), hours)
    if as_json:
        print_json(rows)
    else:
        print_cleaned(console, rows)


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server.")] = 4200,
    host: Annotated[
        str, typer.Option("--host", help="Address to bind; beyond loopback only with a password.")
    ] = "127.0.0.1",
    notify: Annotated[
        list[str] | None,
        typer.Option(
            "--notify",
            metavar="ADDRESS",
            envvar="OLMO2_NOTIFY",
            show_envvar=True,
            help="Who is told of runs that end and stages that wait: mailtos://…, a Slack or other webhook; repeatable.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start the Prefect server, a worker and the deployments; Ctrl-C stops what this started."""
    from flows.running.dashboard import DashboardAddress, serve

    def tell(started: DashboardAddress) -> None:
        if as_json:
            print_json(started.facts)
        else:
            console.print(f"dashboard: {started.url}   (Ctrl-C stops it; logs in {started.logs})", highlight=False)
            chosen = f"runs use the store {started.store} where their form names none" if started.store else ""
            relative = f"a store that is a relative path lies in {started.folder}"
            console.print(chosen or relative, style="dim", markup=False, highlight=False)

    serve(errors if as_json else console, port, host, notify or [], tell)


@app.command("serve")
def serve_command(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the pages.")] = 4300,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a store in the browser, read-only: runs, artifacts, lineage, reports, samples, comparisons; Ctrl-C stops it."""
    from flows.serving.server import serve as serve_pages

    def tell(url: str, origin: str) -> None:
        if as_json:
            print_json({"store": url, "url": origin})
        else:
            console.print(f"store {url}: {origin}   (read-only; Ctrl-C stops it)", highlight=False)

    serve_pages(existing_store(store), port, tell)


def _prepare(recipe: str, overrides: list[str], no_rehearsal: bool) -> None:
    """Refuse a long run that was not rehearsed, and say how Prefect is to work before anything imports it."""
    # Until it is known that there is something to do here, a run is a plan.
    defer_imports()
    from flows.config.files import load
    from flows.rehearsing.rehearsal_record import check_rehearsed
    from flows.running.prefect_server import prepare_prefect

    # The rehearsal is asked of the recipe as it stands, before anything of Prefect is imported.
    check_rehearsed(load(recipe, overrides), recipe, skip=no_rehearsal)
    prepare_prefect()


def _end(ended: "tuple[int, RunEnding]", as_json: bool) -> None:
    """End with a run's exit code. With --json standard output is one JSON value; what a person reads went to standard error."""
    code, told = ended
    if as_json:
        print_json(told)
    raise typer.Exit(code)


def main() -> None:
    """Entry point: turns the errors that users can cause into a message and exit code 2, Ctrl-C into 130."""
    wait_passively()
    # Commands with something to end in order set handlers of their own.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))
    try:
        app()
    except (ValueError, OSError) as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
