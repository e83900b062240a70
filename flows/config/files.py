"""Recipe files: YAML with `extends`, overrides from the command line, and errors that name field, value and way out.

`extends: NAME` is NAME.yaml beside the file, else the built-in recipe; a file never extends itself, so an own laptop.yaml may
extend the built-in `laptop`. A path (`extends: base/mine.yaml`) starts at the file's folder. Mappings are merged key by key.
Directly below `start`, `collect`, `classifiers`, `label`, `synthesize` and `filter`, whose keys are names, null takes the
thing of that name out; everywhere else null is a value.
"""

import difflib
import re
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from flows.config.renamed import new_name

M = TypeVar("M", bound=BaseModel)
NAMED = ("start", "collect", "classifiers", "label", "synthesize", "filter")
"""Fields whose keys are names of the recipe's own choosing: a null below them takes out what is of that name."""


DEEPEST = 64
"""Levels of lists and maps in a recipe; the deepest of ours has nine."""
MOST_VALUES = 100_000
"""Values of a recipe with its aliases written out: nine levels of aliases in nine lines would be a billion."""
LARGEST_BYTES = 10 << 20
"""Of a recipe file."""
LONGEST_NUMBER = 40
"""Characters of a whole number."""


class RecipeError(ValueError):
    """A recipe or an override that cannot be used; the text is meant for the person who wrote it."""


def recipe_folder() -> Path:
    """Where the named recipes are: beside the packages in a checkout, inside the package when installed."""
    checkout = Path(__file__).resolve().parents[2] / "recipes"
    return checkout if checkout.is_dir() else Path(str(resources.files("flows"))) / "recipes"


def recipe_names() -> list[str]:
    """Names that may be given in place of a path."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


PASSWORD_OF_URL = re.compile(r"://[^/\s'\"]*@")
"""What stands before a URL's host: a name and a password, which no message repeats."""


def names_recipe(target: str) -> bool:
    """Whether a word that may be a recipe or an artifact's id is a recipe: its name, or the path of its file."""
    return target.endswith((".yaml", ".yml")) or target in recipe_names()


def load(model: type[M], recipe: str, overrides: list[str] | None = None) -> M:
    """Read a recipe by name or path, apply `stage.field=value` overrides, and validate.

    Raises RecipeError for a file that is missing or not YAML, an unknown field, or a value of the wrong type.
    """
    data = read_recipe(recipe)
    for override in overrides or []:
        apply_override(data, override)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RecipeError(explain(error, model, recipe)) from error


def read_recipe(recipe: str) -> dict[str, Any]:
    """The recipe's mapping, merged over the recipe it extends. Raises RecipeError for a loop of `extends`."""
    return _read(find_recipe(recipe), [])


def _read(path: Path, above: list[Path]) -> dict[str, Any]:
    """One file over what it extends; `above` are the files that extend it, the first one read first."""
    if path.resolve() in (file.resolve() for file in above):
        chain = " → ".join(str(file) for file in [*above, path])
        raise RecipeError(f"recipes extend each other in a loop: {chain}; let one of them extend something else")
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise RecipeError(f"{path.stat().st_size:,} bytes are no recipe; the most is {LARGEST_BYTES:,}")
        data = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds {type(data).__name__}, not a mapping of stages to their settings")
    parent = data.pop("extends", None)
    data.setdefault("name", path.stem)
    if parent is None:
        return data
    if not isinstance(parent, str) or not parent:
        raise RecipeError(f"{path}: extends={parent!r} is not the name or path of one recipe, such as extends: laptop")
    below = _read(extended_file(path, parent), [*above, path])
    return merge(taken_out(below, data, str(path)), data)


def extended_file(path: Path, parent: str) -> Path:
    """The file that `extends: parent` means in the file at `path`."""
    if parent.endswith((".yaml", ".yml")):
        return find_recipe(str(path.parent / Path(parent).expanduser()))
    beside = path.parent / Path(f"{parent}.yaml").expanduser()
    if "/" in parent or (beside.is_file() and beside.resolve() != path.resolve()):
        return find_recipe(str(beside))
    return find_recipe(parent)


def taken_out(below: dict[str, Any], above: dict[str, Any], where: str) -> dict[str, Any]:
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


def parse(text: str) -> Any:
    """YAML, strict about keys: one that a mapping has twice, of which YAML would keep the last, is refused.

    Raises RecipeError for that and for what is too deep, too large or has a number too long, before any of it is built;
    yaml.YAMLError for other mistakes.
    """
    _refuse_depth(text)
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_repeated_keys(node, "", set())
        _refuse_size(node, loader)
        try:
            return loader.construct_document(node)
        except (ValueError, OverflowError, AttributeError, KeyError) as error:
            # A date or a number that only looks like one, such as 2024-99-99.
            raise RecipeError(f"a value is none that YAML knows: {error}; put it in quotes if it is a text") from error
    finally:
        loader.dispose()


