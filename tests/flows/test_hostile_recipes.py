"""Recipes and overrides that are written to hang, to crash or to overflow: each ends in a second with its place named.

Oracle: the time, and the field or line in the error.
"""

import time
from pathlib import Path

import pytest

from flows.config.errors import RecipeError
from flows.config.files import apply_override, load
from flows.config.strict_yaml import parse_yaml

ALIASES = "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}' if level else 'x'] * 9)}]\n" for level in range(9)
)
DEEP = {
    "lists": "name: " + "[" * 10_000 + "]" * 10_000,
    "maps": "name: " + "{a: " * 10_000 + "1" + "}" * 10_000,
    "indented maps": "name:\n" + "".join(" " * level + "a:\n" for level in range(1, 2_000)),
    "dashes": "name:\n" + "- " * 10_000 + "1",
    "keys": "? " * 10_000 + "1",
    "a chain of aliases": "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 1_000)),
    "what is not closed": "name: " + "[" * 10_000,
}
NUMBERS = ("0x" + "f" * 400, "1" + "0" * 4_000, "1" + "0" * 5_000, "-" + "9" * 400, "0b" + "1" * 5_000, "0" + "7" * 400,
    ":".join(["59"] * 300), "99999999999999999999", "1_" * 300 + "0")  # fmt: skip


def refusal(tmp_path: Path, text: str) -> str:
    """What `olmo2` says of a recipe, which must be within seconds on a machine that is busy with other things."""
    file = tmp_path / "mine.yaml"
    file.write_text("extends: smoke\n" + text)
    began = time.monotonic()
    with pytest.raises(RecipeError) as raised:
        load(str(file))
    assert time.monotonic() - began < 10
    assert len(str(raised.value)) < 20_000
    return str(raised.value)


@pytest.mark.parametrize("place", ["name: *a8", "pretrain: {steps: *a8}", "*a8 : 1", "collect: {*a8 : *a8}", "<<: *a8"])
def test_aliases_that_multiply_are_refused(tmp_path: Path, place: str):
    assert "with aliases written out" in refusal(tmp_path, ALIASES + place + "\n")


def test_a_few_aliases_are_welcome():
    assert parse_yaml("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}


def test_an_alias_of_what_it_stands_in_is_refused(tmp_path: Path):
    assert "leads into what it stands in" in refusal(tmp_path, "name: &a [*a]\n")
    assert "leads into what it stands in" in refusal(tmp_path, "pretrain: &a {model: *a}\n")


@pytest.mark.parametrize("kind", DEEP)
def test_deep_nesting_is_refused(tmp_path: Path, kind: str):
    said = refusal(tmp_path, DEEP[kind])
    assert "levels" in said
    assert "line" in said


@pytest.mark.parametrize("number", NUMBERS)
def test_endless_numbers_are_refused_by_their_field(tmp_path: Path, number: str):
    said = refusal(tmp_path, f"pretrain: {{schedule: {{learning_rate: {number}}}}}\n")
    assert "pretrain.schedule.learning_rate, line 2" in said
    with pytest.raises(RecipeError, match=r"override 'pretrain\.schedule\.learning_rate"):
        apply_override({}, f"pretrain.schedule.learning_rate={number}")


@pytest.mark.parametrize("value", ["1.0e+400", ".inf", ".nan", "-.inf"])
def test_numbers_that_are_not_finite_are_refused_by_their_field(tmp_path: Path, value: str):
    assert "pretrain.schedule.learning_rate" in refusal(
        tmp_path, f"pretrain: {{schedule: {{learning_rate: {value}}}}}\n"
    )


@pytest.mark.parametrize(
    "value",
    ["2024-99-99", "!!int abc", "!!float abc", "!!bool abc", "!!binary x", "!!python/object/apply:os.system [true]"],
)
def test_values_that_yaml_cannot_read_are_refused(tmp_path: Path, value: str):
    assert "mine.yaml" in refusal(tmp_path, f"name: {value}\n")


def test_overrides_of_many_levels_are_refused():
    with pytest.raises(RecipeError, match="levels"):
        apply_override({}, ".".join(["a"] * 10_000) + "=1")


def test_a_file_of_many_megabytes_is_refused(tmp_path: Path):
    assert "bytes are no recipe" in refusal(tmp_path, "# " + "x" * (11 << 20) + "\n")
