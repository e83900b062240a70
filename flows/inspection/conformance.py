"""Paper, released code and this project side by side: which value each says, and why ours is what it is.

Ours is read from the recipe, the other two from published_values.yaml next to this file, which a test compares with the golden
files. A value of ours that is neither the paper's nor the code's is marked, and so is one without a reason where both disagree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import yaml
from rich.console import Console
from rich.table import Table

from flows.cli.options import print_whole
from flows.config.errors import RecipeError
from flows.config.files import load
from flows.config.recipe_config import RecipeConfig
from model.config import ModelConfig
from tasks.evaluation.report import ConformanceRow

_FILE = Path(__file__).with_name("published_values.yaml")
PUBLISHED_SIZES = ("1b", "7b", "13b", "32b")
ABSENT = object()
"""Stands for the value of a field that a recipe does not have."""
_Verdict = Literal["as both", "as the paper", "as the code", "ours", "not published"]


class PublishedValue(TypedDict):
    """An entry of the file; a value that depends on the size is a mapping from sizes to values."""

    topic: str
    field: str
    """Dotted path in a recipe."""
    paper: object
    code: object
    why: NotRequired[str]
    sizes: NotRequired[Sequence[str]]
    """All published ones where it is left out."""


@dataclass(frozen=True)
class ComparedValue:
    """One value. None where a source does not say it."""

    topic: str
    field: str
    paper: Any
    code: Any
    ours: Any
    verdict: _Verdict
    why: str


def conformance(size: str, overrides: list[str] | None = None) -> list[ComparedValue]:
    """The rows of a size. Raises RecipeError for one that is not published."""
    if size not in PUBLISHED_SIZES:
        raise RecipeError(f"{size!r} is not a published size; they are {', '.join(PUBLISHED_SIZES)}")
    return compared(load(f"olmo2-{size}", overrides), size)


def compared(config: RecipeConfig, size: str) -> list[ComparedValue]:
    """The rows of a recipe next to those of a published size; what the recipe has no field for is left out."""
    data = config.model_dump(mode="json")
    entries = (entry for entry in published_values() if size in entry.get("sizes", PUBLISHED_SIZES))
    found = ((entry, _at(data, entry["field"])) for entry in entries)
    return [_row(entry, size, ours) for entry, ours in found if ours is not ABSENT]


def published_size(config: RecipeConfig) -> str | None:
    """The published size whose model the recipe trains."""
    models = {size: ModelConfig.model_validate(size.upper()) for size in PUBLISHED_SIZES}
    # Equal in every field: a model of another shape has no published values.
    return next((size for size, model in models.items() if model == config.pretrain.model), None)


def reported(config: RecipeConfig) -> tuple[ConformanceRow, ...]:
    """The table for the report of a recipe of a published size, in words; empty for another model."""
    size = published_size(config)
    return tuple(
        ConformanceRow(
            topic=row.topic, paper=_shown(row.paper), code=_shown(row.code), ours=_shown(row.ours), verdict=row.verdict,
            why=row.why if row.paper != row.code else "",
        )
        for row in (compared(config, size) if size else ())
    )  # fmt: skip


def published_values() -> list[PublishedValue]:
    """The entries of the file."""
    return yaml.safe_load(_FILE.read_text(encoding="utf-8"))


def of_size(value: object, size: str) -> object:
    """A value of the file for one size; None where it has none."""
    return value.get(size) if isinstance(value, dict) else value


def _row(entry: PublishedValue, size: str, ours: object) -> ComparedValue:
    paper, code = of_size(entry["paper"], size), of_size(entry["code"], size)
    return ComparedValue(
        entry["topic"], entry["field"], paper, code, ours, _verdict(paper, code, ours), entry.get("why", "")
    )


def _at(data: Mapping[str, object], field: str) -> Any:
    """The value at a dotted path, ABSENT where there is none; members of a list are told apart by their names."""
    value: Any = data
    for part in field.split("."):
        if isinstance(value, list):
            value = next((item for item in value if part in (item.get("name"), item.get("source"))), ABSENT)
        else:
            value = value.get(part, ABSENT) if isinstance(value, dict) else ABSENT
    return value


def _verdict(paper: Any, code: Any, ours: Any) -> _Verdict:
    if paper is None and code is None:
        return "not published"
    # Where only one of the two says it, that one decides.
    if ours in (paper, code) and (paper is None or code is None or paper == code):
        return "as both" if paper == code else "as the code" if paper is None else "as the paper"
    return "as the paper" if ours == paper else "as the code" if ours == code else "ours"


def print_conformance(console: Console, rows: list[ComparedValue]) -> None:
    """The table."""
    table = Table("value", "paper", "code", "ours", "", "why", box=None, pad_edge=False)
    for row in rows:
        cells = [_shown(value) for value in (row.paper, row.code, row.ours)]
        style = "yellow" if row.verdict == "ours" else None
        table.add_row(row.topic, *cells, row.verdict, row.why if row.paper != row.code else "", style=style)
    print_whole(console, table)


def _shown(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, list):
        return ", ".join(_shown(member) for member in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
