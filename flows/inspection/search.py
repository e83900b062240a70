"""Finding artifacts by what their records say: metrics, config fields, labels, times.

A condition is FIELD OP VALUE, such as `primary.gsm8k>0.3`, `config.schedule.length=30` or `label~anneal`. A field is a dotted
path into the record (`facts.loss`, `config.optimizer.lr`), or any end of one: `lr` means every field called lr.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from infra.execution.plan import flatten
from infra.records.index import Index, Summary
from infra.storage.store import Store

# Two-character operators first, or `<=` would be read as `<` and a value with `=`.
CONDITION = re.compile(r"\s*(?P<field>[^<>=!~\s]+)\s*(?P<operator><=|>=|!=|=|<|>|~)\s*(?P<value>.*\S)\s*", re.DOTALL)
# Digits are bounded, since Python's `int` of a million digits takes minutes.
_NUMBER = re.compile(r"[+-]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,3})?", re.ASCII)
WORDS = {"true": True, "false": False, "null": None}
ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class FoundArtifact(Summary):
    """An artifact for which the conditions hold."""

    found: dict[str, object]
    """The fields that were asked, by dotted path."""


@dataclass(frozen=True)
class Condition:
    """One thing that must hold."""

    field: str
    operator: str
    value: Any

    def holds(self, fields: Mapping[str, object]) -> bool:
        """Whether a field of this name holds the value; `!=` asks that one is there and none is equal."""
        found = [value for path, value in fields.items() if path == self.field or path.endswith(f".{self.field}")]
        if self.operator == "!=":
            # A field that is absent is not unequal: nothing is known of it.
            return bool(found) and not any(_equal(value, self.value) for value in found)
        return any(self._compare(value) for value in found)

    def _compare(self, value: Any) -> bool:
        if self.operator == "=":
            return _equal(value, self.value)
        if self.operator == "~":
            return str(self.value).lower() in str(value).lower()
        both = (value, self.value)
        # A bool is an int to Python and no number to people.
        numbers = all(isinstance(item, int | float) and not isinstance(item, bool) for item in both)
        texts = all(isinstance(item, str) for item in both)
        return (numbers or texts) and ORDERED[self.operator](value, self.value)


def parse_condition(text: str) -> Condition:
    """Read FIELD OP VALUE. Raises ValueError, which says what a condition is."""
    match = CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text[:100]!r} is no condition; give FIELD OP VALUE with one of = != < <= > >= ~ (contains), such as "
            "'primary.gsm8k>0.3', 'config.schedule.length=30' or 'label~anneal'"
        )
    return Condition(match["field"], match["operator"], plain_value(match["value"]))


def plain_value(text: str) -> Any:
    """A number, true, false or null; anything else is a text, whose quotes may be left out."""
    if text in WORDS:
        return WORDS[text]
    if _NUMBER.fullmatch(text):
        return float(text) if "." in text or "e" in text.lower() else int(text)
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def search(store: Store, conditions: list[str]) -> list[FoundArtifact]:
    """The artifacts for which all conditions hold, oldest first."""
    asked = [parse_condition(text) for text in conditions]
    found: list[FoundArtifact] = []
    for summary, body in Index(store).bodies():
        fields = flatten(summary | {name: body[name] for name in ("config", "notes", "version")})
        if all(condition.holds(fields) for condition in asked):
            shown = {
                path: value
                for path, value in fields.items()
                if any(path == item.field or path.endswith(f".{item.field}") for item in asked)
            }
            found.append({**summary, "found": shown})
    return found


def _equal(value: Any, wanted: Any) -> bool:
    # `true` may be a text in one record and a boolean in another.
    if isinstance(value, bool) != isinstance(wanted, bool):
        return str(value).lower() == str(wanted).lower()
    # A number that was quoted is the same to whoever searches.
    return value == wanted or str(value) == str(wanted)
