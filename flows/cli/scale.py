"""`olmo2 scale` and `olmo2 fit`: training stages on other devices than those here. `olmo2 nodes`: the devices that there are.
Imports that take time happen inside.
"""

from typing import Annotated

import typer

from flows.cli.options import (
    JsonOption,
    RecipeArgument,
    SetOption,
    StoreOption,
    console,
    existing_store,
    print_json,
)


def scale_command(
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
    from flows.inspection.costs.scaling import FAILURE_HOURS, Fabric, Reliability
    from flows.inspection.costs.scaling_table import counts_of, print_scaling, scaling_of, scaling_rows

    # Gb/s of the data sheet are bits, and bandwidths here are bytes.
    how = Fabric(node_gpus=node_gpus, network_bandwidth=network / 8 * 1e9)
    failures = Reliability(failure_hours or FAILURE_HOURS, save_seconds)
    found = scaling_of(recipe, set, stage, counts_of(gpus), gpu, mfu, how, failures)
    if as_json:
        print_json(scaling_rows(found))
    else:
        print_scaling(console, found, how, failures)


def fit_command(
    recipe: RecipeArgument,
    devices: Annotated[int | None, typer.Option("--devices", help="Devices that a training may use.")] = None,
    memory: Annotated[float | None, typer.Option("--memory", help="GB of one device; else those found here.")] = None,
    set: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose sharding, recomputation and micro-batches of each training stage for the memory of so many devices."""
    from flows.config.files import load
    from flows.config.sizes.fit import devices_here, fit_recipe
    from flows.inspection.costs.fit_table import fit_rows, print_fit

    config = load(recipe, set)
    here = devices_here(config.execution.device)
    if here is None and (devices is None or memory is None):
        raise ValueError(f"there is no {config.execution.device} here; give --devices and --memory, such as 8 and 80")
    count = devices or (here[0] if here else 1)
    # The option is in GB, the function in bytes.
    found = fit_recipe(config, count, memory * 1e9 if memory is not None else here[1] if here else 0)
    if as_json:
        print_json(fit_rows(found))
    else:
        print_fit(console, found)


def nodes_command(
    ray: Annotated[str, typer.Option("--ray", metavar="HOST:PORT", help="A cluster's head; else this machine.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Check all devices now; one that fails is cordoned.")] = False,
    cordon: Annotated[
        str | None, typer.Option("--cordon", metavar="NODE", help="Give this one no more stages.")
    ] = None,
    why: Annotated[str, typer.Option("--why", help="The reason of --cordon, which is kept with it.")] = "",
    uncordon: Annotated[str | None, typer.Option("--uncordon", metavar="NODE", help="Give it stages again.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the nodes of a Ray cluster, or this machine's devices: resources, health, and who cordoned which, when and why."""
    from flows.inspection.nodes import fleet, print_nodes

    if sum((check, cordon is not None, uncordon is not None)) > 1:
        raise ValueError("give one of --check, --cordon and --uncordon at a time")
    if why and cordon is None:
        raise ValueError("--why is the reason of --cordon NODE; give both")
    with fleet(existing_store(store), ray) as found:
        if cordon is not None:
            found.cordon(cordon, why)
        if uncordon is not None:
            found.uncordon(uncordon)
        passed = found.check() if check else True
        rows = found.rows()
    if as_json:
        print_json(rows)
    else:
        print_nodes(console, rows)
    if not passed:
        raise typer.Exit(1)
