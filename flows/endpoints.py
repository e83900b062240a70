"""Which stages ask a language model, checked before a run begins: a missing endpoint should not be found out days later."""

from collections.abc import Iterable

from flows.config import RecipeConfig
from infra.session import PlanRow
from infra.settings import Execution, read_key, settings_of
from tasks.data.personas import PersonasConfig
from tasks.training.model_judge import LanguageModelJudge


def asked_models(config: RecipeConfig) -> dict[str, str]:
    """Model by the label of the stage that asks it."""
    made = [*config.synthesize.items(), *((item.name, item.synthesize) for item in config.candidates)]
    found = {f"personas:{name}": item.writer.model for name, item in made if isinstance(item, PersonasConfig)}
    found |= {f"rewrite:{item.name}": item.rewrite.writer.model for item in config.candidates if item.rewrite}
    found |= {f"label:{name}": labels.writer.model for name, labels in config.label.items()}
    if isinstance(config.preferences.judge, LanguageModelJudge):
        found["preferences"] = config.preferences.judge.model.model
    return found


def check_endpoints(models: dict[str, str], rows: Iterable[PlanRow], execution: Execution) -> None:
    """Raise ValueError when a stage that is going to run asks a model without an endpoint, or one whose key is not set."""
    for row in rows:
        if row.label in models and row.action in ("run", "resume"):
            model = models[row.label]
            settings = settings_of(model, execution.endpoints)
            if settings.key_env:
                read_key(model, settings)