def _refuse_depth(text: str) -> None:
    """Raise RecipeError for deep nesting. Events come one by one, whereas building values recurses."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                line = event.start_mark.line + 1
                raise RecipeError(f"line {line} lies {depth} levels deep in lists and maps; the most is {DEEPEST}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _refuse_size(root: yaml.Node, loader: yaml.SafeLoader) -> None:
    """Raise RecipeError where aliases grow beyond bounds, lead into themselves, or a whole number is endless."""
    known: dict[int, tuple[int, int]] = {}
    around: set[int] = set()

    def measure(node: yaml.Node, path: str) -> tuple[int, int]:
        """Values and levels of a node with its aliases written out; an alias stands behind what it names, so is known."""
        line = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode):
            if node.tag.endswith(":int") and len(node.value) > LONGEST_NUMBER:
                said = f"{node.value[:20]}… is a whole number of {len(node.value):,} characters; the most is {LONGEST_NUMBER}"
                raise RecipeError(f"{path or 'the value'}, line {line}: {said}")
            if node.tag.endswith(":int") and abs(_whole_number(loader, node, path)) >= 2**63:
                raise RecipeError(f"{path or 'the value'}, line {line}: {node.value} is beyond 64 bits")
            return 1, 0
        if id(node) in around:
            raise RecipeError(f"{path}, line {line}: an alias leads into what it stands in")
        if id(node) not in known:
            around.add(id(node))
            members = [measure(member, f"{path}.{name}".lstrip(".")) for name, member in _members(node)]
            around.discard(id(node))
            known[id(node)] = 1 + sum(size for size, _ in members), 1 + max((depth for _, depth in members), default=0)
            if known[id(node)][0] > MOST_VALUES or known[id(node)][1] > DEEPEST:
                raise RecipeError(
                    f"{path}, line {line}: with aliases written out there are {known[id(node)][0]:,} values in "
                    f"{known[id(node)][1]} levels; the most is {MOST_VALUES:,} in {DEEPEST}"
                )
        return known[id(node)]

    measure(root, "")


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode, path: str) -> int:
    try:
        return loader.construct_yaml_int(node)
    except ValueError as error:
        raise RecipeError(f"{path}, line {node.start_mark.line + 1}: {node.value!r} is no whole number") from error


def _members(node: yaml.Node) -> list[tuple[str, yaml.Node]]:
    """The nodes in a list or map, keys too, with what to call them."""
    if isinstance(node, yaml.SequenceNode):
        return [(str(place), member) for place, member in enumerate(node.value)]
    # A key that is a list or map is not written out here: it may be the bomb.
    names = [key.value[:100] if isinstance(key, yaml.ScalarNode) else "?" for key, _ in node.value]
    return [(name, one) for name, pair in zip(names, node.value, strict=True) for one in pair]


def _refuse_repeated_keys(node: yaml.Node, path: str, seen: set[int]) -> None:
    if id(node) in seen:  # an alias, maybe of what it stands in
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for place, member in enumerate(node.value):
            _refuse_repeated_keys(member, f"{path}{place}.", seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise RecipeError(
                    f"{path}{key.value} is there twice, on line {lines[name]} and on line {line}; only the second would "
                    "count, so put both under one key"
                )
            lines[name] = line
            _refuse_repeated_keys(value, f"{path}{key.value}.", seen)


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


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings merged key by key; anything else above replaces what is below. A mapping of another `kind` or `algorithm`
    replaces.
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            alike = all(value.get(name, old.get(name)) == old.get(name) for name in ("kind", "algorithm"))
            value = merge(old, value) if alike else value
        merged[key] = value
    return merged


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one `stage.field=value` in place; the value is read as YAML. As in a file, `collect.web=null` takes `web` out."""
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"override {override[:200]!r} is not of the form stage.field=value, such as dpo.beta=1")
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
        if target.get(name) is None:
            target[name] = {}
        target = target[name]
    try:
        value = parse(text)
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


def explain(error: ValidationError, model: type[BaseModel], recipe: str) -> str:
    """Every problem on a line of its own: the field's path, its value, the rule, the nearest valid name."""
    lines = [f"recipe {recipe} cannot be used:"]
    schema = model.model_json_schema()
    for problem in error.errors(include_url=False):
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = fields_at(schema, list(problem["loc"][:-1]))
            section, field = [str(part) for part in ("", *problem["loc"])][-2:]
            hint = new_name(section, field, known) or nearest(field, known)
            lines.append(f"  {path}: there is no such field{hint}")
            continue
        # Of a whole mapping, the message names what is wrong.
        shown = problem["type"] != "missing" and not isinstance(problem["input"], dict)
        given = PASSWORD_OF_URL.sub("://***@", repr(problem["input"]))
        value = f" (given: {given:.200})" if shown else ""
        lines.append(f"  {path or 'recipe'}: {problem['msg'].removeprefix('Value error, ')}{value}")
    return "\n".join(lines)


def fields_at(schema: dict[str, Any], location: list[Any]) -> list[str]:
    """Field names that the schema knows at a location of a validation error."""
    node = schema
    for part in location:
        node = _step(schema, node, part)
    return sorted(_resolved(schema, node).get("properties", {}))


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    options = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    return _resolved(schema, options[0]) if options else node


def _step(schema: dict[str, Any], node: dict[str, Any], part: Any) -> dict[str, Any]:
    node = _resolved(schema, node)
    tags = node.get("discriminator", {}).get("mapping", {})
    if part in tags:
        return {"$ref": tags[part]}
    if part in node.get("properties", {}):
        return node["properties"][part]
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            return node[key]
    return {}


def nearest(name: str, known: list[str]) -> str:
    """What the person may have meant, as the end of a sentence."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
