"""Which recipes were rehearsed from this folder, and the question that an expensive run is met with when its recipe was not.

A record is a small file named after a hash of the recipe, so that a changed recipe asks for one of its own. Where a recipe
runs takes no part in the hash.
"""

import hashlib
import json
from pathlib import Path

from flows.config.errors import RecipeError
from flows.config.recipe_config import RecipeConfig
from flows.config.sizes.training_runs import training_runs
from flows.inspection.costs.cost import DEFAULT_MFU, DEVICES

_FOLDER = Path("rehearsals")
"""In the folder that the commands are given in."""
GPU_HOUR = 2.5
"""Price of an H100 hour that a run is judged by; what a plan is told with --price is the person's own."""
ASKED_ABOVE = 1_000.0
"""A run whose trainings cost more than this asks for a rehearsal first."""


def digest(config: RecipeConfig) -> str:
    """Hash of all that decides what a recipe makes, before anything is pinned."""
    # Before pinning, so that the hash needs no network.
    data = config.model_dump(mode="json", exclude={"execution"})
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def price(config: RecipeConfig) -> float:
    """Money for the trainings of a recipe on H100, as far as their steps are known."""
    device, model = DEVICES["h100"], config.pretrain.model
    flops = sum(run.flops(model) or 0.0 for run in training_runs(config))
    return flops / (device.peak_flops * DEFAULT_MFU) / 3600 * GPU_HOUR


def remember(config: RecipeConfig, *, how: str) -> Path:
    """Note that a recipe was rehearsed, or (`how`) that a person went on without."""
    _FOLDER.mkdir(exist_ok=True)
    path = _FOLDER / f"{digest(config)}.json"
    path.write_text(json.dumps({"recipe": config.name, "how": how}) + "\n", encoding="utf-8")
    return path


def check_rehearsed(config: RecipeConfig, recipe: str, *, skip: bool) -> None:
    """Raise RecipeError for an expensive recipe without a rehearsal; with `skip` it is noted, so that a resume asks no more."""
    if (money := price(config)) <= ASKED_ABOVE or (_FOLDER / f"{digest(config)}.json").exists():
        return
    if skip:
        remember(config, how="skipped")
        return
    raise RecipeError(
        f"the trainings of {config.name} cost about {money:,.0f} at {GPU_HOUR:g} for an H100 hour, and above {ASKED_ABOVE:,.0f} "
        f"a run asks for a rehearsal of the same recipe first: olmo2 rehearse {recipe} (minutes on this machine; give it the "
        "same --set). To run without one: --no-rehearsal"
    )
