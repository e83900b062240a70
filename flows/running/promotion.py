"""Promotion: what a sweep decided, as a mix file that recipes name.

The file is a piece of a recipe: the candidates that were compared, and the mix of mid-training with the winner in it by name. So
`extends: [laptop, promoted/maths.yaml]` trains on it whatever a later sweep ranks first.
"""

from pathlib import Path

import yaml

from flows.config.errors import nearest
from flows.config.recipe_config import RecipeConfig
from infra.json_values import JsonObject
from infra.storage.store import is_name
from tasks.artifacts import Ranking
from tasks.data.mix import WINNER

FOLDER = "promoted"
"""Where the dashboard writes mix files."""


def promoted(config: RecipeConfig, ranking: Ranking, candidate: str = "") -> JsonObject:
    """The fields of the mix file. `candidate` is the one to take; without it, the ranking's decided winner.

    Raises ValueError where the ranking is undecided and no candidate is named, or the recipe has none of that name.
    """
    name = candidate or ranking.outcome
    # An undecided ranking's outcome is a word of its own and no candidate.
    if not candidate and ranking.outcome not in ranking.order:
        raise ValueError(
            f"{ranking.address} is undecided: {', '.join(ranking.order)} may be equally good. Its ranking.json says what would "
            "decide; to take one nevertheless, name it (--candidate)"
        )
    known = [item.name for item in config.candidates]
    if name not in ranking.order or name not in known:
        raise ValueError(
            f"candidate {name!r} is not both in the ranking ({', '.join(ranking.order)}) and among the candidates of recipe "
            f"{config.name} ({', '.join(known)}){nearest(name, known)}"
        )
    if all(source.source != WINNER for source in config.anneal_mix.sources):
        raise ValueError(
            f"anneal_mix of recipe {config.name} takes no source {WINNER!r}, so a winner changes nothing; name one there"
        )
    mix = config.anneal_mix.model_dump(mode="json", exclude_defaults=True)
    candidates = [item.model_dump(mode="json", exclude_unset=True) for item in config.candidates]
    return {"candidates": candidates, "anneal_mix": mix | {"winner": name}}


def write_promoted(path: Path, config: RecipeConfig, ranking: Ranking, candidate: str = "") -> str:
    """Write the mix file; returns the winner's name. Raises ValueError as `promoted` does, or where the file exists."""
    data = promoted(config, ranking, candidate)
    if path.exists():
        raise ValueError(f"{path} exists; give another name, or remove it")
    winner = data["anneal_mix"]["winner"]
    how = "was named" if candidate else "is better than all others beyond chance"
    scores = ", ".join(f"{name} {ranking.scores[name]:.4g} ± {ranking.stderr[name]:.2g}" for name in ranking.order)
    head = f"# The mix that {ranking.address} chose: {winner} {how}. Scores: {scores}.\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + yaml.safe_dump(data, sort_keys=False, width=120))
    return winner


def promoted_path(name: str) -> Path:
    """Where the dashboard writes the mix file of this name. Raises ValueError for what is not a plain name."""
    if not is_name(name) or "/" in name:
        raise ValueError(f"{name!r} is not a plain name for a mix file; use letters, digits, - and _")
    return Path(FOLDER, f"{name.removesuffix('.yaml')}.yaml")
