"""`olmo2 eval`, `rescore`, `judge`, `compare` and `looks` on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import IdArgument, JsonOption, StoreOption, console, existing_store, open_store, print_json

WhyOption = Annotated[
    str, typer.Option("--why", help="Why held-out scores are looked at; kept with who and when (olmo2 looks).")
]


def eval_command(
    target: Annotated[str, typer.Argument(metavar="CHECKPOINT|FOLDER|HUB_ID|URL", help="Id, model or server.")],
    tasks: Annotated[
        str, typer.Option("--tasks", help="Tables and tasks with commas, such as olmes or arc_easy,piqa:cloze.")
    ] = "olmes",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Items of each benchmark; else the published.")
    ] = None,
    against: Annotated[str | None, typer.Option("--against", metavar="ID", help="Compare with these scores.")] = None,
    data: Annotated[str, typer.Option("--data", help="Folder with local copies of the data sets; else the hub.")] = "",
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the chat template.")] = False,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    precision: Annotated[
        str, typer.Option("--precision", help="fp32, or bf16: faster, log-likelihoods to about 1e-2.")
    ] = "fp32",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; else all cores.")] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that hold the model together where it fits on no device.")
    ] = 1,
    model: Annotated[str, typer.Option("--model", help="Of a server with several: what it calls the model.")] = "",
    key_env: Annotated[str, typer.Option("--key-env", help="Environment variable with the server's key.")] = "",
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", help="Folder of the served model's tokenizer; else OLMo 2's.")
    ] = "",
    why: WhyOption = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a checkpoint, or a model behind an OpenAI-compatible server, on tasks of OLMES, without a recipe."""
    from flows.running.measuring import (
        How,
        Server,
        compare_artifacts,
        evaluate_checkpoint,
        print_differences,
        print_scores,
    )
    from tasks.evaluation.scoring.selection import select

    if not target:
        raise ValueError("the checkpoint is empty; give an id (see: olmo2 ls), a folder or a hub id")
    found = open_store(store)
    words = [word.strip() for word in tasks.split(",") if word.strip()]
    server = Server(model, key_env, tokenizer)
    how = How(chat=chat, precision=precision, device=device, threads=threads, workers=workers)
    selection = select(words, copies=data, limit=limit)
    shown = evaluate_checkpoint(found, target, selection, how=how, server=server, why=why)
    differences = compare_artifacts(found, against, shown["id"], why=why) if against else []
    if as_json:
        print_json(shown | ({"differences": differences} if against else {}))
        return
    print_scores(console, shown)
    if against:
        print_differences(console, differences)


def rescore_command(
    id: IdArgument, why: WhyOption = "", store: StoreOption = None, as_json: JsonOption = False
) -> None:
    """Score the stored answers of an evaluation with today's metrics; no model is loaded."""
    from flows.running.measuring import print_scores, rescore_artifact

    shown = rescore_artifact(existing_store(store), id, why)
    if as_json:
        print_json(shown)
    else:
        print_scores(console, shown)


def judge_command(
    id: IdArgument,
    url: Annotated[str, typer.Option("--url", help="Server that judges, with the OpenAI protocol, up to its /v1.")],
    model: Annotated[str, typer.Option("--model", help="Of a server with several: what it calls the model.")] = "",
    key_env: Annotated[str, typer.Option("--key-env", help="Environment variable with the server's key.")] = "",
    played: Annotated[
        str, typer.Option("--played", metavar="FILE", help="AlpacaEval's df_gamed.csv, for its length control in full.")
    ] = "",
    prompt: Annotated[
        str, typer.Option("--prompt", help="Of sets of safety: `ours`, or `wildguard` where WildGuard judges.")
    ] = "ours",
    seed: Annotated[int, typer.Option("--seed", help="Of the order of two answers; another one asks again.")] = 0,
    why: WhyOption = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a language model judge the stored answers to instructions: AlpacaEval 2, sets of safety."""
    from flows.running.measuring import Server, judge_artifact, print_scores

    server = Server(model=model, key_env=key_env)
    shown = judge_artifact(existing_store(store), id, url, server, prompt=prompt, played=played, seed=seed, why=why)
    if as_json:
        print_json(shown)
    else:
        print_scores(console, shown)


def compare_command(
    first: IdArgument,
    second: Annotated[str, typer.Argument(metavar="ID", help="Scores to compare with the first.")],
    page: Annotated[Path | None, typer.Option("--page", help="Also write an HTML page of the differing items.")] = None,
    why: WhyOption = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Paired differences of two evaluations, over the items that both answered."""
    from flows.running.measuring import compare_artifacts, print_differences

    rows = compare_artifacts(existing_store(store), first, second, page, why)
    if as_json:
        print_json(rows)
    else:
        print_differences(console, rows)


def looks_command(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Only looks at these scores; else all.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the looks at held-out scores: who, when, in which run and why."""
    from rich.table import Table

    from flows.inspection.artifacts import find_record
    from infra.records.looks import read_looks

    found = existing_store(store)
    looks = read_looks(found, "" if id is None else find_record(found, id).address)
    if as_json:
        print_json(looks)
        return
    table = Table("when", "who", "scores", "held-out benchmarks", "run", "why", box=None, pad_edge=False)
    for look in looks:
        table.add_row(look.when[:19], look.who, look.label, ", ".join(look.benchmarks), look.run, look.why)
    console.print(table)
    console.print(f"{len(looks):,} looks at held-out scores", highlight=False)


def add_commands(app: typer.Typer) -> None:
    """Make the commands part of `olmo2`."""
    app.command(name="eval")(eval_command)
    app.command(name="rescore")(rescore_command)
    app.command(name="judge")(judge_command)
    app.command(name="compare")(compare_command)
    app.command(name="looks")(looks_command)
