"""YAML that a stranger may have written: what is too deep, too large or said twice is refused before any of it is built.

Example: nine lines of nine aliases each would be a billion values; `parse_yaml` says so in a millisecond.
"""

from typing import Any

import yaml

from flows.config.errors import RecipeError

DEEPEST = 64
"""Levels of lists and maps in a recipe; the deepest of ours has nine."""


MOST_VALUES = 100_000
"""Values of a recipe with its aliases written out: nine levels of aliases in nine lines would be a billion."""


LONGEST_NUMBER = 40
"""Characters of a whole number."""


def parse_yaml(text: str) -> Any:
    """YAML, strict about keys: one that a mapping has twice, of which YAML would keep the last, is refused.

    Raises RecipeError for that and for what is too deep, too large or has a number too long, before any of it is built;
    yaml.YAMLError for other mistakes.
    """
    _refuse_depth(text)
    # Nodes are built, values not yet: a node of an alias is shared, and takes no room of its own.
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
    # By identity: an alias is the same node object, so each is measured once.
    known: dict[int, tuple[int, int]] = {}
    around: set[int] = set()

    def measure(node: yaml.Node, path: str) -> tuple[int, int]:
        """Values and levels of a node with its aliases written out; an alias stands behind what it names, so is known."""
        line = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode):
            if node.tag.endswith(":int") and len(node.value) > LONGEST_NUMBER:
                said = f"{node.value[:20]}… is a whole number of {len(node.value):,} characters; the most is {LONGEST_NUMBER}"
                raise RecipeError(f"{path or 'the value'}, line {line}: {said}")
            # 2^63 is where JSON readers and NumPy's int64 end.
            if node.tag.endswith(":int") and abs(_whole_number(loader, node, path)) >= 2**63:
                raise RecipeError(f"{path or 'the value'}, line {line}: {node.value} is beyond 64 bits")
            return 1, 0
        # An anchor that contains its own alias would measure for ever.
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
            # The tag belongs to the key: 1 and "1" are two keys.
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise RecipeError(
                    f"{path}{key.value} is there twice, on line {lines[name]} and on line {line}; only the second would "
                    "count, so put both under one key"
                )
            lines[name] = line
            _refuse_repeated_keys(value, f"{path}{key.value}.", seen)
