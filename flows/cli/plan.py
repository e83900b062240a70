"""`olmo2 plan`: what a run would do with each stage, or what it would cost. Imports that take time happen inside the command."""

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.deferred_imports import defer_imports
from flows.cli.options import (
    JsonOption,
    RecipeArgument,
    RerunOption,
    SetOption,
    StoreOption,
    UntilOption,
    console,
    print_json,
)

if TYPE_CHECKING:
    from infra.execution.plan import PlanRow


def plan_command(
    recipe: RecipeArgument,
    store: StoreOption = None,
    until: UntilOption = None,
    rerun: RerunOption = None,
    set: SetOption = None,
    as_json: JsonOption = False,
    gpus: Annotated[int | None, typer.Option("--gpus", help="Say what training costs on so many GPUs.")] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="a100, h100 (when not given), or any with --peak-flops and --watts.")
    ] = None,
    mfu: Annotated[
        float | None, typer.Option("--mfu", help="Share of the peak FLOP/s that training reaches; else 0.4.")
    ] = None,
    price: Annotated[float | None, typer.Option("--price", help="Money per GPU and hour.")] = None,
    peak_flops: Annotated[float | None, typer.Option("--peak-flops", help="Dense bf16 FLOP/s of a GPU.")] = None,
    watts: Annotated[float | None, typer.Option("--watts", help="Power of a GPU.")] = None,
    pue: Annotated[
        float | None, typer.Option("--pue", help="Power usage effectiveness of the building; else the recipe's.")
    ] = None,
    carbon: Annotated[float | None, typer.Option("--carbon", help="kg CO2 per kWh; else the recipe's.")] = None,
    water: Annotated[float | None, typer.Option("--water", help="Litres of water per kWh; else the recipe's.")] = None,
    node_factor: Annotated[
        float | None, typer.Option("--node-factor", help="Power of a node over its GPUs' rated power; else Table 19's.")
    ] = None,
) -> None:
    """Say what a run would do with each stage, and why; with --gpus, what its training would cost. Runs nothing."""
    asked = {
        "gpu": gpu, "mfu": mfu, "price": price, "peak_flops": peak_flops, "watts": watts,
        "pue": pue, "carbon": carbon, "water": water, "node_factor": node_factor,
    }  # fmt: skip
    # A plan uses no model, and torch alone takes seconds to import.
    defer_imports()
    if gpus is None:
        if said := [f"--{name.replace('_', '-')}" for name, value in asked.items() if value is not None]:
            raise ValueError(f"{', '.join(said)}: only a plan of costs asks for that; add --gpus, such as --gpus 64")
        _show_stages(recipe, store, until, rerun, set, as_json=as_json)
        return
    from flows.inspection.costs.cost_table import plan_costs

    if until or rerun:
        raise ValueError("--gpus costs the whole recipe; leave out --until and --rerun")
    costs = plan_costs(None if as_json else console, recipe, set, gpus, **asked)
    if as_json:
        print_json(costs)


def _show_stages(
    recipe: str, store: str | None, until: str | None, rerun: list[str] | None, set: list[str] | None, *, as_json: bool
) -> None:
    from flows.running.pricing import asking
    from flows.running.readiness import doubts
    from flows.running.run import load_recipe
    from flows.running.run import plan as plan_recipe
    from infra.execution.approval import as_money

    config = load_recipe(recipe, set, store)
    rows = plan_recipe(config, until, rerun)
    if as_json:
        print_json([_as_json(row) for row in rows])
        return
    for label, text in doubts(config).items():
        console.print(f"{label}: {text}", style="yellow", markup=False)
    print_plan(rows)
    for label, price in asking(config, rows).items():
        console.print(
            f"{label} will wait for an approval: {as_money(price.money)}, above {config.execution.approve_above:,g}",
            style="yellow",
            markup=False,
            highlight=False,
        )


def _as_json(row: "PlanRow") -> dict[str, object]:
    return {
        "label": row.label,
        "stage": row.stage,
        "action": row.action,
        "why": row.reason,
        "id": row.id,
        "inputs": list(row.inputs),
        "estimate": row.estimate,
    }


def print_plan(rows: "list[PlanRow]") -> None:
    """A row for each stage with what would be done and why, and the counts."""
    from rich.table import Column, Table

    from flows.cli.options import print_folded

    styles = {"reused": "dim", "run": "green", "resume": "yellow", "left out": "dim", "corrupt": "red", "stale": "red"}
    whole = {"no_wrap": True, "overflow": "ignore"}
    heads = Column("stage", **whole), Column("action", **whole), Column("why", overflow="fold")
    table = Table(*heads, Column("tokens", **whole), Column("FLOPs", **whole), box=None, pad_edge=False)
    for row in rows:
        tokens, flops = row.estimate.get("tokens"), row.estimate.get("flops")
        at_most = row.estimate.get("tokens_at_most")
        table.add_row(
            row.label,
            row.action,
            row.reason,
            f"{tokens:,.0f}" if tokens else f"≤ {at_most:,.0f}" if at_most else "",
            f"{flops:.3g}" if flops else "",
            style=styles[row.action],
        )
    print_folded(console, table)
    counts = {action: sum(row.action == action for row in rows) for action in styles}
    console.print(", ".join(f"{count} {action}" for action, count in counts.items() if count), highlight=False)
