"""Recipe files: YAML with `extends`, overrides from the command line, and errors that name field, value and way out.

`extends: NAME` is NAME.yaml next to the file, else the built-in recipe; a file never extends itself, so an own laptop.yaml may
extend the built-in `laptop`. A path (`extends: base/mine.yaml`) starts at the file's folder. Of a list the later lie over the
earlier. Mappings are merged key by key.
Directly below `start`, `collect`, `classifiers`, `label`, `synthesize` and `filter`, whose keys are names, null takes the
thing of that name out; everywhere else null is a value.
"""

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flows.config.errors import RecipeError, explain_error, nearest
from flows.config.recipe_config import RecipeConfig
from flows.config.rules import check_recipe
from flows.config.strict_yaml import DEEPEST, parse_yaml

NAMED = ("start", "collect", "classifiers", "label", "synthesize", "filter")
"""Fields whose keys are names of the recipe's own choosing: a null below them takes out what is of that name."""


LARGEST_BYTES = 10 << 20
"""Of a recipe file."""


def recipe_folder() -> Path:
    """Where the named recipes are: next to the packages in a checkout, inside the package when installed."""
    checkout = Path(__file__).resolve().parents[2] / "recipes"
    return checkout if checkout.is_dir() else Path(str(resources.files("flows"))) / "recipes"


def recipe_names() -> list[str]:
    """Names that may be given in place of a path."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def names_recipe(target: str) -> bool:
    """Whether a word that may be a recipe or an artifact's id is a recipe: its name, or the path of its file."""
    return target.endswith((".yaml", ".yml")) or target in recipe_names()


def load(recipe: str, overrides: list[str] | None = None) -> RecipeConfig:
    """Read a recipe by name or path, apply `stage.field=value` overrides, and validate.

    Raises RecipeError for a file that is missing or not YAML, an unknown field, or a value of the wrong type.
    """
    data = read_recipe(recipe)
    for override in overrides or []:
        # In the order of the command line, so that a later one wins.
        apply_override(data, override)
    return checked_recipe(data, recipe)


def checked_recipe(data: Mapping[str, object], recipe: str) -> RecipeConfig:
    """The recipe that a mapping describes. `recipe` names it in errors.

    Raises RecipeError for an unknown field, a value of the wrong type, or parts that contradict each other.
    """
    try:
        config = RecipeConfig.model_validate(data)
    except ValidationError as error:
        raise RecipeError(explain_error(error, RecipeConfig, recipe)) from error
    try:
        check_recipe(config)
    except ValueError as error:
        raise RecipeError(f"recipe {recipe} cannot be used:\n  recipe: {error}") from error
    return config


def read_recipe(recipe: str) -> dict[str, object]:
    """The recipe's mapping, merged over the recipe it extends. Raises RecipeError for a loop of `extends`."""
    return _read(find_recipe(recipe), [])


def _read(path: Path, above: list[Path]) -> dict[str, object]:
    """One file over what it extends; `above` are the files that extend it, the first one read first."""
    # Resolved, so that a link to a file that is being read is found as the loop it is.
    if path.resolve() in (file.resolve() for file in above):
        chain = " → ".join(str(file) for file in [*above, path])
        raise RecipeError(f"recipes extend each other in a loop: {chain}; let one of them extend something else")
    try:
        # Asked of the file system, since reading it would be the harm already.
        if path.stat().st_size > LARGEST_BYTES:
            raise RecipeError(f"{path.stat().st_size:,} bytes are no recipe; the most is {LARGEST_BYTES:,}")
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds {type(data).__name__}, not a mapping of stages to their settings")
    parent = data.pop("extends", None)
    # The file's own name, not that of what it extends.
    data.setdefault("name", path.stem)
    if parent is None:
        return data
    parents = parent if isinstance(parent, list) else [parent]
    if not parents or not all(isinstance(name, str) and name for name in parents):
        raise RecipeError(
            f"{path}: extends={parent!r} is not the name or path of a recipe, such as extends: laptop, or a list of them"
        )
    below: dict[str, object] = {}
    for name in parents:
        file = extended_file(path, name)
        given = _read(file, [*above, path])
        # Of a list of parents, a later one lies over the earlier ones.
        below = merge(taken_out(below, given, str(file)), given)
    return merge(taken_out(below, data, str(path)), data)


