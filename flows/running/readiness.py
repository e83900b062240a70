"""Which stages ask a language model, checked before a run begins: a missing endpoint should not be found out days later."""

import re
from collections.abc import Iterable

from flows.config.recipe_config import RecipeConfig
from infra.records.artifact import Artifact
from infra.session import PlanRow
from infra.settings import Execution, read_key, settings_of
from tasks.data.personas import PersonasConfig
from tasks.training.answers.model_judge import LanguageModelJudge
from tasks.training.preferences import PreferencesConfig

ANSWERING = ("preferences", "evaluate")
"""Stages whose prompts a server may answer instead (`execution.generation`); the checkpoint is their first input."""
DIGEST = re.compile(r"[0-9a-f]{64}")
"""How a checkpoint is named to a server."""


def asked_models(config: RecipeConfig) -> dict[str, str]:
    """Model by the label of the stage that asks it."""
    made = [*config.synthesize.items(), *((item.name, item.synthesize) for item in config.candidates)]
    found = {f"personas:{name}": item.writer.model for name, item in made if isinstance(item, PersonasConfig)}
    found |= {f"rewrite:{item.name}": item.rewrite.writer.model for item in config.candidates if item.rewrite}
    found |= {f"label:{name}": labels.writer.model for name, labels in config.label.items()}
    sampled = config.preferences
    if isinstance(sampled, PreferencesConfig) and isinstance(sampled.judge, LanguageModelJudge):
        found["preferences"] = sampled.judge.model.model
    return found


def check_endpoints(models: dict[str, str], rows: Iterable[PlanRow], execution: Execution) -> None:
    """Raise ValueError when a stage that is going to run asks a model without an endpoint, or one whose key is not set."""
    for row in rows:
        if row.label in models and row.action in ("run", "resume"):
            model = models[row.label]
            settings = settings_of(model, execution.endpoints)
            if settings.key_env:
                read_key(model, settings)


def check_generation(rows: Iterable[PlanRow], execution: Execution) -> None:
    """Raise ValueError when a stage that is going to run leaves its answers to a server and no endpoint could be that.

    A checkpoint that is not made yet has no digest to compare: then any endpoint under a digest may be meant for it.
    """
    made: dict[str, Artifact | None] = {}
    for row in rows:  # inputs come first
        made[row.label] = row.artifact
        asked = row.stage in ANSWERING and row.action in ("run", "resume")
        if not asked or execution.stage_generation(row.stage) == "local" or "default" in execution.endpoints:
            continue
        _check_served(row, row.inputs[0], made[row.inputs[0]], execution)


def _check_served(row: PlanRow, label: str, artifact: Artifact | None, execution: Execution) -> None:
    names = execution.endpoints.keys()
    if artifact.digest in names if artifact else any(DIGEST.fullmatch(name) for name in names):
        return
    until = "" if artifact else f"make it first (--until {label}), "
    id, name = (artifact.id, artifact.digest) if artifact else ("ID", "DIGEST")
    raise ValueError(
        f"execution.generation leaves the answers of {row.label} to a server of the checkpoint {label}, and no endpoint is "
        f"known for it: {until}export it (olmo2 export {id} DIR), serve that folder under its digest as the model's name, and "
        f"say execution: {{endpoints: {{{name}: {{url: http://localhost:8000/v1}}}}}}, or a `default`; or leave "
        f"generation.{row.stage} local"
    )
