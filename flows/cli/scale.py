"""`olmo2 scale`: a training stage on more and more GPUs. Imports that take time happen inside the command."""

from typing import Annotated

import typer

from flows.cli.options import JsonOption, RecipeArgument, SetOption, console, print_json


def scale(
    recipe: RecipeArgument,
    stage: Annotated[str, typer.Option("--stage", help="Training stage, as olmo2 plan names it.")] = "pretrain",
    gpus: Annotated[str, typer.Option("--gpus", help="Numbers of GPUs, with commas.")] = "8,16,32,64,128,256,512,1024",
    gpu: Annotated[str, typer.Option("--gpu", help="a100 or h100.")] = "h100",
    mfu: Annotated[float, typer.Option("--mfu", help="Share of the peak FLOP/s that one GPU alone reaches.")] = 0.45,
    network: Annotated[float, typer.Option("--network", help="Gb/s that a GPU sends to another node.")] = 400.0,
    node_gpus: Annotated[int, typer.Option("--node-gpus", help="GPUs of a node.")] = 8,
    failure_hours: Annotated[
        float | None, typer.Option("--failure-hours", help="Hours of one GPU between failures; else Llama 3's 50,676.")
    ] = None,
    save_seconds: Annotated[float, typer.Option("--save-seconds", help="What a save point takes from training.")] = 5.0,
    set: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate a training stage on many GPUs: time of an update, best save interval, expected time with failures."""
    from flows.inspection.scaling import FAILURE_HOURS, Fabric, Reliability
    from flows.inspection.scaling_table import counts_of, print_scaling, scaling_of, scaling_rows

    how = Fabric(node_gpus=node_gpus, network_bandwidth=network / 8 * 1e9)
    failures = Reliability(failure_hours or FAILURE_HOURS, save_seconds)
    found = scaling_of(recipe, set, stage, counts_of(gpus), gpu, mfu, how, failures)
    if as_json:
        print_json(scaling_rows(found))
    else:
        print_scaling(console, found, how, failures)