def extended_file(path: Path, parent: str) -> Path:
    """The file that `extends: parent` means in the file at `path`."""
    if parent.endswith((".yaml", ".yml")):
        return find_recipe(str(path.parent / Path(parent).expanduser()))
    # A file never extends itself, so that an own laptop.yaml can extend the built-in one.
    beside = path.parent / Path(f"{parent}.yaml").expanduser()
    if "/" in parent or (beside.is_file() and beside.resolve() != path.resolve()):
        return find_recipe(str(beside))
    return find_recipe(parent)


def taken_out(below: Mapping[str, object], above: Mapping[str, object], where: str) -> dict[str, object]:
    """`below` without the named things that are null in `above`; the nulls are removed from `above` itself.

    Raises RecipeError for a name that is not there.
    """
    below = dict(below)
    for field in NAMED:
        changes, things = above.get(field), below.get(field)
        if not isinstance(changes, dict) or not isinstance(things, dict):
            continue
        for name in [name for name, value in changes.items() if value is None]:
            if name not in things:
                known = nearest(str(name), list(things))
                raise RecipeError(
                    f"{where}: {field}.{name}: null takes out what is of that name, and nothing is{known}"
                )
            del changes[name]
            things = {key: value for key, value in things.items() if key != name}
        below[field] = things
    return below


def find_recipe(recipe: str) -> Path:
    """The file of a recipe given by name or path. Raises RecipeError with the nearest name."""
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        path = Path(recipe).expanduser()
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {recipe}")
        return path
    path = recipe_folder() / f"{recipe}.yaml"
    if not path.is_file():
        raise RecipeError(f"there is no recipe {recipe!r}{nearest(recipe, recipe_names())}")
    return path


_ID = re.compile("[0-9a-f]{4,16}")
"""An artifact's id or its beginning."""


def merge(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """Mappings merged key by key; anything else above replaces what is below. A mapping of another `kind` or `algorithm`
    replaces.
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            # Fields of one kind mean nothing to another, so a mapping of another kind replaces instead of merging.
            alike = all(value.get(name, old.get(name)) == old.get(name) for name in ("kind", "algorithm"))
            value = merge(old, value) if alike else value
        merged[key] = value
    return merged


def apply_override(data: dict[str, object], override: str) -> None:
    """Set one `stage.field=value` in place; the value is read as YAML. As in a file, `collect.web=null` takes `web` out."""
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"override {override[:200]!r} is not of the form stage.field=value, such as dpo.beta=1")
    # A value of a thousand dots would build a thousand mappings, and recursion below would end.
    if path.count(".") >= DEEPEST:
        raise RecipeError(f"override {override[:200]!r}: {path.count('.') + 1:,} levels; the most is {DEEPEST}")
    *parents, last = path.strip().split(".")
    target: Any = data
    for depth, name in enumerate(parents):
        if isinstance(target, list):
            target = _member(target, name, override)
            continue
        if not isinstance(target, dict):
            raise RecipeError(f"override {override!r}: {'.'.join(parents[:depth])} is {target!r}, which has no fields")
        # An absent section and one that says `null` both become a mapping.
        if target.get(name) is None:
            target[name] = {}
        target = target[name]
    try:
        # An id of digits alone, or with one e among them, is a number to YAML.
        value = text.strip() if parents == ["start"] and _ID.fullmatch(text.strip()) else parse_yaml(text)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise RecipeError(f"override {override!r}: {text!r} is not a YAML value: {said}") from error
    except RecipeError as error:
        raise RecipeError(f"override {override!r}: {error}") from error
    if isinstance(target, list):
        _member(target, last, override)
        target[int(last)] = value
    elif isinstance(target, dict) and value is None and len(parents) == 1 and parents[0] in NAMED:
        data.update(taken_out(data, {parents[0]: {last: None}}, f"override {override!r}"))
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise RecipeError(f"override {override!r}: {'.'.join(parents)} is {target!r}, which has no fields")


def _member(target: list[Any], name: str, override: str) -> Any:
    if not name.isdigit() or int(name) >= len(target):
        raise RecipeError(f"override {override!r}: {name!r} is not an index of a list of {len(target)}")
    return target[int(name)]
