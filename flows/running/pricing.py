"""The price of a stage that is about to run, from what its inputs turned out to be, for `execution.approve_above`.

The figures are those of `olmo2 plan --gpus`: GPU hours of trainings and sampling at `execution.pricing`, calls of language
models at their endpoints' prices.
"""

from collections.abc import Callable
from functools import partial

from flows.config.recipe_config import RecipeConfig
from flows.config.sizes.training_runs import trained_model, training_runs
from flows.inspection.costs.cost import DEVICES, Hardware, StageCost, cost
from flows.inspection.costs.cost_other import OtherCost, other_costs
from flows.running.sessions import plan_rows
from infra.execution.approval import as_money
from infra.execution.plan import PlanRow
from infra.session import Price, Session
from infra.settings import Execution


def priced(
    config: RecipeConfig, session: Session, flow: Callable[[RecipeConfig], object]
) -> Callable[[str], Price | None]:
    """Label -> price, by a plan of the flow made at that moment."""
    hardware = hardware_of(config.execution)

    def price(label: str) -> Price | None:
        return price_of(config, hardware, plan_rows(config, session, flow), label)

    return price


def hardware_of(execution: Execution) -> Hardware:
    """The GPUs of `execution.pricing`. Raises ValueError for one that is not in the table."""
    asked = execution.pricing
    assert asked is not None, "checked with approve_above"
    if asked.gpu.lower() not in DEVICES:
        raise ValueError(f"execution.pricing.gpu={asked.gpu!r} is not in the table; use one of {', '.join(DEVICES)}")
    return Hardware(asked.gpus, DEVICES[asked.gpu.lower()], asked.mfu, execution.site.planned(), asked.price)


def price_of(config: RecipeConfig, hardware: Hardware, rows: list[PlanRow], label: str) -> Price | None:
    """What one stage of a plan would cost; None where no price is known."""
    made = {row.label: row.artifact for row in rows if row.artifact is not None}
    # A training's price comes from its own run, anything else's from the other costs of the plan.
    run = next((run for run in training_runs(config, made) if run.label == label), None)
    if run is not None:
        return _as_price(cost(run, trained_model(config, label), hardware), hardware)
    return next(
        (_as_price(item, hardware) for item in other_costs(config, hardware, rows) if item.label == label), None
    )


def asking(config: RecipeConfig, rows: list[PlanRow]) -> dict[str, Price]:
    """The stages of a plan that would wait for an approval, as far as prices are known now."""
    above = config.execution.approve_above
    if above is None:
        return {}
    hardware = hardware_of(config.execution)
    found = partial(price_of, config, hardware, rows)
    prices = {row.label: found(row.label) for row in rows if row.action in ("run", "resume")}
    return {label: price for label, price in prices.items() if price is not None and price.money > above}


def _as_price(item: StageCost | OtherCost, hardware: Hardware) -> Price | None:
    if item.money is None:
        return None
    shown = {
        "steps": getattr(item, "steps", None),
        "tokens": item.tokens,
        "FLOPs": None if item.flops is None else f"{item.flops:.3g}",
        "GPUs": item.gpus,
        "hours": None if item.hours is None else f"{item.hours:,.3g}",
        "kWh": None if item.kwh is None else f"{item.kwh:,.3g}",
        "t CO2": None if item.co2_tonnes is None else f"{item.co2_tonnes:,.3g}",
        "calls of language models": getattr(item, "calls", None),
        "assumption": getattr(item, "assumption", None),
        "price of a GPU hour": f"{hardware.price:,.4g} at MFU {hardware.mfu:g}",
        "price": as_money(item.money),
    }
    # What is 0 or unknown is left out.
    text = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in shown.items() if value}
    return Price(item.money, tuple(text.items()))
