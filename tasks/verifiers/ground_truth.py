"""Says whether a verifier can use a row's ground truth, before any answer is sampled for it (RECIPE H.1, H.4).

A constraint's arguments are checked by name, type and range: a row that passes here can be judged, whatever the answer is.
`unusable_truth("ifeval", '{"func_name": "verify_bullet_points"}')` is "constraint verify_bullet_points lacks N".
"""

import inspect
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from langdetect import PROFILES_DIRECTORY

from tasks.verifiers import DATASETS
from tasks.verifiers.constraints import CONSTRAINTS

QUANTIFIERS = ("at least", "at most", "around")
_PARTS = ("verify_paragraph_count", "validate_paragraphs", "validate_sections")
"""Constraints that count parts of a text. A text has at least one part, so N=0 can never be met."""
MAY_BE_EMPTY = ("forbidden_words",)
"""Lists that a row may give without an entry: any text keeps such a constraint."""


def unwrapped(value: Any) -> Any:
    """The entry of a list of one, which newer released rows wrap around dataset and ground truth; else the value."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def usable_truth(dataset: Any, truth: Any) -> tuple[str, Any, str]:
    """(dataset, ground truth, reason why its verifier cannot use it or ""). Whole numbers become text."""
    dataset, truth = unwrapped(dataset), unwrapped(truth)
    for name, value in {"dataset": dataset, "ground truth": truth}.items():
        if isinstance(value, list):
            return (
                "",
                None,
                f"{name} is a list of {len(value)}, and one verifier judges a row" if value else f"no {name}",
            )
    if truth is None or truth == "" or (isinstance(truth, str) and not truth.strip()):
        return "", None, "no ground truth"
    if not isinstance(dataset, str) or dataset.lower() not in DATASETS:
        return "", None, f"dataset {str(dataset)[:40]!r} has no verifier"
    # bool is an int in Python, and True is no number of GSM8K.
    if isinstance(truth, int) and not isinstance(truth, bool):
        truth = str(truth)
    return dataset, truth, unusable_truth(dataset, truth)


def unusable_truth(dataset: str, truth: Any) -> str:
    """Why the dataset's verifier cannot use this ground truth, or ""."""
    if dataset.lower() == "ifeval":
        return unusable_constraint(truth)
    return "" if isinstance(truth, str) else f"ground truth is {said(truth)}, and {dataset} compares text"


def unusable_constraint(truth: Any) -> str:
    """Why no answer can be judged by this constraint, given as JSON or as an object, or ""."""
    if isinstance(truth, str):
        try:
            truth = json.loads(truth)
        except (ValueError, RecursionError):
            return f"ground truth {said(truth)} is no JSON"
    if not isinstance(truth, Mapping):
        return f"ground truth is {said(truth)}, not an object with func_name"
    name = truth.get("func_name")
    if not isinstance(name, str) or name not in CONSTRAINTS:
        return f"func_name {said(name)} is not a constraint"
    wanted = argument_types(name)
    missing = [key for key in wanted if truth.get(key) is None]
    if missing:
        return f"constraint {name} lacks {', '.join(missing)}"
    faults = (unusable_argument(name, key, truth[key], kind) for key, kind in wanted.items())
    if fault := next(filter(None, faults), ""):
        return f"constraint {name}: {fault}"
    # The i-th of N paragraphs must exist.
    if name == "validate_paragraphs" and truth["i"] > truth["N"]:
        return f"constraint {name}: i={truth['i']} is beyond N={truth['N']} paragraphs"
    return ""


@cache
def argument_types(name: str) -> dict[str, object]:
    """Type of every argument of a constraint besides the text, in the order of its signature."""
    hints = get_type_hints(CONSTRAINTS[name])
    return {key: hints[key] for key in list(inspect.signature(CONSTRAINTS[name]).parameters)[1:]}


def unusable_argument(name: str, key: str, value: Any, kind: Any) -> str:
    """Why one argument cannot be used, or ""."""
    if kind is int:
        return unusable_count(name, key, value)
    if kind is str:
        return unusable_text(key, value)
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry for entry in value):
        return f"{key}={said(value)} is not a list of words"
    return "" if value or key in MAY_BE_EMPTY else f"{key} is empty"


def unusable_count(name: str, key: str, value: Any) -> str:
    """A number is whole, and one that an answer can have."""
    if not isinstance(value, int) or isinstance(value, bool):
        return f"{key}={said(value)} is not a whole number"
    # A text has at least one part, so 0 parts can never be met.
    least = 1 if key == "i" or name in _PARTS else 0
    return "" if value >= least else f"{key}={value} is below {least}"


def unusable_text(key: str, value: Any) -> str:
    """A text is not empty, and one of those that there are where only some have a meaning."""
    if not isinstance(value, str):
        return f"{key}={said(value)} is not text"
    if not value:
        return f"{key} is empty"
    match key:
        case "letter" if len(value) != 1:
            return f"letter={said(value)} is not a single character"
        case "quantifier" if value not in QUANTIFIERS:
            return f"quantifier={said(value)} is none of {', '.join(QUANTIFIERS)}"
        case "language" if value not in languages():
            return f"language={said(value)} is not a code that can be detected"
    return ""


@cache
def languages() -> frozenset[str]:
    """Codes that the language verifier can find in a text."""
    return frozenset(file.name for file in Path(PROFILES_DIRECTORY).iterdir() if not file.name.startswith("_"))


def said(value: Any) -> str:
    """A value as a reason shows it."""
    return repr(value)[:40]
