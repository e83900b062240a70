"""Starting anywhere: checkpoints adopted into a store, and recipes that begin at one instead of at raw text."""

import re
from pathlib import Path
from typing import TypedDict, get_args

import yaml

from flows.config.errors import RecipeError, nearest
from flows.config.files import find_recipe, load, read_recipe
from flows.config.parts import PAST_MIDTRAINING, StartPoint
from flows.config.recipe_config import RecipeConfig
from flows.inspection.artifacts import find_record
from infra.events import Listener, silent
from infra.execution.attempt import Outcome, run_stage
from infra.json_values import JsonObject
from infra.records.artifact import Artifact
from infra.records.record import Record
from infra.session import Session, current_session
from infra.settings import Execution
from infra.storage.store import Store
from tasks.artifacts import MOMENTS, Checkpoint, RewardModel
from tasks.training.adopt import adopt
from tasks.training.adopt_reward import adopt_reward
from tasks.training.adopt_step import adopt_step, pin_step
from tasks.training.fitting.model_folder import AdoptConfig
from tasks.training.preferences import PreferencesConfig

_PLACES: tuple[StartPoint, ...] = get_args(StartPoint)
"""What an adopted checkpoint may stand for; at `reward`, a reward model."""
GIVEN = "start:"
"""How labels of given checkpoints begin; the place follows."""
ANY_ID = "f" * 16
"""Stands for the id of what is not adopted yet."""
SAVE_POINT = re.compile(r"(?P<id>[0-9a-f]{4,16})@(?P<step>\d+)")
"""How a permanent save point is named."""


class Adopted(TypedDict):
    """What `olmo2 adopt` says."""

    id: str
    address: str
    digest: str
    reused: bool
    store: str
    recipe: str | None
    """Path of the recipe that was written."""
    facts: dict[str, object]


def adopt_into(store: Store, source: str, revision: str, place: str, listener: Listener) -> Outcome:
    """Make a Hugging Face folder, a hub model or a permanent save point of the store (ID@STEP) a checkpoint of the store.

    Raises ValueError for what does not fit.
    """
    session = Session(store, Execution(store=store.url, ray="off"))
    # A folder that happens to have such a name is meant as a folder.
    if (point := SAVE_POINT.fullmatch(source)) and not Path(source).exists():
        if revision:
            raise ValueError(f"--revision={revision!r} is for hub ids, but {source} is a save point")
        if place == "reward":
            raise ValueError(f"{source} is a save point, and those hold no reward model; give a folder or a hub id")
        kept = pin_step(store, point["id"], int(point["step"]))
        # Before gigabytes are fetched for a store that takes nothing.
        store.check_writable()
        return run_stage(adopt_step.labelled(place), session, {"config": kept}, listener)
    # Pinned first: a branch of the hub becomes a commit, so the id says which weights these are.
    config = AdoptConfig(source=source, revision=revision).pinned()
    store.check_writable()
    how = adopt_reward if place == "reward" else adopt
    return run_stage(how.labelled(place), session, {"config": config}, listener)


def adopt_command(store: Store, source: str, revision: str, place: str, into: str | None) -> Adopted:
    """`olmo2 adopt`: the artifact's id, whether it was there already, and the recipe written for `into`.

    Raises ValueError for a place or recipe that does not exist, before anything is fetched.
    """
    if place not in _PLACES:
        raise RecipeError(f"--as {place!r} is not a place to start at{nearest(place, list(_PLACES))}")
    # Loaded first, as it will be, so that a recipe that cannot begin there is refused before gigabytes are fetched.
    config = _beginning_at(into, place) if into else None
    outcome = adopt_into(store, source, revision, place, silent)
    path = write_recipe(into, place, outcome.record, config) if into and config else None
    return {
        "id": outcome.record.id,
        "address": outcome.record.address,
        "digest": outcome.record.digest,
        "reused": outcome.reused,
        "store": store.url,
        "recipe": str(path) if path and path.is_absolute() else f"./{path}" if path else None,
        "facts": outcome.record.facts,
    }


def _beginning_at(recipe: str, place: str) -> RecipeConfig:
    """The recipe as it is when it begins at a checkpoint that is not known yet. Raises RecipeError for one that cannot."""
    start = read_recipe(recipe).get("start")
    given = start if isinstance(start, dict) else {}
    # A reward model may stand next to one checkpoint.
    if place != "reward" and set(given) - {place, "reward"}:
        raise RecipeError(f"recipe {recipe} already starts at {given}; extend the one it extends")
    # A stand-in for the id, since the checkpoint is not there before the recipe is known to fit.
    return load(recipe, [f"start.{place}={ANY_ID}"])


