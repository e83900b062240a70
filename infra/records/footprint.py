"""CO2 and water of stages that have finished: the energy of each record, at the site that was stated when it was made.

Source: RECIPE J, paper section 6.5 and Table 19 (oracle tests/golden/environment_table19.json), as in the plan of a recipe.
Energy is what counters saw or what was stated for the stage (`infra/execution/energy.py`), so no factor for the rest of a node
is applied. What was neither counted nor stated has no figure.
"""

import math
from collections.abc import Sequence
from typing import TypedDict

from infra.records.record import Record
from infra.settings import StatedSite

JOULES_PER_KWH = 3.6e6


class Footprint(TypedDict):
    """CO2 and water of some stages, and which of them they leave out."""

    stages: int
    """All of them."""
    co2_kg: float | None
    """Of the stages whose energy, PUE and carbon are known; None where there are none."""
    co2_stages: int
    """How many these are."""
    water_litres: float | None
    """Of the stages whose energy, PUE and water are known; None where there are none."""
    water_stages: int
    """How many these are."""
    sites: list[str]
    """What was stated of the sites of these stages, in words; each once."""
    missing: list[str]
    """Why stages are left out, a sentence for each reason."""


def impact(electricity: float, pue: float, per_unit: float) -> float:
    """CO2 or water for electricity at the machines: what the building draws for it, times an amount per unit."""
    return electricity * pue * per_unit


def footprint(records: Sequence[Record]) -> Footprint:
    """CO2 and water of finished stages. Each counts at its own site, for a store may hold stages of several."""
    co2 = [value for record in records if (value := _impact(record, record.site.carbon)) is not None]
    water = [value for record in records if (value := _impact(record, record.site.water)) is not None]
    counted = [
        record
        for record in records
        if _impact(record, record.site.carbon) is not None or _impact(record, record.site.water) is not None
    ]
    return Footprint(
        stages=len(records),
        co2_kg=math.fsum(co2) if co2 else None,
        co2_stages=len(co2),
        water_litres=math.fsum(water) if water else None,
        water_stages=len(water),
        sites=list(dict.fromkeys(_words(record.site) for record in counted)),
        missing=_missing(records),
    )


def _impact(record: Record, per_kwh: float | None) -> float | None:
    if record.energy_joules is None or record.site.pue is None or per_kwh is None:
        return None
    return impact(record.energy_joules / JOULES_PER_KWH, record.site.pue, per_kwh)


def _words(site: StatedSite) -> str:
    stated = [f"PUE {site.pue:g}"]
    stated += [] if site.carbon is None else [f"{site.carbon:g} kg of CO2 per kWh"]
    stated += [] if site.water is None else [f"{site.water:g} L of water per kWh"]
    return ", ".join(stated)


def _missing(records: Sequence[Record]) -> list[str]:
    """What the figures lack, and for how many stages."""
    lacking = {
        "energy, which nothing counted and execution.watts does not state": sum(
            record.energy_joules is None for record in records
        )
    }
    for name in StatedSite.model_fields:
        lacking[f"a stated execution.site.{name}"] = sum(getattr(record.site, name) is None for record in records)
    return [f"{count} of {len(records)} stages lack {what}." for what, count in lacking.items() if count]