def starting_point(config: RecipeConfig, place: StartPoint) -> Checkpoint | None:
    """The checkpoint that the recipe's `start` puts at this place, None where the recipe makes its own."""
    artifact = _given(config, place)
    assert artifact is None or isinstance(artifact, Checkpoint), artifact
    return artifact


def given_reward_model(config: RecipeConfig) -> RewardModel | None:
    """The reward model that the recipe's `start` gives, None where the recipe makes its own or none."""
    artifact = _given(config, "reward")
    assert artifact is None or isinstance(artifact, RewardModel), artifact
    return artifact


def pool_checkpoints(preferences: PreferencesConfig) -> list[Checkpoint]:
    """The checkpoints of the store that answer next to the policy. Raises ValueError for an id that is none's."""
    found = []
    for member in preferences.pool.checkpoints if preferences.pool else ():
        artifact = find_record(current_session().store, member.checkpoint).artifact()
        if not isinstance(artifact, Checkpoint):
            raise RecipeError(
                f"preferences.pool: {member.name} is {member.checkpoint}, a {artifact.kind} and no Checkpoint; see: olmo2 ls"
            )
        found.append(artifact)
    return found


def _given(config: RecipeConfig, place: StartPoint) -> Artifact | None:
    if place not in config.start:
        return None
    session = current_session()
    record = find_record(session.store, config.start[place])
    artifact = record.artifact()
    # A plan has a row for what is given too, so that people see where the recipe begins.
    session.in_charge.given(f"{GIVEN}{place}", record)
    return artifact


def checked_start(config: RecipeConfig, store: Store) -> RecipeConfig:
    """The recipe with the full id of its starting point. Raises RecipeError when the recipe cannot go on from there."""
    for place, id in config.start.items():
        record = find_record(store, id)
        wanted = RewardModel if place == "reward" else Checkpoint
        if record.kind != wanted.__name__:
            raise RecipeError(
                f"start.{place}={id} is a {record.kind} ({record.label}), not a {wanted.__name__}; see: olmo2 ls"
            )
        wanting = base_settings(config, record) if place == "base" else {}
        if wanting:
            changes = " ".join(f"--set {name}={value}" for name, value in wanting.items())
            raise RecipeError(f"start.base={id} ({record.label}) does not fit the recipe as it is; add {changes}")
        # The full id: what a person abbreviates may become ambiguous when the store grows.
        config = config.model_copy(update={"start": config.start | {place: record.id}})
    return config


def check_base(config: RecipeConfig) -> None:
    """Raise RecipeError unless the recipe makes or is given the base checkpoint that micro-anneals start from."""
    if config.starts_after_midtraining:
        place, id = next((place, id) for place, id in config.start.items() if place in PAST_MIDTRAINING)
        raise RecipeError(
            f"recipe {config.name} starts at start.{place}={id}, past the base checkpoint that micro-anneals start from; "
            "give a base with the override start={base: ID}, or pre-train one with start={}"
        )


def base_settings(config: RecipeConfig, record: Record) -> dict[str, int | str]:
    """What a recipe must say otherwise to anneal this checkpoint, by dotted field: its vocabulary, fresh moments."""
    said = {"encode.ranks": config.encode.ranks, "encode.tokenizer": config.encode.tokenizer}
    made = {"encode.ranks": record.facts["ranks"], "encode.tokenizer": record.facts.get("tokenizer", "dolma2")}
    wanting: dict[str, int | str] = {name: value for name, value in made.items() if said[name] != value}
    # Without the moments of AdamW, an anneal cannot keep them and starts with fresh ones.
    if MOMENTS not in record.files:
        stages = {"anneal": config.anneal, "microanneal.anneal": config.microanneal.anneal}
        wanting |= {f"{name}.moments": "fresh" for name, shape in stages.items() if shape.moments == "kept"}
    return wanting


def write_recipe(recipe: str, place: str, record: Record, config: RecipeConfig) -> Path:
    """A new recipe file that extends another and starts at the checkpoint: next to a file, else in this folder.

    Raises RecipeError when the file exists.
    """
    source = find_recipe(recipe)
    # A recipe that was named by a path has its neighbours next to it; a built-in one is not written to.
    by_path = recipe.endswith((".yaml", ".yml")) or "/" in recipe
    path = (source.parent if by_path else Path()) / f"{source.stem}-{place}-{record.id[:8]}.yaml"
    content: JsonObject = {"extends": source.stem, "start": {place: record.id}}
    for name, value in (base_settings(config, record) if place == "base" else {}).items():
        *parents, last = name.split(".")
        target = content
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    try:
        # Mode x fails where the file exists, also when another process made it a moment ago.
        with path.open("x") as file:
            yaml.safe_dump(content, file, sort_keys=False)
    except FileExistsError as error:
        raise RecipeError(f"{path} exists; use it, or remove it first") from error
    return path
